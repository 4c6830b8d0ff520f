"""What was asked in a session, made of its events again."""

import pytest

from pillarbox.eventlog.lines import parse_report, render_report
from pillarbox.eventlog.story import HELD, Ask, Message, Step, Story
from pillarbox.roles.filters import Report
from tests.eventlog.recorded import case_log


def steps(lines: list[str]) -> list[Step]:
    story = Story()
    return [*(step for line in lines for step in story.feed(parse_report(line))), *story.end()]


def asked(lines: list[str]) -> list[tuple[str, str, str | None]]:
    return [(str(step.phase), step.param, step.then) for step in steps(lines) if isinstance(step, Ask)]


def without_answers(lines: list[str]) -> list[str]:
    """As a server logs a session that no filter watched."""
    return [line for line in lines if "|filter-response|" not in line]


WHOLE = [
    ("connect", "localhost|127.0.0.1"),
    ("ehlo", "client.example.net"),
    ("starttls", ""),
    ("ehlo", "client.example.net"),
    ("auth", "PLAIN ********"),
    ("mail-from", "s@client.example.net"),
    ("rcpt-to", "alice@example.org"),
    ("data", ""),
    ("commit", ""),
    ("quit", ""),
]


def test_every_command_was_asked_about_with_what_was_answered() -> None:
    assert asked(case_log("report-tls-and-auth")) == [(phase, param, "proceed") for phase, param in WHOLE]


def test_without_answers_in_the_log_the_same_was_asked() -> None:
    assert asked(without_answers(case_log("report-tls-and-auth"))) == [(phase, param, None) for phase, param in WHOLE]


@pytest.mark.parametrize(
    "name", ["report-tls-and-auth", "report-parameters-in-mail-and-rcpt", "smtp-out-report-events"]
)
@pytest.mark.parametrize("change", [list, without_answers])
def test_all_events_are_passed_on_in_their_order(name: str, change: type[list]) -> None:
    lines = change(case_log(name))
    assert [render_report(step) for step in steps(lines) if isinstance(step, Report)] == lines


def test_an_outgoing_session_is_asked_about_by_nobody() -> None:
    assert asked(case_log("smtp-out-report-events")) == []


def test_addresses_come_without_brackets_and_parameters() -> None:
    found = asked(case_log("report-parameters-in-mail-and-rcpt"))
    assert [param for phase, param, _ in found if phase in ("mail-from", "rcpt-to")] == [
        "s@client.example.net",
        "alice@example.org",
        "@route:bob+x@Example.ORG",
    ]


def event(name: str, text: str = "", time: float = 1.0) -> str:
    return f"report|0.7|{time}|smtp-in|{name}|0000000000000001" + (f"|{text}" if text else "")


def dialogue(*lines: str) -> list[str]:
    """`C: …` and `S: …`, and events."""
    kinds = {"C": "protocol-client", "S": "protocol-server"}
    return [event(kinds[line[0]], line[3:]) if line[1:3] == ": " else event(*line.split("|", 1)) for line in lines]


def test_a_question_comes_behind_its_command_and_before_what_came_of_it() -> None:
    found = steps(dialogue("C: MAIL FROM:<a@b>", "tx-begin|1", "S: 250 ok", "tx-mail|1|ok|a@b"))
    kinds = [step.event if isinstance(step, Report) else type(step).__name__ for step in found]
    assert kinds == ["protocol-client", "Ask", "tx-begin", "protocol-server", "tx-mail"]


def test_the_message_comes_before_its_end() -> None:
    found = steps(dialogue("link-identify|EHLO|me", "tx-begin|0badcafe", "C: .", "S: 250 ok", "tx-commit|0badcafe|9"))
    kinds = [step.event if isinstance(step, Report) else type(step).__name__ for step in found]
    assert kinds == ["link-identify", "tx-begin", "Message", "protocol-client", "Ask", "protocol-server", "tx-commit"]
    message = next(step for step in found if isinstance(step, Message))
    assert (message.known.helo, message.known.message) == ("me", "0badcafe")


