"""Answers that keep to the protocol, and whether they can be carried out."""

import pytest

from pillarbox.eventlog.story import Ask
from pillarbox.eventlog.verdict import SHOWN, Decided, Filtered, ends_session, fault_of
from pillarbox.roles.filters import Decision, Phase, Result


@pytest.mark.parametrize(
    ("phase", "answer", "fault"),
    [
        (Phase.EHLO, "reject|550 no", ""),
        (Phase.EHLO, "reject|550", ""),
        (Phase.EHLO, "disconnect|421 go", ""),
        (Phase.EHLO, "reject|no", "wants a reply"),
        (Phase.EHLO, "reject|250 fine", "wants a reply"),
        (Phase.EHLO, "disconnect|5500 no", "wants a reply"),
        (Phase.EHLO, "rewrite|other.example", ""),
        (Phase.EHLO, "rewrite|", "to nothing"),
        (Phase.MAIL_FROM, "rewrite|<a@b> SIZE=1", ""),
        (Phase.RCPT_TO, "rewrite|<>", ""),
        (Phase.RCPT_TO, "rewrite|a@b", "wants <address>"),
        (Phase.MAIL_FROM, "rewrite|<a@b", "wants <address>"),
        (Phase.RCPT_TO, "report|anything", ""),
        (Phase.RCPT_TO, "junk", ""),
        (Phase.RCPT_TO, "proceed", ""),
    ],
)
def test_an_answer_must_be_one_that_the_server_can_give(phase: Phase, answer: str, fault: str) -> None:
    decision, _, param = answer.partition("|")
    found = fault_of(phase, Result(1, 2, Decision(decision), param))
    assert fault in found
    assert bool(found) is bool(fault)


@pytest.mark.parametrize(
    ("phase", "answer", "reply"),
    [
        (Phase.RCPT_TO, "disconnect|550 go", "550 go"),
        (Phase.CONNECT, "reject|550 no", "550 no"),
        (Phase.RCPT_TO, "reject|421 busy", "421 busy"),
        (Phase.RCPT_TO, "reject|550 no", None),
        (Phase.CONNECT, "junk", None),
        (Phase.CONNECT, "", None),
    ],
)
def test_some_answers_end_the_session(phase: Phase, answer: str, reply: str | None) -> None:
    assert ends_session(phase, answer) == reply


def test_a_decision_differs_only_from_one_that_is_known() -> None:
    assert not Decided(Ask(Phase.QUIT, "", 1.0), "proceed", 0.1).differs
    assert not Decided(Ask(Phase.QUIT, "", 1.0, then="proceed"), "proceed", 0.1).differs
    assert Decided(Ask(Phase.QUIT, "", 1.0, then="reject|550 a"), "reject|550 b", 0.1).differs


@pytest.mark.parametrize(
    ("pieces", "changed"),
    [
        ([b"one\r\n", b"two\r\n"], False),
        ([b"one\r\n"], True),
        ([b"one\r\n", b"two\r\n", b"x\r\n"], True),
        ([b"two\r\n"], True),
    ],
)
def test_a_message_is_the_same_or_not(pieces: list[bytes], changed: bool) -> None:
    message = Filtered(b"one\r\ntwo\r\n")
    for piece in pieces:
        message.add(piece)
    assert (message.changed, message.output) == (changed, b"".join(pieces))


def test_only_the_beginning_of_a_message_is_kept() -> None:
    message = Filtered(b"")
    for _ in range(3):
        message.add(b"x" * SHOWN)
    assert (len(message.output), message.size) == (SHOWN, 3 * SHOWN)


def test_what_a_message_was_is_not_kept_once_it_is_compared() -> None:
    one, other = Filtered(b"one\r\n" * 1000), Filtered(b"one\r\n")
    one.add(b"one\r\n" * 1000)
    other.add(b"two\r\n")
    for message, changed in ((one, False), (other, True)):
        message.finish()
        assert (message.told, message.complete, message.changed) == (b"", True, changed)
