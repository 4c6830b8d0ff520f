import msgspec
import pytest

from pillarbox.conf.model import Config, QueueOptions, Relay
from pillarbox.mail.envelope import Envelope, Kind, Notify, Outcome, Result, decode_envelope
from pillarbox.queue import policy
from pillarbox.queue.policy import Facts
from pillarbox.queue.queue import duration
from pillarbox.queue.store import Gone, Later
from pillarbox.roles.bounce import BounceKind
from tests.queue.rig import DAY, T0, make_config, make_envelope

FACTS = Facts(100, eight_bit=True)


def outcome(result: Result, **fields: object) -> Outcome:
    return Outcome(evpid=1, attempt=7, result=result, **fields)  # type: ignore[arg-type]


def failed_until(envelope: Envelope, config: Config, now: int) -> Later:
    verdict = policy.settle(envelope, FACTS, outcome(Result.TEMPFAIL, errorline="451 wait"), config, now)
    assert isinstance(verdict.change, Later)
    return verdict.change


@pytest.mark.parametrize(
    ("kind", "base"),
    [(Kind.MTA, 400), (Kind.MDA, 10)],
)
def test_retries_are_quadratic_from_creation(kind: Kind, base: int) -> None:
    envelope, now, tried = make_envelope(1, kind=kind), T0, []
    for _ in range(5):
        later = failed_until(envelope, make_config(), now)
        envelope, now = decode_envelope(later.data), later.next_try
        tried.append(now - T0)
    assert tried == [base * n * n for n in (1, 2, 3, 4, 5)]


def test_after_an_outage_the_next_step_in_the_future_is_taken() -> None:
    envelope = make_envelope(1, retry=2)
    assert policy.next_try(envelope, T0 + 400 * 100) == T0 + 400 * 121


def test_a_creation_time_in_the_future_does_not_put_the_next_try_off() -> None:
    envelope = make_envelope(1, ctime=T0 + 900 * DAY)
    assert T0 < policy.next_try(envelope, T0) <= T0 + 400


def test_ttl_of_the_envelope_then_of_its_action_then_of_the_queue() -> None:
    config = make_config(queue=QueueOptions(ttl=50))
    assert policy.expiry(make_envelope(1, ttl=7), config) == T0 + 7
    assert policy.expiry(make_envelope(1), config) == T0 + 50
    config = msgspec.structs.replace(config, actions={"out": Relay(name="out", ttl=9)})
    assert policy.expiry(make_envelope(1), config) == T0 + 9
    assert policy.expiry(make_envelope(1, dispatcher="removed"), config) == T0 + 50


def test_an_envelope_that_would_expire_before_its_next_try_is_looked_at_then() -> None:
    assert failed_until(make_envelope(1, ttl=100), make_config(), T0).next_try == T0 + 100


def test_a_temporary_failure_behind_the_ttl_is_the_expiry() -> None:
    verdict = policy.settle(make_envelope(1, ttl=100), FACTS, outcome(Result.TEMPFAIL), make_config(), T0 + 100)
    assert verdict.expired
    assert isinstance(verdict.change, Gone)
    bounce = verdict.change.bounce
    assert bounce is not None
    assert (bounce.kind, bounce.errorline, bounce.esc_class, bounce.esc_code, bounce.ttl, bounce.size) == (
        BounceKind.FAILED,
        "Envelope expired",
        5,
        47,
        100,
        100,
    )


def test_a_temporary_failure_is_noted_as_the_reference_shows_it() -> None:
    envelope = decode_envelope(failed_until(make_envelope(1), make_config(), T0).data)
    assert (envelope.retry, envelope.errorline, envelope.esc_class, envelope.last_try) == (1, "451 wait", 4, 0)


@pytest.mark.parametrize("notify", [Notify.NONE, Notify.SUCCESS, Notify.DELAY, Notify.FAILURE])
def test_a_failure_is_told_whatever_notify_says(notify: Notify) -> None:
    verdict = policy.settle(make_envelope(1, dsn_notify=notify), FACTS, outcome(Result.PERMFAIL), make_config(), T0)
    assert verdict.change.bounce is not None
    assert verdict.change.bounce.kind is BounceKind.FAILED


def test_notify_never_and_the_null_sender_get_no_bounce() -> None:
    never = policy.settle(make_envelope(1, dsn_notify=Notify.NEVER), FACTS, outcome(Result.PERMFAIL), make_config(), T0)
    null = policy.settle(make_envelope(1, sender=""), FACTS, outcome(Result.PERMFAIL), make_config(), T0)
    assert (never.change.bounce, never.no_return_path) == (None, False)
    assert (null.change.bounce, null.no_return_path) == (None, True)


def test_a_loop_says_so() -> None:
    verdict = policy.settle(make_envelope(1), FACTS, outcome(Result.LOOP), make_config(), T0)
    assert verdict.change.bounce is not None
    assert verdict.change.bounce.errorline == "Loop detected"


@pytest.mark.parametrize(
    ("kind", "without_dsn", "told"),
    [
        (Kind.MDA, False, BounceKind.DELIVERED),
        (Kind.MTA, True, BounceKind.RELAYED),
        (Kind.MTA, False, None),  # the next hop tells
    ],
)
def test_success_is_told_where_it_was_asked_for(kind: Kind, without_dsn: bool, told: BounceKind | None) -> None:
    ok = outcome(Result.OK, relayed_without_dsn=without_dsn)
    asked = policy.settle(make_envelope(1, kind=kind, dsn_notify=Notify.SUCCESS), FACTS, ok, make_config(), T0)
    silent = policy.settle(make_envelope(1, kind=kind), FACTS, ok, make_config(), T0)
    assert (asked.change.bounce and asked.change.bounce.kind) == told
    assert silent.change.bounce is None


def test_a_delay_is_told_once_an_interval() -> None:
    config = make_config(bounce_warn=(4 * 3600, DAY))
    envelope, now, told = make_envelope(1), T0, []
    while now < T0 + 2 * DAY:
        later = failed_until(envelope, config, now)
        if later.bounce is not None:
            told.append((later.bounce.kind, later.bounce.delay))
        envelope, now = decode_envelope(later.data), later.next_try
    assert told == [(BounceKind.DELAYED, 4 * 3600), (BounceKind.DELAYED, DAY)]


@pytest.mark.parametrize(
    ("notify", "told"),
    [(Notify.NONE, True), (Notify.DELAY, True), (Notify.FAILURE, False), (Notify.NEVER, False)],
)
def test_a_delay_is_told_where_notify_allows(notify: Notify, told: bool) -> None:
    later = failed_until(make_envelope(1, dsn_notify=notify), make_config(bounce_warn=(1,)), T0)
    assert (later.bounce is not None) == told


def test_destinations() -> None:
    assert policy.destination_of(make_envelope(1, "Bob@Far.Example")) == "mta:far.example"
    assert policy.destination_of(make_envelope(1, "a@b", kind=Kind.MDA, mda_user="alice")) == "mda:alice"
    assert policy.destination_of(make_envelope(1, "a@b", kind=Kind.MDA)) == "mda:a@b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (3661, "1h1m1s"), (4 * DAY + 5, "4d5s")]
)
def test_durations_are_written_as_the_reference_does(seconds: int, text: str) -> None:
    assert duration(seconds) == text
