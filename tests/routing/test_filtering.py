"""Conditions and decisions of builtin filters."""

import asyncio

import pytest

from pillarbox.conf.model import Config, Criterion, Filter
from pillarbox.errors import TempFail
from pillarbox.roles.lookup import FilterCase
from pillarbox.routing.filtering import BuiltinFilters
from pillarbox.tables.table import MemoryTable

NOBODY = {"rdns": "<unknown>", "fcrdns": "fail", "src": "192.0.2.9"}
SOMEBODY = {"rdns": "mx.example.net", "fcrdns": "pass", "src": "192.0.2.1"}


def table(*keys: str) -> MemoryTable:
    entries = tuple((key, "") for key in keys)
    return MemoryTable(name="t", entries=entries, delimiter="+", on_bad_regex=lambda *_: None)


def decide(filters: list[Filter], tables=None, **known):
    config = Config(hostname="x", filters={one.name: one for one in filters})
    case = FilterCase(generation=0, filters=tuple(one.name for one in filters), **known)
    return asyncio.run(BuiltinFilters(config, tables or {}).decide(case))


def make(name: str, decision: str, argument: str = "", **criterion) -> Filter:
    return Filter(name=name, kind="builtin", conditions=(Criterion(**criterion),), decision=decision, argument=argument)


def holds(kind: str, keys: tuple[str, ...] = (), *, negated: bool = False, regex: bool = False, **known) -> bool:
    one = make("b", "reject", "550 no", kind=kind, table="t" if keys else "", negated=negated, regex=regex)
    return decide([one], {"t": table(*keys)}, **known).decision == "reject"


@pytest.mark.parametrize(
    ("kind", "keys", "known", "expected"),
    [
        ("fcrdns", (), SOMEBODY, True),
        ("fcrdns", (), SOMEBODY | {"fcrdns": "fail"}, False),
        ("fcrdns", (), SOMEBODY | {"fcrdns": "error"}, False),
        ("rdns", (), SOMEBODY, True),
        ("rdns", (), SOMEBODY | {"fcrdns": "fail"}, True),  # a name all the same
        ("rdns", (), NOBODY, False),
        ("rdns", (), SOMEBODY | {"rdns": "192.0.2.1"}, False),
        ("rdns", ("*.example.net",), SOMEBODY, True),
        ("rdns", ("example.net",), SOMEBODY, False),
        ("rdns", ("*.example.net",), NOBODY, False),
        ("src", ("192.0.2.0/30", "10.0.0.0/8"), SOMEBODY, True),
        ("src", ("192.0.2.0/30",), NOBODY, False),
        ("src", ("2001:db8::/32",), SOMEBODY | {"src": "2001:db8::1"}, True),
        ("src", ("local",), SOMEBODY | {"src": "local"}, True),
        ("helo", ("*.example.net",), {"helo": "MX.example.NET"}, True),
        ("helo", ("*.example.net",), {"helo": ""}, False),
        ("auth", (), {"username": "alice"}, True),
        ("auth", (), {}, False),
        ("auth", ("alice",), {"username": "Alice"}, True),
        ("auth", ("alice",), {"username": "bob"}, False),
        ("auth", ("alice",), {}, False),
        ("mail-from", ("s@x.example",), {"sender": "S@X.example"}, True),
        ("mail-from", ("@x.example",), {"sender": "s+tag@x.example"}, True),
        ("mail-from", ("@x.example",), {"sender": ""}, False),
        ("mail-from", ("@",), {"sender": ""}, True),
        ("rcpt-to", ("bob@example.org",), {"rcpt": "bob+t@example.org"}, True),
        ("rcpt-to", ("bob@example.org",), {"rcpt": "alice@example.org"}, False),
    ],
)
def test_conditions_and_their_negation(kind, keys, known, expected):
    assert holds(kind, keys, **known) is expected
    assert holds(kind, keys, negated=True, **known) is not expected


@pytest.mark.parametrize(
    ("kind", "pattern", "known", "expected"),
    [
        ("rdns", r"\.example\.net$", SOMEBODY, True),
        ("rdns", "^<unknown>$", NOBODY, True),
        ("src", r"^192\.0\.2\.", SOMEBODY, True),
        ("src", r"^\[2001:", {"src": "2001:db8::1"}, True),  # in brackets, as the reference writes it
        ("helo", "^MX", {"helo": "mx.example.net"}, True),
        ("auth", "^al", {"username": "alice"}, True),
        ("auth", "^al", {}, False),
        ("auth", ".", {}, False),
        ("mail-from", "^s@", {"sender": "s@x.example"}, True),
        ("mail-from", ".", {"sender": ""}, False),  # the null sender is nothing
        ("mail-from", "^$", {"sender": ""}, True),
        ("rcpt-to", "^@hop:", {"rcpt": "@hop:bob@example.org"}, True),
        ("rcpt-to", "(", {"rcpt": "bob@example.org"}, False),
    ],
)
def test_regular_expressions(kind, pattern, known, expected):
    assert holds(kind, (pattern,), regex=True, **known) is expected
    assert holds(kind, (pattern,), regex=True, negated=True, **known) is not expected


def test_the_first_that_decides_is_the_last_and_reports_go_on():
    outcome = decide(
        [
            make("no", "reject", "550 no", kind="auth"),
            make("r", "report", "seen", kind="rdns"),
            make("q", "report", "twice", kind="fcrdns"),
            make("d", "disconnect", "421 bye", kind="rdns"),
            make("never", "junk", kind="rdns"),
        ],
        **SOMEBODY,
    )
    assert outcome.reports == (("r", "seen"), ("q", "twice"))
    assert (outcome.name, outcome.decision, outcome.argument) == ("d", "disconnect", "421 bye")


def test_nobody_decides():
    assert not decide([make("no", "reject", "550 no", kind="auth")], **SOMEBODY).decision


def test_a_table_that_cannot_be_asked_decides_nothing():
    class Broken(MemoryTable):
        async def match(self, service, key):
            raise TempFail("the database is away")

    broken = Broken(name="t", entries=(), delimiter="+", on_bad_regex=lambda *_: None)
    with pytest.raises(TempFail):
        decide([make("b", "reject", "550 no", kind="helo", table="t")], {"t": broken}, helo="x")
    with pytest.raises(TempFail):
        decide([make("b", "reject", "550 no", kind="helo", table="gone")], helo="x")
