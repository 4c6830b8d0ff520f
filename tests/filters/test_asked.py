"""What a processor owes: whom its answers go to, which it may give, and what is kept of them."""

import pytest

from pillarbox.conf.model import Proc
from pillarbox.errors import TempFail
from pillarbox.filters import asked
from pillarbox.filters.asked import Asked
from pillarbox.filters.protocol import Violation
from pillarbox.mta.link import VERDICT_TIMEOUT
from pillarbox.roles.filters import WHOLE_MESSAGE, Decision, Lines, Output, Question, Result

NOBODY = None  # gets it


def question(session: int = 1, token: int = 7, phase: str = "helo") -> Question:
    return Question(phase, session, token, 0.0, "")


def result(session: int = 1, token: int = 7, decision: Decision = Decision.PROCEED) -> Result:
    return Result(session, token, decision)


def lines(data: bytes = b"x\r\n", *, session: int = 1, token: int = 7, last: bool = True) -> Lines:
    return Lines(session, token, 0.0, data, last)


def output(data: bytes = b"x\r\n", *, session: int = 1, token: int = 7, last: bool = True) -> Output:
    return Output(session, token, data, last)


def owes(max_growth: int = 0) -> Asked:
    return Asked(max_growth=max_growth)


def test_a_client_hears_what_became_of_a_message_that_took_filters_all_their_time() -> None:
    assert WHOLE_MESSAGE + Proc(name="f", command="f").timeout <= VERDICT_TIMEOUT  # the second of them at commit


def test_an_answer_goes_to_who_asked_and_once() -> None:
    owed = owes()
    owed.question(question(), "d.0", 1.0)
    assert (len(owed), owed.oldest()) == (1, 1.0)
    assert owed.result(result()) == "d.0"
    assert (len(owed), owed.oldest()) == (0, None)
    assert owed.result(result()) is NOBODY


def test_a_token_may_serve_again() -> None:
    owed = owes()
    for now in (1.0, 2.0):
        owed.question(question(), "d.0", now)
        assert owed.oldest() == now
        assert owed.result(result()) == "d.0"
    for _ in range(2):
        owed.lines(lines(last=False, token=8), "d.0", 3.0)
        assert owed.oldest() is None
        owed.lines(lines(token=8), "d.0", 4.0)
        assert owed.oldest() == 4.0
        assert owed.output(output(token=8, last=False), 5.0) == "d.0"
        assert owed.output(output(token=8), 5.0) == "d.0"
        assert owed.output(output(token=8), 5.0) is NOBODY


def test_a_message_may_come_back_before_it_has_ended() -> None:
    owed = owes()
    owed.lines(lines(last=False), "d.0", 1.0)
    assert owed.output(output(), 5.0) == "d.0"
    owed.lines(lines(), "d.0", 2.0)
    assert owed.oldest() is None
    assert owed.output(output(last=False), 5.0) is NOBODY


def test_a_message_that_keeps_coming_back_is_due_anew_with_each_part_but_not_for_ever() -> None:
    owed = owes()
    owed.lines(lines(token=8), "d.0", 0.0)
    owed.question(question(token=9), "d.0", 1.0)
    for now in range(50, 540, 50):
        assert owed.output(output(token=8, last=False), float(now)) == "d.0"
        gone = [(1, "helo")] if now == 100 else []  # others are none the better for it
        assert list(owed.give_up(now - 60.0)) == gone
    assert owed.oldest() == 500.0
    assert owed.output(output(token=8, last=False), WHOLE_MESSAGE) == "d.0"
    assert list(owed.give_up(WHOLE_MESSAGE + 1 - 60.0)) == []
    assert list(owed.give_up(WHOLE_MESSAGE + 21 - 60.0)) == [(1, "data-line")]
    assert owed.output(output(token=8), 700.0) is NOBODY


def test_a_message_may_grow_so_much_and_no_more() -> None:
    owed = owes(max_growth=1000)
    owed.lines(lines(b"x" * 500), "d.0", 1.0)
    most = 500 + 1000 + asked._SLACK
    assert owed.output(output(b"x" * most, last=False), 5.0) == "d.0"
    with pytest.raises(Violation, match="longer than any may be"):
        owed.output(output(b"x"), 5.0)


