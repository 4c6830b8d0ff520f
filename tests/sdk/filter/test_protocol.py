"""The lines of smtpd-filters(7), in every version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.sdk.filter import (
    Decision,
    LinkAuth,
    LinkConnect,
    Other,
    TxCommit,
    TxMail,
    TxReset,
    disconnect,
    junk,
    proceed,
    reject,
    report,
    rewrite,
)
from pillarbox.sdk.filter.events import Event, parse_event
from pillarbox.sdk.filter.protocol import Question, answer, data_lines, data_prefix, dialect
from pillarbox.sdk.wire import ProtocolError

HEAD = (1.5, "smtp-in", "5a5a")


def parsed(version: str, name: str, text: str | None) -> Event:
    return parse_event(dialect(version), "1.5", "smtp-in", name, "5a5a", text)


@pytest.mark.parametrize(
    ("version", "name", "text", "event"),
    [
        ("0.7", "link-connect", "a.example|pass|192.0.2.1:3|192.0.2.2:25",
         LinkConnect(*HEAD, "a.example", "pass", "192.0.2.1:3", "192.0.2.2:25")),
        ("0.7", "tx-mail", "0badcafe|ok|a|b@example", TxMail(*HEAD, "0badcafe", "ok", "a|b@example")),
        ("0.6", "tx-mail", "0badcafe|ok|a|b@example", TxMail(*HEAD, "0badcafe", "ok", "a|b@example")),
        ("0.5", "tx-mail", "0badcafe|a|b@example|ok", TxMail(*HEAD, "0badcafe", "ok", "a|b@example")),
        ("0.7", "link-auth", "pass|al|ice", LinkAuth(*HEAD, "pass", "al|ice")),
        ("0.6", "link-auth", "al|ice|pass", LinkAuth(*HEAD, "pass", "al|ice")),
        ("0.4", "link-auth", "|fail", LinkAuth(*HEAD, "fail", "")),
        ("0.7", "tx-commit", "0badcafe|511", TxCommit(*HEAD, "0badcafe", 511)),
        ("0.7", "tx-reset", None, TxReset(*HEAD)),
        ("0.8", "tx-reset", "0badcafe", TxReset(*HEAD, "0badcafe")),
        ("0.7", "newer", "a|b", Other(*HEAD, "newer", "a|b")),
    ],
)  # fmt: skip
def test_an_event_is_the_same_in_every_version(version: str, name: str, text: str | None, event: Event) -> None:
    assert parsed(version, name, text) == event


@pytest.mark.parametrize("version", ["", "0.3", "1.0", "0.x", "0.\u00b2", "7"])
def test_a_version_of_another_kind_is_refused(version: str) -> None:
    with pytest.raises(ProtocolError):
        dialect(version)


@pytest.mark.parametrize(
    ("name", "text"),
    [("tx-mail", "1|ok"), ("tx-mail", None), ("link-connect", "a|b|c"), ("tx-commit", "1|many"), ("tx-begin", None)],
)
def test_an_event_with_too_little_in_it_is_refused(name: str, text: str | None) -> None:
    with pytest.raises(ProtocolError):
        parsed("0.7", name, text)


@pytest.mark.parametrize(
    ("phase", "decision", "said"),
    [
        ("mail-from", proceed(), "proceed"),
        ("ehlo", junk(), "junk"),
        ("rcpt-to", reject("550 5.7.1 No | never"), "reject|550 5.7.1 No | never"),
        ("commit", disconnect("421 4.3.2 Bye"), "disconnect|421 4.3.2 Bye"),
        ("mail-from", rewrite("b@example.org"), "rewrite|<b@example.org>"),
        ("rcpt-to", rewrite("<b@example.org> NOTIFY=NEVER"), "rewrite|<b@example.org> NOTIFY=NEVER"),
        ("helo", rewrite("b.example.org"), "rewrite|b.example.org"),
        ("data", report("seen"), "report|seen"),
    ],
)
def test_an_answer_names_session_and_token_in_the_order_of_the_version(
    phase: str, decision: Decision, said: str
) -> None:
    assert answer(Question(dialect("0.7"), phase, "5", "7", ""), decision) == f"filter-result|5|7|{said}"
    assert answer(Question(dialect("0.5"), phase, "5", "7", ""), decision) == f"filter-result|5|7|{said}"
    assert answer(Question(dialect("0.4"), phase, "5", "7", ""), decision) == f"filter-result|7|5|{said}"


@pytest.mark.parametrize(("phase", "decision"), [("commit", junk()), ("commit", rewrite("x")), ("rset", rewrite("x"))])
def test_what_would_end_or_hang_the_reference_is_not_said(phase: str, decision: Decision) -> None:
    with pytest.raises(ValueError, match=phase):
        answer(Question(dialect("0.7"), phase, "5", "7", ""), decision)


@pytest.mark.parametrize(
    "reply", ["", "no", "250 2.0.0 Ok", "550", "550-more", "5500 x", "550 a\nb", "550 a\r", "550 \0"]
)
def test_a_reply_that_is_none_is_refused_where_it_is_made(reply: str) -> None:
    for decide in (reject, disconnect):
        if reply == "550":
            assert decide(reply).text == "550"
        else:
            with pytest.raises(ValueError, match=r"reply|line"):
                decide(reply)


def test_a_reply_is_never_longer_than_smtp_allows() -> None:
    assert len(reject("550 " + "é" * 600).text.encode()) <= 510


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_lines_of_a_message_can_be_nothing_else(lines: list[str]) -> None:
    prefix = data_prefix(dialect("0.7"), "5", "7")
    written = data_lines(prefix, lines).split("\n")
    assert all(line.startswith(prefix) and line != f"{prefix}." for line in written)
    if not any(character in "".join(lines) for character in "\n\0"):
        assert [line.removeprefix(prefix) for line in written] == [f".{x}" if x.startswith(".") else x for x in lines]
    assert data_prefix(dialect("0.4"), "5", "7") == "filter-dataline|7|5|"
