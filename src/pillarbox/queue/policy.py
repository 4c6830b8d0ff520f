"""What becomes of an envelope: when it is tried again, when it expires, whom to tell. Pure; times are epoch seconds.

Called by `queue` for each outcome; what it returns is applied by the store in one transaction and then told to the
scheduler.
"""

import msgspec

from pillarbox.conf.model import Config
from pillarbox.mail.envelope import Envelope, Kind, Notify, Outcome, Result, encode_envelope
from pillarbox.queue.store import Gone, Later, Row, StoredMessage
from pillarbox.roles.bounce import BounceKind, PendingBounce

BACKOFF = {Kind.MTA: 400, Kind.MDA: 10}
TIME_EXPIRED = 47  # RFC 3463 §3.5: x.4.7, delivery time expired
EXPIRED = "Envelope expired"
LOOP = "Loop detected"
NO_RETURN_PATH = "queue: no return path!"


class Facts(msgspec.Struct, frozen=True):
    """The message of an envelope, as far as a bounce tells of it."""

    size: int = 0
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False

    @classmethod
    def of(cls, stored: Row | StoredMessage) -> "Facts":
        """Those of a message in the store, or on its way there."""
        return cls(stored.size, stored.eight_bit, stored.smtputf8, stored.require_tls)


class Verdict(msgspec.Struct, frozen=True):
    """What to store, and what the log and the counters should know."""

    change: Gone | Later
    expired: bool = False
    no_return_path: bool = False


def destination_of(envelope: Envelope) -> str:
    """The scheduler's key: envelopes with the same key share their fate and their turn."""
    if envelope.kind is Kind.MDA:
        return f"mda:{envelope.mda_user or envelope.dest}"
    return f"mta:{envelope.dest_domain}"


def lifetime(envelope: Envelope, config: Config) -> int:
    """Seconds that an envelope is kept: its own ttl, its action's as configured now, or the queue's."""
    if envelope.ttl:
        return envelope.ttl
    action = config.actions.get(envelope.dispatcher)
    return (action.ttl if action else 0) or config.queue.ttl


def expiry(envelope: Envelope, config: Config) -> int:
    """When an envelope expires."""
    return envelope.ctime + lifetime(envelope, config)


def next_try(envelope: Envelope, now: int) -> int:
    """The first of ctime + B·n² after `now`, with n from the number of failed attempts on."""
    # A ctime in the future means that a clock was set: count from now, or the mail would wait for it.
    start = min(envelope.ctime, now)
    base, n = BACKOFF[envelope.kind], envelope.retry
    if n and start + base * n * n > now:
        return start + base * n * n
    n = max(n, int(((now - start) / base) ** 0.5))
    while start + base * n * n <= now:
        n += 1
    return start + base * n * n


def settle(envelope: Envelope, facts: Facts, outcome: Outcome, config: Config, now: int) -> Verdict:
    """The consequence of one attempt."""
    if outcome.result is Result.OK:
        return _delivered(envelope, facts, outcome, config, now)
    if outcome.result is Result.TEMPFAIL:
        return _failed_for_now(envelope, facts, outcome, config, now)
    line = outcome.errorline or (LOOP if outcome.result is Result.LOOP else "")
    return _failed(_with_error(envelope, line, 5, outcome.esc_code), facts, config, now, outcome.attempt)


def expire(envelope: Envelope, facts: Facts, config: Config, now: int, attempt: int = 0) -> Verdict:
    """The failure of an envelope whose time is over."""
    verdict = _failed(_with_error(envelope, EXPIRED, 5, TIME_EXPIRED), facts, config, now, attempt)
    return msgspec.structs.replace(verdict, expired=True)


def _with_error(envelope: Envelope, line: str, esc_class: int, esc_code: int) -> Envelope:
    return msgspec.structs.replace(envelope, errorline=line, esc_class=esc_class, esc_code=esc_code)


def _bounce(
    kind: BounceKind, envelope: Envelope, facts: Facts, config: Config, now: int, *, delay: int = 0
) -> PendingBounce:
    return PendingBounce(
        evpid=envelope.evpid,
        envelope=envelope,
        kind=kind,
        errorline=envelope.errorline,
        esc_class=envelope.esc_class,
        esc_code=envelope.esc_code,
        created=now,
        delay=delay,
        ttl=lifetime(envelope, config),
        size=facts.size,
        eight_bit=facts.eight_bit,
        smtputf8=facts.smtputf8,
        require_tls=facts.require_tls,
    )


def _delivered(envelope: Envelope, facts: Facts, outcome: Outcome, config: Config, now: int) -> Verdict:
    gone = Gone(evpid=envelope.evpid, attempt=outcome.attempt)
    if not envelope.dsn_notify & Notify.SUCCESS or envelope.dsn_notify & Notify.NEVER:
        return Verdict(gone)
    if envelope.kind is Kind.MTA and not outcome.relayed_without_dsn:
        return Verdict(gone)  # RFC 3461 §5.2.2: the next hop took over the duty to tell
    if not envelope.sender:
        return Verdict(gone, no_return_path=True)
    kind = BounceKind.RELAYED if envelope.kind is Kind.MTA else BounceKind.DELIVERED
    told = _with_error(envelope, "", 2, 0)
    return Verdict(msgspec.structs.replace(gone, bounce=_bounce(kind, told, facts, config, now)))


def _failed(envelope: Envelope, facts: Facts, config: Config, now: int, attempt: int) -> Verdict:
    # COMPAT: a failure is told whatever NOTIFY says, NEVER excepted.
    gone = Gone(evpid=envelope.evpid, attempt=attempt)
    if envelope.dsn_notify & Notify.NEVER:
        return Verdict(gone)
    if not envelope.sender:
        return Verdict(gone, no_return_path=True)
    bounce = _bounce(BounceKind.FAILED, envelope, facts, config, now)
    return Verdict(msgspec.structs.replace(gone, bounce=bounce))


def _failed_for_now(envelope: Envelope, facts: Facts, outcome: Outcome, config: Config, now: int) -> Verdict:
    end = expiry(envelope, config)
    if now >= end:
        return expire(envelope, facts, config, now, outcome.attempt)
    envelope = _with_error(envelope, outcome.errorline, 4, outcome.esc_code)
    # COMPAT: last_try stays 0, as the reference prints it; the store has a column for the true one.
    envelope = msgspec.structs.replace(envelope, retry=envelope.retry + 1)
    again = next_try(envelope, now)
    warned, delay = _warn_interval(envelope, config, again)
    envelope = msgspec.structs.replace(envelope, last_bounce=warned)
    told = delay and envelope.sender
    return Verdict(
        Later(
            evpid=envelope.evpid,
            attempt=outcome.attempt,
            data=encode_envelope(envelope),
            destination=destination_of(envelope),
            next_try=min(again, end),
            tried=now,
            bounce=_bounce(BounceKind.DELAYED, envelope, facts, config, now, delay=delay) if told else None,
        ),
        no_return_path=bool(delay and not envelope.sender),
    )


def _warn_interval(envelope: Envelope, config: Config, again: int) -> tuple[int, int]:
    """(new last_bounce, interval) if the sender is to be warned before the next try, else (last_bounce, 0)."""
    if envelope.dsn_notify and (not envelope.dsn_notify & Notify.DELAY or envelope.dsn_notify & Notify.NEVER):
        return envelope.last_bounce, 0
    for interval in config.bounce_warn:
        passes = envelope.ctime + interval
        if again >= passes > envelope.last_bounce:
            return passes, interval
    return envelope.last_bounce, 0
