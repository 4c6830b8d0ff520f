"""The header of an incoming message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.server import headers
from pillarbox.server.headers import process


def fields(text: str, **options) -> str:
    block = text.replace("\n", "\r\n").encode()
    return process(block, domain=b"mail.example.org", **options).block.decode().replace("\r\n", "\n")


def test_bcc_is_taken_out_folded_or_not():
    text = "Subject: bcc\nBcc: secret@x.example,\n folded@x.example\nTo: a@b\nBCC: two@x.example\n"
    assert fields(text) == "Subject: bcc\nTo: a@b\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("From: alice\n", "From: alice@mail.example.org\n"),
        (
            'To: bob, carol@x.example, "Dave D" <dave>, erin (comment)\n',
            'To: bob@mail.example.org, carol@x.example, "Dave D" <dave@mail.example.org>, '
            "erin@mail.example.org (comment)\n",
        ),
        ("Cc: <frank>\n", "Cc: <frank@mail.example.org>\n"),
        ("Reply-To: george\n", "Reply-To: george\n"),
        ("From: Long Name\n\t<alice@x.example>\n", "From: Long Name\n\t<alice@x.example>\n"),
        ("To: undisclosed-recipients:;\n", "To: undisclosed-recipients:;\n"),
        ('To: "a, b" <c>\n', 'To: "a, b" <c@mail.example.org>\n'),
        ("To: (a, b) c\n", "To: (a, b) c@mail.example.org\n"),
        ('To: "unclosed\n', 'To: "unclosed\n'),
        ("To: <>\n", "To: <>\n"),
        ("To: a>b<\n", "To: a>b<\n"),
        ("To: \n", "To: \n"),
        ("To: bob,\n\tcarol\n", "To: bob@mail.example.org,\n\tcarol@mail.example.org\n"),
        ("TO: bob\n", "TO: bob@mail.example.org\n"),
    ],
)
def test_bare_addresses_get_a_domain(before, after):
    assert fields(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("From: Any <x@y.example>\n", "From: Any <a@b.example>\n"),
        ("From: x@y.example (Any)\n", "From: a@b.example (Any)\n"),
        ("From: x\n", "From: a@b.example\n"),
        ("To: x@y.example\n", "To: x@y.example\n"),
    ],
)
def test_masquerade_replaces_the_address_of_from(before, after):
    assert fields(before, masquerade=b"a@b.example") == after


@pytest.mark.parametrize("text", ["this is no header\n", " continued\nSubject: x\n", "Subject: x\nno header\n"])
def test_what_is_no_header_is_malformed(text):
    with pytest.raises(headers.Malformed):
        fields(text)


def test_an_address_field_has_a_limit():
    with pytest.raises(headers.Malformed):
        fields("To: " + "a, " * 30000 + "\n")


def test_hops_are_counted():
    assert fields("Received: x\n" * 99).count("Received") == 99
    with pytest.raises(headers.Loop):
        fields("Received: x\n" * 100)


def test_what_is_missing_is_noted():
    header = process(b"Date: x\r\nSubject: y\r\n", domain=b"d")
    assert header.has_date and not header.has_message_id
    header = process(b"message-id: <x>\r\n", domain=b"d")
    assert header.has_message_id and not header.has_date
    assert process(b"", domain=b"d").block == b""


@pytest.mark.parametrize("value", ["\\\n b", "a\\\n\t", "a, b\\\n \n c", "<a\\\n >"])
def test_a_backslash_at_the_end_of_a_line_does_not_break_it(value):
    block = f"To: {value}\nX: y\n".replace("\n", "\r\n").encode()
    made = process(block, domain=b"mail.example.org").block
    assert made.count(b"\r\n") == block.count(b"\r\n")
    assert b"\r" not in made.replace(b"\r\n", b"")


@given(st.text(alphabet='ab@,;:<>()"\\ \t', max_size=60))
def test_other_text_of_an_address_field_survives(value):
    before = f"To: {value}\n"
    assert fields(before).replace("@mail.example.org", "") == before.replace("@mail.example.org", "")
