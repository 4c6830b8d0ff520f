"""The lines of smtpd-filters(7): as recorded of the reference, in every version, and whatever a processor writes."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.filters import protocol
from pillarbox.filters.protocol import FilterProtocol, Heard, Violation, every_event
from pillarbox.roles.filters import EVENTS, Answer, Decision, Lines, Output, Phase, Question, Report, Result, Said

S, T = 0x7641DF9771B4ED00, 0x1EF1C203CC576E5D
IDS = f"{S:016x}|{T:016x}"
NOW = 1576146008.006099


def speaker(version: str = "0.7", *, ready: bool = True, unasked: frozenset[str] = frozenset()) -> FilterProtocol:
    return FilterProtocol(
        subsystems=["smtp-in"], admd="mail.example.org", version=version, ready=ready, unasked=unasked
    )


def heard(text: str | bytes, speaking: FilterProtocol | None = None) -> list[Answer | Heard]:
    speaking = speaking or speaker()
    return list(speaking.receive(text.encode() if isinstance(text, str) else text))


def violates(text: str | bytes, speaking: FilterProtocol | None = None) -> str:
    with pytest.raises(Violation) as caught:
        heard(text, speaking)
    return str(caught.value)


# -- bounds


def test_of_a_refusal_no_more_counts_than_the_reference_would_say() -> None:
    for decision in ("reject", "disconnect"):
        (result,) = heard(f"filter-result|{IDS}|{decision}|550 {'x' * 100_000}\n")
        assert isinstance(result, Result) and result.param == "550 " + "x" * 4091
    assert heard(b"filter-result|%s|reject|550 %s\n" % (IDS.encode(), "é".encode() * 2046))


def test_other_decisions_of_any_length_are_none() -> None:
    for decision in ("rewrite", "report"):
        (result,) = heard(f"filter-result|{IDS}|{decision}|{'x' * 16_384}\n")
        assert isinstance(result, Result) and len(result.param) == 16_384
        assert "more than 16384 bytes" in violates(f"filter-result|{IDS}|{decision}|{'x' * 16_385}\n")


# -- what it is told


def test_the_handshake_is_the_reference_s() -> None:
    speaking = FilterProtocol(subsystems=["smtp-in", "smtp-out"], admd="my admd")
    assert speaking.handshake().decode() == (
        "config|smtpd-version|7.8.0\n"
        "config|protocol|0.7\n"
        "config|smtp-session-timeout|300\n"
        "config|subsystem|smtp-in\n"
        "config|subsystem|smtp-out\n"
        "config|admd|my admd\n"
        "config|ready\n"
    )


def test_an_event_is_a_line() -> None:
    fields = "mail.openbsd.org|pass|199.185.178.25:33174|45.77.67.80:25"
    line = f"report|0.7|1576146008.006099|smtp-in|link-connect|{S:016x}|{fields}\n"
    assert speaker().write(Report("smtp-in", "link-connect", S, NOW, fields)).decode() == line


@pytest.mark.parametrize("event", ["link-disconnect", "timeout"])
def test_an_event_without_fields_ends_with_the_session(event: str) -> None:
    assert speaker().write(Report("smtp-in", event, S, NOW, "")).endswith(f"|{event}|{S:016x}\n".encode())


def test_a_field_that_is_empty_is_there() -> None:
    assert speaker().write(Report("smtp-in", "link-greeting", S, NOW, "")).endswith(f"{S:016x}|\n".encode())


def test_a_question_is_a_line_with_a_parameter_even_if_empty() -> None:
    assert speaker().write(Question("data", S, T, NOW, "")).decode() == (
        f"filter|0.7|1576146008.006099|smtp-in|data|{IDS}|\n"
    )


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nplain\r\n", ["Subject: dots", "", "..", "...", "..x", "plain"]),
        (b"a\rb\r\r\n", ["ab"]),
        (b"\r.\r\n", [".."]),
        (b"", []),
        (b"\r\n", [""]),
    ],
)
def test_message_lines_have_their_dots_doubled_and_no_cr(data: bytes, lines: list[str]) -> None:
    head = f"filter|0.7|1576146008.006099|smtp-in|data-line|{IDS}|"
    assert speaker().write(Lines(S, T, NOW, data)).decode() == "".join(f"{head}{line}\n" for line in lines)
    whole = speaker().write(Lines(S, T, NOW, data, last=True)).decode()
    assert whole == "".join(f"{head}{line}\n" for line in [*lines, "."])


def test_bytes_of_a_message_are_passed_on_as_they_are() -> None:
    assert speaker().write(Lines(S, T, NOW, b"\xe9|\0\xff\r\n")).endswith(b"|\xe9|\0\xff\n")


@given(st.text(), st.text())
def test_whatever_a_client_says_stays_in_its_line(param: str, text: str) -> None:
    for told in (Question("mail-from", S, T, NOW, param), Report("smtp-in", "protocol-client", S, NOW, text)):
        line = speaker().write(told)
        assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\0" not in line and b"\r" not in line


# -- versions


@pytest.mark.parametrize(
    ("version", "mail", "auth", "result"),
    [
        ("0.4", "0a0b0c0d|a@b|ok", "me|pass", f"{T:016x}|{S:016x}"),
        ("0.5", "0a0b0c0d|a@b|ok", "me|pass", IDS),
        ("0.6", "0a0b0c0d|ok|a@b", "me|pass", IDS),
        ("0.7", "0a0b0c0d|ok|a@b", "pass|me", IDS),
    ],
)
def test_older_versions_have_their_order_of_fields(version: str, mail: str, auth: str, result: str) -> None:
    speaking = speaker(version)
    for event in ("tx-mail", "tx-rcpt"):
        line = speaking.write(Report("smtp-in", event, S, NOW, "0a0b0c0d|ok|a@b")).decode()
        assert line == f"report|{version}|1576146008.006099|smtp-in|{event}|{S:016x}|{mail}\n"
    assert speaking.write(Report("smtp-in", "link-auth", S, NOW, "pass|me")).decode().endswith(f"|{auth}\n")
    assert speaking.write(Question("helo", S, T, NOW, "x")).decode().endswith(f"|helo|{IDS}|x\n")
    assert heard(f"filter-result|{result}|proceed\n", speaking) == [Result(S, T, Decision.PROCEED)]
    assert heard(f"filter-dataline|{result}|x\n", speaking) == [Output(S, T, b"x\r\n")]


def test_a_processor_may_say_which_version_it_speaks() -> None:
    speaking = speaker(ready=False)
    heard("register|protocol|0.4\nregister|ready\n", speaking)
    assert speaking.write(Question("helo", S, T, NOW, "x")).startswith(b"filter|0.4|")
    assert "registers what there is not" in violates("register|protocol|0.5\n", speaking)
    assert "registers what there is not" in violates("register|protocol|1.0\n", speaker(ready=False))


# -- registering


def test_what_is_registered_is_known_when_it_is_ready() -> None:
    speaking = speaker(ready=False)
    assert heard("register|report|smtp-in|tx-mail\nregister|filter|smtp-in|helo\n", speaking) == []
    assert not speaking.ready
    assert heard("register|ready\r\n", speaking) == [Heard.REGISTERED]
    assert (speaking.events, speaking.phases, speaking.ready) == ({"smtp-in tx-mail"}, {"helo"}, True)


def test_a_star_is_everything() -> None:
    speaking = speaker(ready=False)
    heard("register|report|smtp-out|*\nregister|filter|smtp-in|*\nregister|report|mda|*\nregister|ready\n", speaking)
    assert speaking.events == {f"smtp-out {event}" for event in EVENTS} | {"mda delivery"}
    assert speaking.phases == set(Phase)


def test_more_may_be_registered_later() -> None:
    speaking = speaker(ready=False)
    heard("register|ready\n", speaking)
    assert heard("register|report|smtp-in|tx-mail\n", speaking) == [Heard.REGISTERED]
    assert heard("register|report|smtp-in|tx-mail\n", speaking) == []


def test_who_registers_without_end_is_not_listened_to() -> None:
    speaking = speaker(ready=False)
    assert heard("register|ready\n" * 500, speaking) == [Heard.REGISTERED]
    assert heard("register|filter|smtp-in|helo\n" * 500, speaking) == [Heard.REGISTERED]
    assert "more than 1000 times" in violates("register|ready\n", speaking)


def test_who_registers_no_event_gets_those_of_its_report_statements() -> None:
    all_of_them = every_event("smtp-in")
    speaking = speaker(ready=False, unasked=all_of_them)
    heard("register|filter|smtp-in|helo\nregister|ready\n", speaking)
    assert speaking.events == all_of_them
    heard("register|report|smtp-out|timeout\n", speaking)
    assert speaking.events == {"smtp-out timeout"}


@pytest.mark.parametrize(
    "line",
    [
        "register|filter|smtp-out|connect",
        "register|filter|smtp-in|no-such-phase",
        "register|report|smtp-in|no-such-event",
        "register|report|nowhere|tx-mail",
        "register|report|smtp-in",
        "register|",
        "register|ready|now",
        "hello there",
        "filter-result|1|2|proceed",
        f"filter-dataline|{IDS}|x",
        "",
    ],
)
def test_what_fits_nowhere_is_no_registration(line: str) -> None:
    violates(f"{line}\n", speaker(ready=False))


# -- answers


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("proceed", Result(S, T, Decision.PROCEED)),
        ("junk", Result(S, T, Decision.JUNK)),
        ("reject|550 no|thank you", Result(S, T, Decision.REJECT, "550 no|thank you")),
        ("disconnect|421 bye", Result(S, T, Decision.DISCONNECT, "421 bye")),
        ("rewrite|", Result(S, T, Decision.REWRITE, "")),
        ("report|was here", Result(S, T, Decision.REPORT, "was here")),
    ],
)
def test_each_decision(line: str, answer: Result) -> None:
    assert heard(f"filter-result|{IDS}|{line}\n") == [answer]
    assert heard(f"filter-result|{IDS.upper()}|{line}\r\n") == [answer]


@pytest.mark.parametrize(
    "line",
    [
        f"filter-result|{IDS}|explode|x",
        f"filter-result|{IDS}|reject",
        f"filter-result|{IDS}|proceed|x",
        f"filter-result|{IDS}|",
        f"filter-result|{IDS}",
        f"filter-result|x|{T:x}|proceed",
        f"filter-result|{S:x}00|{T:x}|proceed",
        f"filter-result||{T:x}|proceed",
        f"filter-dataline|{S:x}",
        f"filter-dataline|{S:x}|x|line",
        "report|1576146008|smtp-in|1|x",
        "report|1576146008.006099|smtp-out|1|x",
        "hello there",
        "",
    ],
)
def test_what_is_no_answer_is_a_violation(line: str) -> None:
    violates(f"{line}\n")


def test_a_processor_may_report_itself() -> None:
    assert heard(f"report|1576146008.006099|smtp-in|{S:016x}|spam: 7|8\n") == [Said(S, NOW, "spam: 7|8")]


def test_lines_of_one_message_are_one_answer() -> None:
    text = "".join(f"filter-dataline|{IDS}|{line}\n" for line in ["Subject: x", "", "..", "..x", "\rhe\rre", "end"])
    assert heard(text) == [Output(S, T, b"Subject: x\r\n\r\n.\r\n.x\r\nhere\r\nend\r\n")]


def test_a_dot_ends_the_message_and_what_follows_is_nothing() -> None:
    text = "".join(f"filter-dataline|{IDS}|{line}\n" for line in ["one", ".", "two", "."])
    assert heard(text) == [Output(S, T, b"one\r\n", last=True)]
    assert heard(f"filter-dataline|{IDS}|.\r\n") == [Output(S, T, b"", last=True)]


def test_messages_may_be_interleaved_with_each_other_and_with_answers() -> None:
    one, two = f"filter-dataline|{1:016x}|{2:016x}|", f"filter-dataline|{3:016x}|{4:016x}|"
    text = f"{one}a\n{two}b\n{two}.c\nfilter-result|{IDS}|proceed\n{one}.\n{two}\n"
    assert heard(text) == [
        Output(1, 2, b"a\r\n"),
        Output(3, 4, b"b\r\nc\r\n"),
        Result(S, T, Decision.PROCEED),
        Output(1, 2, b"", last=True),
        Output(3, 4, b"\r\n"),
    ]


def test_what_came_before_a_violation_counts() -> None:
    answers: list[Answer | Heard] = []
    with pytest.raises(Violation, match='wrote a line that is none: "junk"'):
        answers += iter_into(answers, speaker().receive(f"filter-result|{IDS}|junk\njunk\n".encode()))
    assert answers == [Result(S, T, Decision.JUNK)]


def iter_into(found: list[Answer | Heard], answers: Iterator[Answer | Heard]) -> list[Answer | Heard]:
    for answer in answers:
        found.append(answer)
    return []


ANSWERS = st.lists(
    st.sampled_from(
        [
            f"filter-result|{IDS}|proceed\n",
            f"filter-dataline|{IDS}|line\n",
            f"filter-dataline|{IDS}|..\n",
            f"filter-dataline|{IDS}|.\n",
            f"filter-dataline|{1:016x}|{2:016x}|\n",
            f"report|1.000000|smtp-in|{S:x}|x\n",
        ]
    )
).map("".join)


def merged(answers: list[Answer | Heard]) -> list[object]:
    """Without where a message was cut into pieces."""
    found: list[object] = []
    for answer in answers:
        last = found[-1] if found else None
        if (
            isinstance(answer, Output)
            and isinstance(last, Output)
            and (last.session, last.last) == (answer.session, False)
        ):
            found[-1] = Output(answer.session, answer.token, last.data + answer.data, answer.last)
        else:
            found.append(answer)
    return found


@given(ANSWERS.filter(lambda text: ".\n" not in text.replace("..\n", "")), st.integers(1, 40))
def test_however_lines_are_cut_they_are_the_same(text: str, size: int) -> None:
    speaking = speaker()
    data = text.encode()
    pieces = [answer for at in range(0, len(data), size) for answer in speaking.receive(data[at : at + size])]
    assert merged(pieces) == merged(heard(data))


@given(st.lists(st.binary(max_size=60)), st.booleans())
def test_garbage_is_a_violation_and_nothing_else(chunks: list[bytes], ready: bool) -> None:
    speaking = speaker(ready=ready)
    try:
        for chunk in chunks:
            heard(chunk, speaking)
    except Violation:
        pass


@given(st.binary(max_size=200))
def test_garbage_behind_words_of_the_protocol_too(rest: bytes) -> None:
    for word in (b"register|", b"filter-result|1|2|", b"filter-dataline|1|2|", b"report|1.000000|smtp-in|", b"report|"):
        with contextlib.suppress(Violation):
            heard(word + rest + b"\n")


@given(st.binary(max_size=300).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"\r\n") + b"\r\n"))
def test_what_goes_out_comes_back(data: bytes) -> None:
    written = speaker().write(Lines(S, T, NOW, data, last=True))
    head = written[: written.index(b"|data-line|") + len(b"|data-line|")]
    echoed = written.replace(head, b"filter-dataline|")
    assert heard(echoed) == [Output(S, T, data, last=True)]


def test_an_endless_line_is_a_violation_and_costs_linear_time() -> None:
    speaking = speaker()
    began = time.process_time()
    with pytest.raises(Violation, match="without an end of line"):
        for _ in range(protocol.MAX_LINE // 8):
            heard(b"x" * 16, speaking)
    assert time.process_time() - began < 10


def test_interleaved_lines_cost_linear_time() -> None:
    def seconds(count: int) -> float:
        text = "".join(f"filter-dataline|{i % 2:016x}|{T:016x}|x\n" for i in range(count)).encode()
        began = time.process_time()
        assert len(heard(text)) == count
        return time.process_time() - began

    seconds(1000)
    assert seconds(40_000) < 40 * max(0.005, seconds(4000))