@pytest.mark.parametrize("filtered", [True, False])
def test_a_message_in_chunks_is_one_message(filtered: bool) -> None:
    answers = ["filter-response|data|proceed", "filter-response|commit|proceed"] if filtered else ["", ""]
    lines = ["C: BDAT 9", answers[0], "S: 250 ok", "C: BDAT 9", "S: 250 ok", "C: BDAT 9 LAST", answers[1], "S: 250 ok"]
    found = steps(dialogue(*filter(None, ["tx-begin|0badcafe", *lines, "tx-reset|0badcafe", *lines[5:]])))
    kinds = [str(step.phase) if isinstance(step, Ask) else type(step).__name__ for step in found]
    asked = [kind for kind in kinds if kind != "Report"]
    again = ["data", "Message", "commit"] if not filtered else ["Message", "commit"]
    assert asked == ["data", "Message", "commit", *again]


@pytest.mark.parametrize(
    ("command", "reply", "wanted"),
    [
        ("EHLO bad!", "501 5.5.4 Invalid command arguments", []),
        ("MAIL FROM:bad", "553 5.1.0 Sender address syntax error", []),
        ("RCPT TO:<x@y>", "503 5.5.1 Invalid command", []),
        ("RCPT TO:<x@y>", "550 5.1.1 no such user", [("rcpt-to", "x@y", None)]),
        ("RCPT TO: <x@y> NOTIFY=NEVER", "250 ok", [("rcpt-to", "x@y", None)]),
        ("MAIL FROM:<>", "250 ok", [("mail-from", "", None)]),
        ("mail from:a@b SIZE=1", "250 ok", [("mail-from", "a@b", None)]),
        ("NOOP x", "250 ok", [("noop", "", None)]),
        ("HELO me", "250 ok", [("helo", "me", None)]),
        ("VRFY x", "252 ok", []),
        ("HELP", "214 help", []),
        ("c2VjcmV0", "235 ok", []),
    ],
)
def test_commands_that_are_none_were_not_asked_about(
    command: str, reply: str, wanted: list[tuple[str, str, str | None]]
) -> None:
    assert asked(dialogue(f"C: {command}", f"S: {reply}")) == wanted


def test_where_filters_answered_silence_means_that_they_were_not_asked() -> None:
    lines = dialogue("C: EHLO x", "filter-response|ehlo|proceed", "S: 250 ok", "C: RSET", "S: 250 ok")
    assert asked(lines) == [("ehlo", "x", "proceed")]


def test_an_answer_without_its_command_was_to_a_question_nevertheless() -> None:
    lines = dialogue("filter-response|connected|reject|550 go", "filter-response|tls|proceed", "filter-response|odd|x")
    assert asked(lines) == [("connect", "", "reject|550 go"), ("starttls", "", "proceed")]
    assert len(steps(lines)) == 5


@pytest.mark.parametrize(
    ("source", "param"),
    [
        ("192.0.2.1:4321", "host|192.0.2.1"),
        ("[2001:db8::1]:4321", "host|[2001:db8::1]"),
        ("unix:/var/run/smtpd.sock", "host|local"),
    ],
)
def test_a_connection_is_asked_about_by_address(source: str, param: str) -> None:
    lines = dialogue(f"link-connect|host|pass|{source}|192.0.2.9:25", "S: 220 hello")
    assert asked(lines) == [("connect", param, None)]


def test_a_connection_that_was_turned_away_or_went_was_not_asked_about() -> None:
    lines = dialogue("link-connect|host|pass|192.0.2.1:4321|192.0.2.9:25", "link-disconnect")
    assert asked(lines) == []
    assert len(steps(lines)) == 2


def test_a_reply_that_never_comes_does_not_hold_events_for_ever() -> None:
    story = Story()
    story.feed(parse_report(event("protocol-client", "NOOP")))
    given = [step for _ in range(HELD + 1) for step in story.feed(parse_report(event("timeout")))]
    assert len(given) > HELD
