"""What aliases and ~/.forward may say."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.errors import TempFail
from pillarbox.routing.aliases import AliasError, Kind, Member, parse_addresses, parse_members, read_lines


def members(text):
    return [tuple(member) for member in parse_members(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", [(Kind.USER, "alice")]),
        ("alice, bob,carol,", [(Kind.USER, "alice"), (Kind.USER, "bob"), (Kind.USER, "carol")]),
        (r"\alice", [(Kind.USER, "alice")]),
        ("x.y-z_1+tag", [(Kind.USER, "x.y-z_1+tag")]),
        ("x@example.net", [(Kind.ADDRESS, "x@example.net")]),
        ("!#$%*/?^{}`~&'+-=_.@example.net", None),  # a lone quote stays open
        ("!#$%*/?^{}`~&+-=_.@example.net", [(Kind.ADDRESS, "!#$%*/?^{}`~&+-=_.@example.net")]),
        ("jürgen@bücher.example", [(Kind.ADDRESS, "jürgen@bücher.example")]),
        ("/var/mail/x", [(Kind.FILE, "/var/mail/x")]),
        ("|/bin/prog a b", [(Kind.COMMAND, "/bin/prog a b")]),
        ('"|/bin/cat -n, x"', [(Kind.COMMAND, "/bin/cat -n, x")]),
        ("|cat, carol", [(Kind.COMMAND, "cat"), (Kind.USER, "carol")]),
        (":include:/etc/list", [(Kind.INCLUDE, "/etc/list")]),
        ("INCLUDE:/etc/list", [(Kind.INCLUDE, "/etc/list")]),
        ("error:550 5.1.1 gone", [(Kind.ERROR, "550 5.1.1 gone")]),
        (":ERROR:451 later", [(Kind.ERROR, "451 later")]),
        ("", []),
        (" , ,", []),
    ],
)
def test_members(text, expected):
    if expected is None:
        with pytest.raises(AliasError):
            members(text)
    else:
        assert members(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "al ice", "al!ice", "alice@", "@example.net", "<carol@example.net>", "a@b@c", "a@ex ample",
        ":include:etc/list", "include:", "error:bad", "error:250 fine", "error:550", "error:550 ", "error:٤50 x",
        '"/var/tmp/with space"', '"open', "'open", "trailing\\", '"|cat', "|", '"|"', "|  ", "a\x80",
    ],
)  # fmt: skip
def test_what_cannot_be_read(text):
    with pytest.raises(AliasError):
        members(text)


def test_members_before_a_bad_one_are_given():
    found = []
    with pytest.raises(AliasError):
        found.extend(parse_members("alice"))
        for member in parse_members("bob, b!d, carol"):
            found.append(member)
    assert found == [Member(Kind.USER, "alice"), Member(Kind.USER, "bob")]


@given(st.text(max_size=60))
def test_no_input_raises_anything_but_its_own_error(text):
    with contextlib.suppress(AliasError):
        assert all(member.text for member in parse_members(text))
    with contextlib.suppress(TempFail):
        parse_addresses(text)


@given(st.binary(max_size=200))
def test_no_forward_file_raises(data):
    for line in read_lines(data):
        with contextlib.suppress(AliasError):
            list(parse_members(line))


def test_lines_of_a_forward_file():
    data = b"alice # me\n# all of it\n\nbo\\\nb, c\\#d\nlast\\"
    assert list(read_lines(data)) == ["alice ", "", "", "bob, c\\#d", "last"]


def test_addresses_of_a_senders_table():
    assert parse_addresses("alice@example.org, @alias.example.org,,") == ["alice@example.org", "@alias.example.org"]
    with pytest.raises(TempFail):
        parse_addresses('"open')
