"""Sessions that began before the log did, and logs in which none begins."""

from pillarbox.eventlog.whole import WholeSessions
from pillarbox.roles.filters import Report


def event(session: int, name: str = "protocol-client", subsystem: str = "smtp-in") -> Report:
    return Report(subsystem, name, session, 1.0, "")


def test_the_rest_of_a_session_is_left_out() -> None:
    rest = [event(1), event(2), event(1, "link-disconnect")]
    log = [event(3, "link-connect"), event(3), event(4, "delivery", "mda"), event(3, "link-disconnect")]
    whole = WholeSessions([*rest[:2], *log[:2], rest[2], *log[2:]])
    assert list(whole) == log
    assert whole.left_out == 2


def test_an_id_that_comes_again_is_another_session() -> None:
    log = [event(1), event(1, "link-connect"), event(1)]
    assert list(WholeSessions(log)) == log[1:]


def test_a_log_without_beginnings_is_passed_on() -> None:
    few, many = [event(1), event(2)], [event(number) for number in range(20_000)]
    assert list(WholeSessions(few)) == few
    whole = WholeSessions(iter(many))
    assert list(whole) == many
    assert whole.left_out == 0
