"""Messages on their way through a filter: line by line, by their header section, as a whole."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest

from pillarbox.sdk.filter import Decision, Filter, Headers, Message, Session, junk, proceed, reject
from pillarbox.sdk.filter.testing import Client, Harness

TEXT = "Subject: hello\nX-Old: 1\n\nOne.\n.\n..two\n\n\udcff caf\u00e9\n"
CRLF = TEXT.replace("\n", "\r\n").encode(errors="surrogateescape")


def sent(filter: Filter[object], message: bytes | str = TEXT, *, strict: bool = True) -> Client:
    """A session that sent a message."""
    client = Harness(filter, strict=strict).session().ehlo().mail("a@example.org").rcpt("b@example.org")
    return client.message(message)


def lines_of(client: Client) -> list[str]:
    assert client.delivered is not None, client.reply
    return client.delivered.decode(errors="surrogateescape").split("\r\n")[:-1]


def test_a_line_stays_what_it_is_unless_the_function_returns_another() -> None:
    filter = Filter()
    seen = []
    filter.on.data_line(lambda session, line: seen.append(line))
    assert sent(filter).delivered == CRLF
    assert seen == TEXT.split("\n")[:-1]


def test_a_function_returns_a_line_or_several_or_none_or_yields_them() -> None:
    filter = Filter()

    @filter.on.data_line
    def returns(session: Session[object], line: str) -> str | list[str]:
        return {"One.": ["One", "and a half"], "X-Old: 1": []}.get(line, line)

    @filter.on.data_line
    def yields(session: Session[object], line: str) -> Iterator[str]:
        if line == "One":
            yield "Zero"
        yield line

    filter.on.data_end(lambda session: [".", "end"])
    filter.on.data_end(lambda session: f"of {session.sender}")
    assert lines_of(sent(filter, "X-Old: 1\n\nOne.\n.x\n")) == [
        "", "Zero", "One", "and a half", ".x", ".", "end", "of a@example.org",
    ]  # fmt: skip


def test_a_line_with_line_ends_becomes_several_and_never_a_word_of_the_protocol() -> None:
    filter = Filter()
    filter.on.data_line(lambda session, line: "a\r\n.\nfilter-result|1|2|proceed\n\0" if line == "x" else line)
    assert lines_of(sent(filter, "x\n")) == ["a", ".", "filter-result|1|2|proceed", ""]


def test_asynchronous_functions_can_do_the_same() -> None:
    filter = Filter()

    @filter.on.data_line
    async def returns(session: Session[object], line: str) -> str:
        await asyncio.sleep(0)
        return line.upper()

    @filter.on.data_line
    async def yields(session: Session[object], line: str) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        yield line
        yield "."

    @filter.on.data_end
    async def end(session: Session[object]) -> str:
        return "end"

    assert lines_of(sent(filter, "a\nb\n")) == ["A", ".", "B", ".", "end"]


@pytest.mark.parametrize("wrong", [3, [3], b"bytes"])
def test_what_is_no_line_is_a_failure_and_the_message_is_refused_for_now(wrong: object) -> None:
    filter = Filter()
    filter.on.data_line(lambda session, line: wrong if line == "One." else line.upper())
    client = sent(filter, strict=False)
    assert client.delivered is None and client.reply.startswith("451 4.3.0 ")


def test_where_failures_are_to_be_ignored_the_rest_passes_unchanged() -> None:
    filter = Filter(on_error=proceed())
    filter.on.data_line(lambda session, line: line.upper() if line != "b" else 1 / 0)
    filter.on.headers(lambda session, headers: 1 / 0)
    filter.on.message(lambda session, message: 1 / 0)
    filter.on.data_end(lambda session: "end")
    assert lines_of(sent(filter, "a\nb\nc\n", strict=False)) == ["A", "b", "c"]


def test_a_handler_of_any_kind_can_decide_about_the_message() -> None:
    no = reject("554 5.7.1 No")
    for add in (
        lambda on: on.data_line(lambda session, line: no if line == "One." else None),
        lambda on: on.data_end(lambda session: no),
        lambda on: on.headers(lambda session, headers: no if "X-Old" in headers else None),
        lambda on: on.message(lambda session, message: no),
    ):
        filter = Filter()
        add(filter.on)
        client = sent(filter)
        assert client.decisions == [("commit", no)] and client.delivered is None


def test_who_lets_failures_pass_keeps_what_was_decided() -> None:
    no = reject("554 5.7.1 No")

    def fail(session: Session[object], what: object) -> None:
        raise ValueError

    filter = Filter(on_error=proceed())
    filter.on.headers(lambda session, headers: no if "X-Old" in headers else None)
    filter.on.message(fail)
    assert sent(filter, strict=False).decision == no
    filter.on.commit(lambda session: reject("554 At commit"))
    assert sent(filter, "a\n", strict=False).reply == "554 At commit"
    filter = Filter()
    filter.on.headers(lambda session, headers: no if "X-Old" in headers else proceed())
    filter.on.message(fail)
    assert sent(filter, strict=False).decision == no
    assert sent(filter, "a\n", strict=False).reply.startswith("451 ")


@pytest.mark.parametrize(
    "add",
    [lambda on: on.headers(lambda session, headers: junk()), lambda on: on.message(lambda session, message: junk()),
     lambda on: on.message(limit=50, above=junk())(lambda session, message: None)],
)  # fmt: skip
def test_who_has_the_top_of_a_message_marks_it_as_junk(add: Callable[[Any], object]) -> None:
    filter = Filter()
    add(filter.on)
    assert sent(filter, TEXT * 3).delivered == b"X-Spam: Yes\r\n" + CRLF * 3


def test_junk_is_too_late_for_lines() -> None:
    filter = Filter()
    filter.on.data_line(lambda session, line: junk())
    with pytest.raises(ValueError, match="too late"):
        sent(filter)


def test_what_was_given_can_be_given_back() -> None:
    filter = Filter()

    @filter.on.headers
    def headers(session: Session[object], headers: Headers) -> Any:
        headers.add("X-New", "2")
        return headers

    @filter.on.message
    def message(session: Session[object], message: Message) -> Any:
        message.headers.add("X-New", "3")
        return message

    assert lines_of(sent(filter, "a: b\n\nc\n")) == ["a: b", "X-New: 2", "X-New: 3", "", "c"]
    filter.on.message(lambda session, message: "text")
    with pytest.raises(TypeError, match="neither"):
        sent(filter)


def test_a_line_may_have_its_end() -> None:
    filter = Filter()
    seen = []
    filter.on.data_line(lambda session, line: f"{line}\r\n")
    filter.on.data_line(lambda session, line: [f"{line}\n", "b: c\nd: e"] if line == "a" else line)
    filter.on.headers(lambda session, headers: seen.extend(headers))
    assert lines_of(sent(filter, "a\n\nbody\n")) == ["a", "b: c", "d: e", "", "body"]
    assert seen == [("", "a"), ("b", "c"), ("d", "e")]


def test_a_decision_does_not_outlive_its_transaction() -> None:
    filter = Filter()
    filter.on.message(lambda session, message: reject("554 No") if b"bad" in message.raw else None)
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a").rcpt("b")
        harness.exchange(*(f"filter|0.7|1.1|smtp-in|data-line|{client.id}|2|{line}" for line in ("bad", ".")))
        client.rset()  # another server might use another token for each message
        assert client.mail("a").rcpt("b").message("good\n").accepted


def test_a_decision_does_not_outlive_its_message() -> None:
    filter = Filter(remember=False)
    filter.on.message(lambda session, message: reject("554 No") if b"bad" in message.raw else None)
    with Harness(filter) as harness:
        lines = [f"filter|0.7|1.1|smtp-in|data-line|1|2|{line}" for line in ("bad", ".")]
        assert harness.exchange(*lines) == ["filter-dataline|1|2|bad", "filter-dataline|1|2|."]
        # It never came to commit: the server found it too large, perhaps.
        harness.exchange(*(line.replace("bad", "good") for line in lines))
        assert harness.exchange("filter|0.7|1.1|smtp-in|commit|1|3|") == ["filter-result|1|3|proceed"]


def test_the_header_section_can_be_changed_and_the_body_passes_unseen() -> None:
    filter = Filter()

    @filter.on.headers
    def headers(session: Session[object], headers: Headers) -> None:
        assert headers.get("subject") == "hello" and list(headers)[1:] == [("X-Old", "1")]
        headers.remove("X-OLD")
        headers.add("X-New", "2")
        headers.add("X-First", session.helo, first=True)

    assert lines_of(sent(filter)) == [
        "X-First: client.example.net", "Subject: hello", "X-New: 2", "", "One.", ".", "..two", "", "\udcff caf\u00e9",
    ]  # fmt: skip
    assert lines_of(sent(filter, "Subject: hello\nX-Old: 1\n"))[-1] == "X-New: 2"  # a message without a body


@pytest.mark.parametrize(("fields", "memory"), [(100, 1000), (14_000, 1 << 28)])
def test_a_header_section_that_no_handler_can_see_is_answered_for(
    fields: int, memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    large = "".join(f"X-{n}: {'x' * 70}\n" for n in range(fields)) + "\nbody\n"
    for on_error in (reject("451 Later"), proceed()):
        filter = Filter(memory=memory, on_error=on_error)
        filter.on.headers(lambda session, headers: headers.add("X-New", "2"))
        client = sent(filter, large)
        assert client.delivered == (large.replace("\n", "\r\n").encode() if client.accepted else None)
        assert client.decision == on_error and "was not looked at" in caplog.text
        assert b"X-New" in (sent(filter, "Subject: x\n\nbody\n").delivered or b"")


def test_short_lines_count_as_the_memory_that_they_take() -> None:
    filter = Filter(memory=1_000_000)
    filter.on.message(lambda session, message: reject("554 Seen"))
    assert sent(filter, "x\n\n" + "ab\n" * 5_000).reply == "554 Seen"
    assert sent(filter, "x\n\n" + "ab\n" * 50_000).reply.startswith("451 ")  # 200 KB to send, 3 MB to keep


def test_the_limit_is_of_bytes_whatever_they_say() -> None:
    filter = Filter()
    filter.on.message(limit=100)(lambda session, message: reject("554 Seen"))
    for text, size in (("x", 98), ("\u00e9", 49), ("\udce9", 98), ("\U0001f600", 24)):
        assert sent(filter, text * size + "\n").reply == "554 Seen"
        assert sent(filter, text * (size + 1) + "\n").accepted


def test_a_whole_message_can_be_looked_at_and_replaced() -> None:
    filter = Filter()
    seen: list[bytes] = []

    @filter.on.message
    def look(session: Session[object], message: Message) -> None:
        seen.extend((message.raw, message.body))
        assert message.parsed()["Subject"] == "hello"
        message.headers.replace("Subject", "changed")
        message.body = b"new\r\n"

    @filter.on.message
    async def replace(session: Session[object], message: Message) -> bytes:
        return message.raw + b".more\n"

    @filter.on.message
    def parse(session: Session[object], message: Message) -> EmailMessage:
        parsed = message.parsed()
        parsed["X-Parsed"] = "yes"
        return parsed

    assert lines_of(sent(filter)) == ["Subject: changed", "X-Old: 1", "X-Parsed: yes", "", "new", ".more"]
    assert seen == [CRLF, CRLF.partition(b"\r\n\r\n")[2]]


@pytest.mark.parametrize("above", [None, reject("552 5.3.4 Too large to be scanned")])
def test_above_the_limit_a_message_passes_unchanged_or_as_was_said(above: Decision | None) -> None:
    filter = Filter()
    filter.on.message(limit=100, above=above)(lambda session, message: b"changed\n")
    assert sent(filter, "x" * 98 + "\n").delivered == b"changed\r\n"
    large = "x" * 60 + "\n" + "y" * 60 + "\n"
    client = sent(filter, large)
    assert client.delivered == (None if above else large.replace("\n", "\r\n").encode())
    assert client.decision == (above or proceed())


def test_all_messages_together_hold_no_more_than_they_may() -> None:
    filter = Filter(memory=1000, remember=False)
    seen = []
    filter.on.message(lambda session, message: seen.append(len(message.raw)))
    with Harness(filter) as harness:

        def feed(session: int, line: str) -> list[str]:
            return harness.exchange(f"filter|0.7|1.1|smtp-in|data-line|{session}|2|{line}")

        assert feed(1, "x" * 600) == []
        assert feed(2, "x" * 600) == [f"filter-dataline|2|2|{'x' * 600}"]  # no room: it passes, and is refused
        feed(2, ".")
        assert "|reject|451 4.3.0 " in harness.exchange("filter|0.7|1.1|smtp-in|commit|2|3|")[0]
        harness.exchange("report|0.7|1.1|smtp-in|link-disconnect|1")
        assert feed(3, "x" * 600) == []  # what a session held is free again when it is gone
        assert len(feed(3, ".")) == 2
        assert feed(4, "x" * 600) == []
    assert seen == [602]


def test_lines_come_before_headers_and_headers_before_the_whole() -> None:
    filter = Filter()
    filter.on.message(lambda session, message: message.headers.add("X-Message", message.headers.get("X-Headers")))
    filter.on.headers(lambda session, headers: headers.add("X-Headers", headers.get("X-Line")))
    filter.on.data_line(lambda session, line: ["X-Line: yes", line] if line == "" else line)
    assert lines_of(sent(filter, "\nbody\n"))[:4] == ["X-Line: yes", "X-Headers: yes", "X-Message: yes", ""]


def test_a_filter_that_stands_in_a_chain_twice_gets_each_message_twice() -> None:
    filter = Filter(remember=False)
    filter.on.data_line(lambda session, line: f"{line}+")
    filter.on.data_end(lambda session: reject("554 No"))
    with Harness(filter) as harness:
        ask = "filter|0.7|1.1|smtp-in|{}|5|{}|{}".format
        assert harness.exchange(ask("data-line", "a", "x"), ask("data-line", "b", "y"), ask("data-line", "a", ".")) == [
            "filter-dataline|5|a|x+", "filter-dataline|5|b|y+", "filter-dataline|5|a|.",
        ]  # fmt: skip
        assert harness.exchange(ask("data-line", "b", "."), ask("commit", "c", "")) == [
            "filter-dataline|5|b|.",
            "filter-result|5|c|reject|554 No",
        ]


def test_of_several_decisions_about_a_message_a_refusal_counts() -> None:
    filter = Filter(remember=False)
    filter.on.message(lambda session, message: reject("554 No") if b"no" in message.raw else proceed())
    with Harness(filter) as harness:
        ask = "filter|0.7|1.1|smtp-in|{}|5|{}|{}".format
        for token, line in (("a", "yes"), ("b", "no")):
            harness.exchange(ask("data-line", token, line), ask("data-line", token, "."))
        assert harness.exchange(ask("commit", "c", "")) == ["filter-result|5|c|reject|554 No"]
