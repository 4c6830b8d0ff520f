"""Limits for the whole server: exact, fair to whoever left, and bounded whoever comes."""

from hypothesis import given
from hypothesis import strategies as st

from pillarbox.conf.model import Rate, SmtpOptions
from pillarbox.routing.admit import Admission


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_sessions_are_limited_in_all_and_by_source():
    admission = Admission(now=Clock())
    limits = SmtpOptions(max_session=3, max_session_per_source=2)
    assert [admission.admit(limits, "d.0", n, "192.0.2.1") for n in (1, 2, 3)] == ["", "", "max-session-per-source"]
    assert admission.admit(limits, "d.1", 1, "192.0.2.2") == ""
    assert admission.admit(limits, "d.1", 2, "192.0.2.3") == "max-session"
    admission.leave("d.0", 1)
    assert admission.admit(limits, "d.1", 3, "192.0.2.1") == ""


def test_a_source_is_an_ipv4_address_or_an_ipv6_network():
    admission = Admission(now=Clock())
    limits = SmtpOptions(max_session_per_source=1)
    for ticket, (address, refusal) in enumerate(
        {
            "2001:db8:0:1::1": "",
            "2001:db8:0:1:ffff::2": "max-session-per-source",
            "2001:db8:0:2::1": "",
            "192.0.2.1": "",
            "::ffff:192.0.2.1": "max-session-per-source",
            "192.0.2.2": "",
        }.items()
    ):
        assert admission.admit(limits, "d.0", ticket, address) == refusal


def test_what_a_dead_dispatcher_held_is_released_and_no_more():
    admission = Admission(now=Clock())
    limits = SmtpOptions(max_session=3)
    for ticket, holder in ((1, "d.0"), (2, "d.0"), (1, "d.1")):
        assert admission.admit(limits, holder, ticket, "192.0.2.1") == ""
    admission.release("d.0")
    admission.leave("d.0", 1)  # said before it died, and read only now
    assert [admission.admit(limits, "d.0", n, "192.0.2.1") for n in (1, 2, 3)] == ["", "", "max-session"]


def test_a_lookup_that_was_started_again_is_told_who_is_there():
    admission = Admission(now=Clock())
    limits = SmtpOptions(max_session=2)
    admission.hold("d.0", {7: "192.0.2.1", 8: "192.0.2.2"})
    admission.hold("d.0", {8: "192.0.2.2"})
    assert admission.admit(limits, "d.0", 9, "192.0.2.3") == "max-session"
    admission.leave("d.0", 7)
    assert admission.admit(limits, "d.0", 9, "192.0.2.3") == ""


def test_a_rate_allows_so_many_at_once_and_then_so_many_in_its_time():
    clock = Clock()
    admission = Admission(now=clock)
    rates = (Rate(what="mails-per-source", count=3, seconds=60),)
    said = [admission.spend(rates, "mails", "192.0.2.1", "") for _ in range(4)]
    assert said == ["", "", "", "mails-per-source"]
    assert admission.spend(rates, "mails", "192.0.2.2", "") == ""
    clock.now += 20
    assert [admission.spend(rates, "mails", "192.0.2.1", "") for _ in range(2)] == ["", "mails-per-source"]
    clock.now += 3600
    assert [admission.spend(rates, "mails", "192.0.2.1", "") for _ in range(4)] == said


def test_users_are_counted_wherever_they_come_from_and_nobody_is_no_user():
    admission = Admission(now=Clock())
    rates = (Rate(what="mails-per-user", count=1, seconds=60),)
    assert admission.spend(rates, "mails", "192.0.2.1", "alice") == ""
    assert admission.spend(rates, "mails", "192.0.2.2", "Alice") == "mails-per-user"
    assert [admission.spend(rates, "mails", "192.0.2.2", "") for _ in range(3)] == ["", "", ""]


def test_what_one_rate_refuses_is_counted_by_none():
    admission = Admission(now=Clock())
    both = tuple(Rate(what=f"rcpt-per-{who}", count=n, seconds=60) for who, n in (("source", 2), ("user", 1)))
    assert admission.spend(both, "rcpt", "192.0.2.1", "alice") == ""
    for _ in range(5):
        assert admission.spend(both, "rcpt", "192.0.2.1", "alice") == "rcpt-per-user"
    assert admission.spend(both, "rcpt", "192.0.2.1", "bob") == ""
    assert admission.spend(both, "rcpt", "192.0.2.1", "carol") == "rcpt-per-source"


def test_a_flood_of_sources_is_forgotten_and_not_kept():
    admission = Admission(now=Clock(), buckets_max=100)
    limits = SmtpOptions(max_session_per_source=1, rates=(Rate(what="session-per-source", count=1, seconds=60),))
    for n in range(5000):
        assert admission.admit(limits, "d.0", n, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") == ""
        admission.leave("d.0", n)
    assert len(admission._buckets) == 100
    assert not admission._by_source
    assert not admission._held["d.0"]
    assert admission.admit(limits, "d.0", 0, "10.0.19.135") == "session-per-source"  # the last one is known


steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "leave", "release", "hold"]),
        st.sampled_from("ab"),
        st.integers(0, 5),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]),
    ),
    max_size=60,
)


@given(steps)
def test_counts_are_those_of_the_sessions_that_are_open(script):
    admission, limits = Admission(now=Clock()), SmtpOptions(max_session=6, max_session_per_source=3)
    open_sessions: dict[tuple[str, int], str] = {}
    for what, holder, ticket, address in script:
        name = "v6" if ":" in address else address
        if what == "admit" and (holder, ticket) not in open_sessions:
            room = len(open_sessions) < 6 and list(open_sessions.values()).count(name) < 3
            assert (admission.admit(limits, holder, ticket, address) == "") is room
            if room:
                open_sessions[holder, ticket] = name
        elif what == "leave":
            admission.leave(holder, ticket)
            open_sessions.pop((holder, ticket), None)
        elif what == "release":
            admission.release(holder)
            open_sessions = {key: value for key, value in open_sessions.items() if key[0] != holder}
        elif what == "hold":
            admission.hold(holder, {ticket: address})
            open_sessions.setdefault((holder, ticket), name)
