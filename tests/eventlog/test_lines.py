"""The lines of event logs."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.eventlog.lines import (
    FIELDS,
    BadLine,
    fields,
    parse_note,
    parse_report,
    printable,
    render_note,
    render_report,
)
from pillarbox.roles.filters import EVENTS, MDA_EVENTS, Report
from tests.eventlog.recorded import whole_log

TEXT = st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=50)


def test_what_the_reference_wrote_is_read_and_written_the_same() -> None:
    lines = whole_log()
    assert len(lines) > 400
    assert [render_report(parse_report(line)) for line in lines] == lines


def test_every_event_has_fields() -> None:
    assert set(FIELDS) == {*EVENTS, *MDA_EVENTS}


@given(st.sampled_from(EVENTS), st.integers(0, 2**64 - 1), st.integers(0, 4 * 10**15), TEXT)
def test_an_event_survives_being_written(event: str, session: int, micro: int, text: str) -> None:
    report = Report("smtp-in", event, session, micro / 1e6, text if FIELDS[event] else "")
    again = parse_report(render_report(report))
    assert (again.event, again.session, again.text) == (report.event, report.session, report.text)
    assert abs(again.time - report.time) < 1e-5


@pytest.mark.parametrize(
    ("line", "event", "wanted"),
    [
        ("link-connect|1|mx.example.org|pass|[2001:db8::1]:25|192.0.2.1:25", "link-connect", {
            "rdns": "mx.example.org", "fcrdns": "pass", "src": "[2001:db8::1]:25", "dest": "192.0.2.1:25"}),
        ("protocol-client|1|MAIL FROM:<a|b@c>", "protocol-client", {"command": "MAIL FROM:<a|b@c>"}),
        ("tx-rcpt|1|0000000a|ok|a|b@c", "tx-rcpt", {"message": "0000000a", "result": "ok", "address": "a|b@c"}),
        ("filter-response|1|ehlo|proceed", "filter-response", {"phase": "ehlo", "response": "proceed"}),
        ("filter-response|1|ehlo|reject|550 a|b", "filter-response",
         {"phase": "ehlo", "response": "reject", "param": "550 a|b"}),
        ("link-disconnect|1", "link-disconnect", {}),
        ("tx-reset|1", "tx-reset", {"message": ""}),
        ("brand-new|1|a|b", "brand-new", {"text": "a|b"}),
    ],
)  # fmt: skip
def test_fields_have_names_and_only_the_last_holds_a_bar(line: str, event: str, wanted: dict[str, str]) -> None:
    report = parse_report(f"report|0.7|1.5|smtp-in|{line}")
    assert (report.event, fields(report)) == (event, wanted)


@pytest.mark.parametrize(
    ("version", "line", "text"),
    [
        ("0.7", "link-auth|1|pass|al|ice", "pass|al|ice"),
        ("0.6", "link-auth|1|al|ice|pass", "pass|al|ice"),
        ("0.6", "tx-mail|1|0000000a|ok|s@x", "0000000a|ok|s@x"),
        ("0.5", "tx-mail|1|0000000a|s|x@x|ok", "0000000a|ok|s|x@x"),
        ("0.4", "tx-rcpt|1|0000000a|r@x|permfail", "0000000a|permfail|r@x"),
        ("0.4", "tx-rcpt|1|broken", "broken"),
    ],
)
def test_older_versions_are_read_in_the_order_of_today(version: str, line: str, text: str) -> None:
    assert parse_report(f"report|{version}|1.5|smtp-in|{line}").text.rstrip("|") == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "report|0.7|1.5|smtp-in|timeout",
        "report|0.7|nan|smtp-in|timeout|1",
        "report|0.7|-1|smtp-in|timeout|1",
        "report|0.7|1.5|smtp-in|timeout|xyz",
        "report|0.7|1.5|smtp-in|timeout|0_1",
        "report|0.7|1.5|smtp-in|timeout|12345678901234567",
        "report|0.7|1.5|SMTP IN|timeout|1",
        "filter|0.7|1.5|smtp-in|connect|1|2||",
        "config|ready",
    ],
)
def test_what_is_no_event_is_said_to_be_none(line: str) -> None:
    with pytest.raises(BadLine, match="not an event"):
        parse_report(line)


@given(st.text())
def test_no_line_does_worse_than_being_bad(line: str) -> None:
    with contextlib.suppress(BadLine):
        fields(parse_report(line))


def test_a_note_says_how_much_is_missing() -> None:
    assert parse_note(render_note(1.5, 12, "No space left on device\n")) == (1.5, 12, "No space left on device\\x0a")
    with pytest.raises(BadLine):
        parse_note("note|1|1.5|dropped|many|why")


def test_what_a_client_says_does_not_reach_the_terminal_as_it_is() -> None:
    raw = b"NOOP \x1b]0;pwned\x07 \xff \xc3\xa9 \x9b".decode(errors="surrogateescape")
    assert printable(raw) == "NOOP \\x1b]0;pwned\\x07 \\xff é \\x9b"