def test_of_a_session_that_is_known_only_what_was_asked_may_be_answered() -> None:
    owed = owes()
    owed.question(question(), "d.0", 1.0)
    for answer in (result(token=8), result(token=0)):
        with pytest.raises(Violation, match="did not ask"):
            owed.result(answer)
    with pytest.raises(Violation, match="answered helo with lines"):
        owed.output(output(), 5.0)
    owed.lines(lines(token=9), "d.0", 1.0)
    with pytest.raises(Violation, match="lines of a message with a decision"):
        owed.result(result(token=9))
    assert owed.result(result(session=2)) is NOBODY
    assert owed.output(output(session=2), 5.0) is NOBODY


def test_junk_is_decided_before_the_message_is_complete() -> None:
    owed = owes()
    for phase, token in (("data", 1), ("commit", 2)):
        owed.question(question(token=token, phase=phase), "d.0", 1.0)
    assert owed.result(result(token=1, decision=Decision.JUNK)) == "d.0"
    with pytest.raises(Violation, match="junk at commit"):
        owed.result(result(token=2, decision=Decision.JUNK))


def test_sessions_are_forgotten_when_they_end_or_their_teller_does() -> None:
    owed = owes()
    for session, teller in ((1, "d.0"), (2, "d.1"), (3, "d.1")):
        owed.question(question(session), teller, float(session))
    owed.ends(1)
    assert owed.teller_of(1) is NOBODY
    assert owed.result(result(1)) is NOBODY
    owed.teller_is_gone("d.1")
    assert (len(owed), owed.teller_of(2)) == (0, NOBODY)
    owed.ends(99)


def test_a_session_is_that_of_who_told_of_it_first() -> None:
    owed = owes()
    owed.question(question(), "d.0", 1.0)
    for told in (
        lambda: owed.hears_of(1, "d.1"),
        lambda: owed.question(question(token=8), "d.1", 1.0),
        lambda: owed.lines(lines(token=8), "d.1", 1.0),
    ):
        with pytest.raises(TempFail, match=r"0000000000000001 is not one of d\.1"):
            told()
    owed.teller_is_gone("d.1")
    assert owed.result(result()) == "d.0"
    owed.ends(1)
    owed.hears_of(1, "d.1")
    assert owed.teller_of(1) == "d.1"


def test_the_sessions_of_one_take_no_place_of_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_SESSIONS", 10)
    owed = owes()
    owed.question(question(), "d.0", 1.0)
    for session in range(2, 100):
        owed.hears_of(session, "d.1")
    assert owed.result(result()) == "d.0"
    assert owed.teller_of(89) is NOBODY


def test_reports_about_a_session_are_bounded_by_what_else_is_told_of_it() -> None:
    owed = owes()
    assert not owed.may_report(1)
    owed.hears_of(1, "d.0")
    for told, more in (
        (lambda: None, asked.MAX_REPORTS),
        (lambda: owed.hears_of(1, "d.0", echo=True), 0),
        (lambda: owed.hears_of(1, "d.0"), asked.REPORTS_EACH),
        (lambda: owed.question(question(), "d.0", 1.0), asked.REPORTS_EACH),
        (lambda: owed.lines(lines(b"x\r\n" * 50, token=8), "d.0", 1.0), asked.REPORTS_EACH + 50),
        (lambda: [owed.hears_of(1, "d.0") for _ in range(1000)], asked.MAX_REPORTS),
    ):
        told()
        assert [owed.may_report(1) for _ in range(more + 1)] == [True] * more + [False]
    owed.hears_of(2, "d.0")
    assert owed.may_report(2)


def test_what_is_given_up_is_nobody_s_any_more() -> None:
    owed = owes()
    owed.question(question(token=1), "d.0", 1.0)
    owed.lines(lines(token=2), "d.0", 2.0)
    owed.question(question(token=3), "d.0", 3.0)
    assert list(owed.give_up(2.0)) == [(1, "helo"), (1, "data-line")]
    assert (len(owed), owed.oldest()) == (1, 3.0)
    assert owed.result(result(token=1)) is NOBODY
    assert owed.output(output(token=2), 5.0) is NOBODY
    assert owed.result(result(token=3)) == "d.0"


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_SESSIONS", 10)
    monkeypatch.setattr(asked, "MAX_TOKENS", 10)
    owed = owes()
    for session in range(100):
        owed.hears_of(session, "d.0")
    assert [session for session in range(100) if owed.teller_of(session)] == list(range(90, 100))
    for token in range(100):
        owed.question(question(99, token), "d.0", 1.0)
        assert owed.result(result(99, token)) == "d.0"
    assert len(owed._sessions[99].asked) <= 10
    assert owed.result(result(99, 5)) is NOBODY  # it may have been asked: no violation
