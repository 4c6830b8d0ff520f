"""Header fields and messages: what is changed, and that nothing else is."""

import email
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.sdk.filter import Headers, Message
from pillarbox.sdk.filter.message import build_field, split

LINES = ["Received: from a", "\tby b", "Subject: one", "X-Odd : two ", "no field", "subject:", "X-Long: a", "  b"]


def test_fields_are_read_without_case_unfolded_and_in_order() -> None:
    headers = Headers(LINES)
    assert list(headers) == [
        ("Received", "from a\tby b"), ("Subject", "one"), ("X-Odd", "two"), ("", "no field"), ("subject", ""),
        ("X-Long", "a  b"),
    ]  # fmt: skip
    assert headers.get("SUBJECT") == "one" and headers.get_all("subject") == ["one", ""]
    assert headers.get("x-none") == "" and headers.get("x-none", "default") == "default"
    assert "received" in headers and "x-none" not in headers and len(headers) == 6
    assert headers.lines() == LINES


def test_fields_are_added_removed_and_replaced() -> None:
    headers = Headers(LINES)
    headers.add("X-Last", "1")
    headers.add("X-First", "2", first=True)
    assert headers.remove("received") == 1 and headers.remove("received") == 0
    headers.replace("subject", "new")
    headers.replace("X-Replaced", "3")
    assert headers.lines() == [
        "X-First: 2", "subject: new", "X-Odd : two ", "no field", "X-Long: a", "  b", "X-Last: 1", "X-Replaced: 3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "x"), ("A b", "x"), ("A:", "x"), ("A\n", "x"), ("é", "x"), ("A", "x\ny"), ("A", "x\n"), ("A", "x\n \n y"),
     ("A", "x\ry"), ("A", "x\0")],
)  # fmt: skip
def test_what_would_be_another_field_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"field|value"):
        build_field(name, value)


def test_long_values_are_folded_at_blanks_and_only_there() -> None:
    words = " ".join("word" for _ in range(60))
    lines = build_field("X-Words", words)
    assert len(lines) > 1 and all(len(line) <= 78 for line in lines)
    assert Headers(lines).get("X-Words") == words
    assert build_field("X-Word", "w" * 200) == [f"X-Word: {'w' * 200}"]
    assert build_field("X-Folded", "a\r\n b\n\tc") == ["X-Folded: a", " b", "\tc"]


def test_no_line_of_a_folded_value_is_of_blanks_alone() -> None:
    for value in ("a" + " " * 200 + "b", " " * 200 + "b", "a" + " " * 200, " " * 200, "a \t" + " \t" * 100 + "b c"):
        lines = build_field("X", value)
        assert all(line.strip() and line.strip() != "X:" for line in lines) or not value.strip()
        assert "".join(lines) == f"X: {value}"


def test_bytes_that_are_no_text_can_be_in_a_value() -> None:
    (line,) = build_field("X-Client", "caf\udce9")
    assert email.message_from_string(f"{line}\n\n", policy=default)["X-Client"] == "caf\ufffd"


@given(st.text(" \tab", max_size=400))
def test_a_value_of_blanks_and_words_stays_what_it_is(value: str) -> None:
    assert "".join(build_field("X", value)) == f"X: {value}"
    assert len(build_field("X", value)) == 1 or all(line.strip() for line in build_field("X", value))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=200))
def test_any_text_survives_as_a_value(value: str) -> None:
    lines = build_field("Subject", value)
    assert all(line.isascii() for line in lines) and Headers(["A: b", *lines, "C: d"]).get("c") == "d"
    read = email.message_from_string("\n".join([*lines, "", ""]), policy=default)["Subject"]
    assert "".join(read.split()) == "".join(value.split())


@given(st.binary(max_size=300))
def test_a_message_that_is_not_touched_is_the_same_byte_by_byte(data: bytes) -> None:
    lines = split(data)
    message = Message(lines)
    assert message.raw == "".join(f"{line}\r\n" for line in lines).encode(errors="surrogateescape")
    assert message.lines() == lines
    message.raw = message.raw
    assert message.lines() == lines


def test_a_body_is_what_is_behind_the_empty_line() -> None:
    message = Message(["A: b"])
    assert (message.raw, message.body) == (b"A: b\r\n", b"")
    message.body = b"x\ny"
    assert (message.raw, message.body) == (b"A: b\r\n\r\nx\r\ny\r\n", b"x\r\ny\r\n")
