"""Command lines, paths, parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.mail.envelope import Notify
from pillarbox.smtp import commands
from pillarbox.smtp.commands import (
    Verb,
    asks_for_utf8,
    parse_chunk,
    parse_line,
    parse_mail_parameters,
    parse_path,
    parse_rcpt_parameters,
    valid_domain,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HELO", (Verb.HELO, None)),
        ("HELO ", (Verb.HELO, "")),
        ("ehlo  x", (Verb.EHLO, "x")),
        ("mail from:<a@b.example>", (Verb.MAIL, "<a@b.example>")),
        ("MAIL FROM:\t<a@b.example>", (Verb.MAIL, "<a@b.example>")),
        ("MAIL  FROM:<a@b.example>", (None, "FROM:<a@b.example>")),
        ("MAIL FROM :<a@b.example>", (None, "FROM :<a@b.example>")),
        ("MAIL FROM", (None, "FROM")),
        ("RCPT TO:", (Verb.RCPT, "")),
        ("VRFY alice", (None, "alice")),
        ("", (None, None)),
    ],
)
def test_verbs(line, expected):
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("<>", ""),
        ("<@>", ""),
        ("<a@b.example>", "a@b.example"),
        ("<a>", "a@mail.example"),
        ("<a@>", "a@mail.example"),
        ("<@relay.example:a@b.example>", "a@b.example"),
        ("<a@[127.0.0.1]>", "a@[127.0.0.1]"),
        ("<a@[IPv6:::1]>", "a@[IPv6:::1]"),
        ("<a@b_c.example>", "a@b_c.example"),
        ("<" + "a" * 255 + "@b.example>", "a" * 255 + "@b.example"),
    ],
)
def test_good_paths(path, address):
    assert parse_path(path, default_domain="mail.example", null=True) == (address, "")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "< >",
        "a@b.example",
        "<a@b.example",
        "<@b.example>",
        "<a@b@c>",
        "<a b@c>",
        '<"a"@c>',
        "<a..b@c>",
        "<.a@c>",
        "<a.@c>",
        "<a@c.>",
        "<a@[127.0.0.1>",
        "<a@[x]>",
        "<" + "a" * 256 + "@b>",
        "<a@" + "bcd." * 62 + "example>",
        "<a\0@b>",
        "<\xe9@b.example>",
        "<a@caf\xe9.example>",
    ],
)
def test_bad_paths(path):
    with pytest.raises(commands.BadSyntax):
        parse_path(path, default_domain="mail.example", null=True)


def test_an_empty_path_is_for_senders_only():
    with pytest.raises(commands.BadSyntax):
        parse_path("<>", default_domain="mail.example")


def test_domains():
    assert valid_domain("bad_under") and valid_domain("1.2.3.4") and valid_domain("a" * 63 + ".example")
    for bad in (
        "",
        ".",
        "-dash",
        "a..b",
        "dom.example.",
        "a b",
        "a" * 64 + ".example",
        "abcd." * 60 + "example",
        "caf\xe9",
    ):
        assert not valid_domain(bad)


def test_mail_parameters():
    found = parse_mail_parameters("  size=100 body=8bitmime  ret=full ENVID=id+3D1 AUTH=<>", dsn=True)
    assert (found.size, found.ret, found.envid) == (100, "FULL", "id+3D1")
    assert parse_mail_parameters("RET=bogus ENVID=", dsn=True) == commands.NO_MAIL_PARAMETERS


@pytest.mark.parametrize("text", ["SIZE", "BODY=BINARYMIME", "SMTPUTF8=1", "FOO=bar"])
def test_unknown_mail_parameters(text):
    with pytest.raises(commands.UnknownOption, match=text):
        parse_mail_parameters(f"BODY=7BIT {text}", dsn=True)


def test_dsn_parameters_where_dsn_is_off():
    for text in ("RET=FULL", "ENVID=x"):
        with pytest.raises(commands.UnknownOption):
            parse_mail_parameters(text, dsn=False)
    for text in ("NOTIFY=NEVER", "ORCPT=rfc822;a@b"):
        with pytest.raises(commands.UnknownOption):
            parse_rcpt_parameters(text, dsn=False)


@pytest.mark.parametrize("size", ["x", "-1", "", "1" * 21, "\u0661"])
def test_bad_sizes(size):
    with pytest.raises(commands.BadSize):
        parse_mail_parameters(f"SIZE={size}", dsn=True)


def test_envids_have_a_limit_and_are_printable():
    with pytest.raises(commands.OptionTooLong):
        parse_mail_parameters("ENVID=" + "x" * 100, dsn=True)
    with pytest.raises(commands.BadSyntax):
        parse_mail_parameters("ENVID=\xe9", dsn=True)


def test_rcpt_parameters():
    found = parse_rcpt_parameters(" NOTIFY=success,failure,delay ORCPT=rfc822;a+20b@example.org", dsn=True)
    assert found.notify == Notify.SUCCESS | Notify.FAILURE | Notify.DELAY
    assert found.orcpt == "rfc822;a+20b@example.org"
    assert parse_rcpt_parameters("NOTIFY=", dsn=True).notify == Notify.NONE


@pytest.mark.parametrize(
    "orcpt",
    [
        "alice@example.org",
        ";a@b",
        "\udcff;a@b",
        "\x1b[2J;a@b",
        "rfc 822;a@b",
        "rfc_822;a@b",
        "utf-\uff18;a@b",
        "rfc822;a+zz",
        "rfc822;a=b",
        "rfc822;" + "x" * 500,
    ],
)
def test_bad_orcpts(orcpt):
    with pytest.raises(commands.BadOrcpt):
        parse_rcpt_parameters(f"ORCPT={orcpt}", dsn=True)


def test_never_stands_alone():
    with pytest.raises(commands.BadNotify):
        parse_rcpt_parameters("NOTIFY=NEVER,SUCCESS", dsn=True)


@given(st.text(max_size=60))
def test_no_line_breaks_the_parser(text):
    parse_line(text)
    for parse in (
        lambda: parse_path(text, default_domain="x", null=True),
        lambda: parse_mail_parameters(text, dsn=True),
        lambda: parse_rcpt_parameters(text, dsn=True),
    ):
        try:
            parse()
        except ValueError as error:
            assert type(error).__module__ == commands.__name__


@pytest.mark.parametrize(
    "address",
    [
        "jürgen@example.org",
        "jürgen@bücher.example",
        "a@bücher.example",
        "用户@例え.テスト",
        "ju\u0308rgen@example.org",
        "\u0645\u06cc\u200c\u062e@example.org",
        "😀@example.org",
        "ü" * 127 + "@b.example",
    ],
)
def test_paths_in_utf8(address):
    assert parse_path(f"<{address}> SMTPUTF8", default_domain="mail.example", utf8=True) == (address, " SMTPUTF8")
    with pytest.raises(commands.BadSyntax):
        parse_path(f"<{address}>", default_domain="mail.example")


# Formats, fillers and variation selectors; for private use, unassigned, no characters.
INVISIBLE = "\xad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u2060\u2800\u3164\ufe0f\uffa0\ue000\ufdd0\uffff\u0378"
INVISIBLE += "\U0001bca0\U0001fffe\U000e0041\U000e0100\U000f0000"


@pytest.mark.parametrize(
    "path",
    [
        "<a\x80b@x.example>",  # a control character
        "<a\xa0b@x.example>",
        "<a\u2028b@x.example>",
        "<a\u202eb@x.example>",  # turns the direction
        "<a\u200bb@x.example>",
        "<a\ufeffb@x.example>",
        "<a\udcffb@x.example>",  # a byte that is no UTF-8
        *(f"<a{c}b@x.example>" for c in INVISIBLE),
        *(f"<a@b{c}b.example>" for c in INVISIBLE),
        "<ü..a@x.example>",
        "<.ü@x.example>",
        '<"ü"@x.example>',
        "<ü@b\u200bü.example>",
        "<ü@bü cher.example>",
        "<ü@-bü.example>",
        "<ü@xn--bü.example>",
        "<ü@[ü]>",
        "<" + "ü" * 128 + "@b.example>",
        "<a@" + "ü" * 300 + ".example>",
    ],
)
def test_bad_paths_in_utf8(path):
    with pytest.raises(commands.BadSyntax):
        parse_path(path, default_domain="mail.example", utf8=True)


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        ("<ü@x> SMTPUTF8", True),
        ("<ü@x> BODY=8BITMIME smtputf8", True),
        ("<ü@x> SMTPUTF8=1", False),
        ("<ü@x>", False),
        ("<SMTPUTF8 ü@x>", False),
        ("<a@x> SMTPUTF8", False),
    ],
)
def test_utf8_has_to_be_asked_for(args, answer):
    assert asks_for_utf8(args) is answer


def test_an_original_recipient_in_utf8():
    text = "ORCPT=utf-8;jürgen@x.example"
    assert parse_rcpt_parameters(text, dsn=True, utf8=True).orcpt == "utf-8;jürgen@x.example"
    assert parse_rcpt_parameters("ORCPT=utf-8;j\\x{FC}@x", dsn=True).orcpt == "utf-8;j\\x{FC}@x"
    for refused in (text, "ORCPT=rfc822;jürgen@x.example", "ORCPT=utf-8;j\u034frgen@x", "ORCPT=utf-8;j\udcff@x"):
        with pytest.raises(commands.BadOrcpt):
            parse_rcpt_parameters(refused, dsn=True, utf8=refused != text)


@pytest.mark.parametrize(
    ("args", "chunk"), [("0", (0, False)), ("10 LAST", (10, True)), ("7 last ", (7, True)), ("9  LAST", (9, True))]
)
def test_chunks(args, chunk):
    assert (parse_chunk(args).size, parse_chunk(args).last) == chunk


@given(st.text())
def test_whatever_is_a_path_is_one_address(text):
    try:
        address, _ = parse_path(f"<{text}>", default_domain="mail.example", utf8=True)
    except commands.BadSyntax:
        return
    assert address.replace("\u200c", "").replace("\u200d", "").isprintable()
    assert not set(" \t<>\r\n") & set(address) and address.encode()
