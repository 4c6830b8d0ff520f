"""The conversation as a whole: however its lines are cut, mixed or spoilt."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.sdk.filter import Event, Filter, Session, disconnect, junk, proceed, reject, report, rewrite
from pillarbox.sdk.filter.conversation import Conversation
from pillarbox.sdk.filter.testing import Harness

HANDSHAKE = b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|ready\n"
TEXTS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20)


def started(filter: Filter[object]) -> Conversation[object]:
    """A conversation behind its handshake."""
    conversation = filter.conversation(spawn=lambda task: None, wake=lambda: None)
    conversation.feed(HANDSHAKE)
    assert conversation.take().endswith(b"register|ready\n")
    return conversation


def asked(phase: str, session: int, param: str, time: str = "1576146008.006099") -> str:
    return f"filter|0.7|{time}|smtp-in|{phase}|{session:x}|7|{param}\n"


def echo() -> Filter[object]:
    filter = Filter(remember=False)
    filter.on.data_line(lambda session, line: line)
    filter.on.mail_from(lambda session, address: None)
    return filter


@given(st.lists(st.tuples(st.integers(1, 3), TEXTS), max_size=20), st.integers(1, 40))
def test_lines_of_several_messages_come_back_each_to_its_own(lines: list[tuple[int, str]], size: int) -> None:
    stuffed = [(session, f".{line}" if line.startswith(".") else line) for session, line in lines]
    stuffed += [(session, ".") for session in (1, 2, 3)]
    data = "".join(
        asked("data-line", session, line, f"15761460{n:02}.006099") for n, (session, line) in enumerate(stuffed)
    )
    conversation = started(echo())
    written = b""
    raw = data.encode()
    for start in range(0, len(raw), size):
        conversation.feed(raw[start : start + size])
        written += conversation.take()
    # A NUL ends a line in the reference: it is left out.
    wanted = [f"filter-dataline|{session:x}|7|{line}" for session, line in stuffed]
    assert written.decode().split("\n")[:-1] == [line.replace("\0", "") for line in wanted] or "\0" in data


@settings(max_examples=200)
@given(st.lists(st.one_of(
    TEXTS,
    st.tuples(st.sampled_from(["filter|", "report|", "filter|0.7|1|smtp-in|", "report|0.7|1|smtp-in|tx-mail|"]), TEXTS)
    .map("".join),
    st.lists(st.sampled_from(["filter", "report", "0.7", "0.4", "1.5", "smtp-in", "smtp-out", "data-line", "tx-commit",
                              "link-auth", "mail-from", "connect", "", ".", "x"]), max_size=9).map("|".join),
), max_size=8))  # fmt: skip
def test_whatever_comes_after_the_handshake_the_next_question_is_answered(lines: list[str]) -> None:
    filter = echo()
    filter.on.every(lambda session, event: None)
    conversation = started(filter)
    conversation.feed("".join(f"{line}\n" for line in lines).encode())
    conversation.take()
    conversation.feed(asked("mail-from", 0xABC, "a@example.org").encode())
    assert conversation.take() == b"filter-result|abc|7|proceed\n"


GIVEN: list[Any] = [
    None, reject("550 No"), disconnect("421 Bye"), junk(), proceed(), report("x"), rewrite("x"), "text", b"bytes", 7,
    ["a", "b"], ["a", 7], ValueError("wrong"), asyncio.CancelledError(), TimeoutError(), StopIteration(), KeyError,
]  # fmt: skip


def giving(value: object, awaited: int) -> Callable[..., object]:
    """A handler that returns this, or raises it, at once or after so many turns of the loop."""

    def give(*_: object) -> object:
        if isinstance(value, BaseException):
            raise value
        return value

    async def give_later(*_: object) -> object:
        for _turn in range(awaited - 1):
            await asyncio.sleep(0)
        return give()

    return give_later if awaited else give


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["connect", "mail_from", "commit", "data_line", "data_end", "headers", "message", "tx_mail"]),
        st.lists(st.tuples(st.sampled_from(GIVEN), st.integers(0, 3)), min_size=1, max_size=2),
        min_size=1,
    ),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["connect", "mail-from", "message", "tx-mail"]))),
    st.integers(0, 2),
)
def test_whatever_handlers_do_each_question_has_one_answer_and_each_message_one_end(
    handlers: dict[str, list[tuple[object, int]]], steps: list[tuple[str, str]], threads: int
) -> None:
    filter: Filter[Any] = Filter(threads=threads)
    for name, values in handlers.items():
        for value in values:
            getattr(filter.on, name)(giving(*value))
    lines, wanted = [], []
    for session, step in steps:
        if step == "tx-mail":
            lines.append(f"report|0.7|1.5|smtp-in|tx-mail|{session}|1|ok|x")
        elif step == "message":
            lines += [f"filter|0.7|1.5|smtp-in|data-line|{session}|7|{text}" for text in ("A: b", "", "..c", ".")]
            lines.append(f"filter|0.7|1.5|smtp-in|commit|{session}|8|")
            wanted += [f"filter-dataline|{session}|7|.", f"filter-result|{session}|8|"]
        else:
            lines.append(f"filter|0.7|1.5|smtp-in|{step}|{session}|9|x|y")
            wanted.append(f"filter-result|{session}|9|")
    with Harness(filter, strict=False) as harness:
        said = harness.exchange(*lines)
        answers = [line for line in said if not line.startswith(("filter-dataline|", "report|"))]
        ends = [line for line in said if line.startswith("filter-dataline|") and line.endswith("|.")]
        assert all(
            line.split("|")[3] in ("proceed", "reject", "disconnect", "junk", "report", "rewrite") for line in answers
        )
        for session in "abc":  # in order, for each session
            mine = [line for line in said if line in ends or line in answers]
            assert [line[: len(start)] for line, start in zip(
                [line for line in mine if line.split("|")[1] == session],
                [start for start in wanted if start.split("|")[1] == session], strict=True,
            )] == [start for start in wanted if start.split("|")[1] == session]  # fmt: skip


def test_what_comes_for_a_session_is_done_in_order_and_nothing_is_lost_of_it() -> None:
    filter = Filter()
    done: list[str] = []

    @filter.on.link_connect
    async def connected(session: Session[object], event: Event) -> None:
        done.append(f"connecting {session.id}")
        await asyncio.sleep(0)
        done.append(f"connected {session.id}")

    filter.on.mail_from(lambda session, address: done.append(f"mail {session.id}"))

    @filter.on.link_disconnect
    async def left(session: Session[object], event: Event) -> None:
        done.append(f"left {session.id}")

    def lines(session: int) -> list[str]:
        start = "report|0.7|1.5|smtp-in"
        return [
            f"{start}|link-connect|{session}|h|pass|1:2|3:4", asked("mail-from", session, "a").rstrip("\n"),
            f"{start}|link-disconnect|{session}",
        ]  # fmt: skip

    with Harness(filter) as harness:
        assert len(harness.exchange(*lines(1), *lines(2))) == 2
        assert harness.sessions == []
    assert [what for what in done if what.endswith("1")] == ["connecting 1", "connected 1", "mail 1", "left 1"]
    assert done[:2] == ["connecting 1", "connecting 2"]


def test_functions_that_keep_others_waiting_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    filter = Filter()
    filter.on.mail_from(lambda session, address: threading.Event().wait(1.01) or None)
    with Harness(filter) as harness:
        harness.session().ehlo()
        assert caplog.text == ""
        harness.session().ehlo().mail("a")
    assert "plain functions took 1.0 s, and nothing else ran" in caplog.text


def test_a_state_that_cannot_be_made_is_answered_for() -> None:
    def state() -> object:
        raise OSError("no database")

    filter = Filter(state=state)
    filter.on.mail_from(lambda session, address: session.state.verdict)
    with Harness(filter, strict=False) as harness:
        assert harness.session().ehlo().mail("a").reply.startswith("451 4.3.0 ")
        assert {type(error) for error in harness.failures} == {OSError, AttributeError}


def test_text_that_is_no_text_does_not_end_the_filter() -> None:
    filter = Filter()
    filter.on.data_line(lambda session, line: "a\ud800" if line == "a" else line)
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a").rcpt("b").message("a\n\udcff\n")
        assert client.delivered == b"a?\r\n\xff\r\n"
