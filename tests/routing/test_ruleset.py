"""The ruleset: each criterion, negation, and which rule wins."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.conf.model import Criterion
from pillarbox.errors import ConfigError
from pillarbox.routing.ruleset import Ruleset, Subject
from pillarbox.tables.table import MemoryTable, Table
from tests.routing.support import configuration, criterion, match, table


def ruleset(*rules, tables=(), bad=None):
    config = configuration(rules=rules, tables=tables)
    opened: dict[str, Table] = {
        name: MemoryTable(name=name, entries=t.entries, delimiter="+", on_bad_regex=lambda p, w: None)
        for name, t in config.tables.items()
    }
    return Ruleset(
        config=config,
        tables=opened,
        local_addresses=lambda: frozenset({"127.0.0.1", "::1", "192.0.2.25"}),
        on_bad_regex=lambda name, pattern, why: (bad if bad is not None else []).append((name, pattern)),
    )


def decide(rules, about):
    return asyncio.run(rules.decide(about))


def subject(**fields):
    defaults = {"sender": "s@client.example", "dest": "alice@example.org", "address": "198.51.100.7"}
    return Subject(**{**defaults, **fields})


def passes(rule, *, tables=(), **fields):
    return decide(ruleset(rule, tables=tables), subject(**fields)) is not None


def test_the_first_rule_that_matches_wins():
    rules = ruleset(
        match("one", rcpt_to="bob"),
        match("two", dest=criterion("domain", "ours")),
        match("three"),
        tables=[table("bob", "bob@example.org")],
    )
    assert decide(rules, subject(dest="bob@example.org")).action == "one"
    assert decide(rules, subject(dest="alice@example.org")).action == "two"
    assert decide(rules, subject(dest="alice@elsewhere.example")).action == "three"


def test_without_a_match_there_is_none():
    assert decide(ruleset(match("x", dest=criterion("domain", "ours"))), subject(dest="a@b.example")) is None
    assert decide(ruleset(), subject()) is None


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({"address": "127.0.0.1"}, True),
        ({"address": "[::1]"}, True),
        ({"address": "::1"}, True),
        ({"address": "0:0::1"}, True),
        ({"address": "192.0.2.25"}, True),
        ({"address": "local"}, True),
        ({"address": "127.0.0.2"}, False),
        ({"address": "198.51.100.7"}, False),
        ({"address": "198.51.100.7", "local": True}, True),
        ({"address": "198.51.100.7", "internal": True}, True),
    ],
)
def test_from_local(fields, local):
    rule = match("x", source=Criterion(kind="local"))
    assert passes(rule, **fields) is local
    assert passes(match("x", source=Criterion(kind="local", negated=True)), **fields) is not local


def test_from_any_and_its_negation():
    assert passes(match("x"))
    assert not passes(match("x", source=Criterion(kind="any", negated=True)))
    assert not passes(match("x", source=Criterion(kind="any", negated=True)), internal=True)


def test_from_src():
    nets = [table("nets", "127.0.0.0/31", "127.0.0.4", "[2001:db8::]", "2001:db8:1::/48")]
    rule, negated = match("x", source=criterion("src", "nets")), match("x", source=criterion("src", "!nets"))
    for address, inside in (
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("127.0.0.4", True),
        ("[2001:db8:1::7]", True),
        ("2001:db8:2::7", False),
        ("local", False),
    ):
        assert passes(rule, tables=nets, address=address) is inside
        assert passes(negated, tables=nets, address=address) is not inside


def test_from_src_regex_sees_brackets_around_ipv6():
    rule = match("x", source=criterion("src", "r", regex=True))
    assert passes(rule, tables=[table("r", r"^\[2001:")], address="2001:db8::1")
    assert passes(rule, tables=[table("r", "^127")], address="127.0.0.1")


def test_from_socket_is_the_control_socket_only():
    rule = match("x", source=Criterion(kind="socket"))
    negated = match("x", source=Criterion(kind="socket", negated=True))
    assert passes(rule, address="local")
    assert not passes(rule)
    assert passes(negated)
    assert not passes(rule, internal=True)
    assert not passes(negated, internal=True)


def test_from_rdns():
    names = [table("names", "mx.client.example")]
    has_name, named = match("x", source=Criterion(kind="rdns")), match("x", source=criterion("rdns", "names"))
    not_named = match("x", source=criterion("rdns", "!names"))
    for hostname in ("", "<unknown>"):
        assert not passes(has_name, hostname=hostname)
        assert passes(match("x", source=Criterion(kind="rdns", negated=True)), hostname=hostname)
        assert not passes(named, tables=names, hostname=hostname)
        assert not passes(not_named, tables=names, hostname=hostname)
    assert passes(has_name, hostname="other.example")
    assert passes(named, tables=names, hostname="MX.client.example")
    assert passes(not_named, tables=names, hostname="other.example")
    assert not passes(has_name, hostname="mx.client.example", internal=True)


def test_from_rdns_regex():
    rule = match("x", source=criterion("rdns", "r", regex=True))
    assert passes(rule, tables=[table("r", r"\.client\.example$")], hostname="mx.Client.example")
    assert not passes(rule, tables=[table("r", r"\.client\.example$")], hostname="")


@pytest.mark.parametrize(
    ("domain", "local"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("mx.example.org", True),
        ("192.0.2.25", True),
        ("[::1]", True),
        ("::1", False),
        ("[127.0.0.1]", False),  # COMPAT: only IPv6 addresses are known in brackets
        ("127.0.0.9", False),
        ("example.org", False),
    ],
)
def test_for_local(domain, local):
    assert passes(match("x", dest=Criterion(kind="local")), dest=f"alice@{domain}") is local
    assert passes(match("x", dest=Criterion(kind="local", negated=True)), dest=f"alice@{domain}") is not local


def test_for_domain_and_for_rcpt_to():
    tables = [table("d", "example.org", "*.example.net"), table("a", "alice@example.org")]
    rule, negated = match("x", dest=criterion("domain", "d")), match("x", dest=criterion("domain", "!d"))
    assert passes(rule, tables=tables, dest="a@EXAMPLE.org")
    assert passes(rule, tables=tables, dest="a@x.example.net")
    assert not passes(rule, tables=tables, dest="a@x.y.example.net")
    assert passes(negated, tables=tables, dest="a@example.net")
    address = match("x", dest=criterion("rcpt-to", "a"))
    assert passes(address, tables=tables, dest="alice+tag@example.org")
    assert not passes(address, tables=tables, dest="bob@example.org")
    regex = match("x", dest=criterion("domain", "r", regex=True))
    assert passes(regex, tables=[table("r", r"^ex.*\.org$")], dest="a@Example.ORG")


def test_tag():
    tables = [table("t", "ONE", "two"), table("r", "^O")]
    assert passes(match("x", tag="t"), tables=tables, tag="one")
    assert not passes(match("x", tag="t"), tables=tables, tag="")
    negated = match("x", tag=Criterion(kind="tag", table="r", regex=True, negated=True))
    assert not passes(negated, tables=tables, tag="ONE")
    assert passes(negated, tables=tables, tag="two")


def test_helo_is_a_domain_table():
    tables = [table("h", "*.good.example", "x.example")]
    assert passes(match("x", helo="h"), tables=tables, helo="A.good.example")
    assert not passes(match("x", helo="h"), tables=tables, helo="good.example")


def test_tls():
    assert passes(match("x", tls=""), tls=True)
    assert not passes(match("x", tls=""), tls=False)
    assert passes(match("x", tls="!"), tls=False)
    assert not passes(match("x", tls="!"), tls=True)


def test_auth():
    tables = [table("names", "bob", "carol@example.org"), table("r", "^al")]
    known = {"authenticated": True}
    assert passes(match("x", auth=""), **known, username="alice")
    assert not passes(match("x", auth=""))
    assert passes(match("x", auth="!"))
    assert passes(match("x", auth="names"), tables=tables, **known, username="BOB")
    assert not passes(match("x", auth="names"), tables=tables, username="bob")
    assert passes(match("x", auth="names"), tables=tables, **known, username="carol+x@example.org")
    assert passes(match("x", auth="!names"), tables=tables, **known, username="alice")
    assert passes(match("x", auth="!names"), tables=tables)


@pytest.mark.parametrize("user", ["alice", "alice@example.org"])
def test_auth_regex(user):
    rule = match("x", auth=criterion("auth", "r", regex=True))
    assert passes(rule, tables=[table("r", "^al")], authenticated=True, username=user)
    assert not passes(rule, tables=[table("r", "^bo")], authenticated=True, username=user)


def test_mail_from():
    tables = [table("spam", "@spam.example"), table("all", "@")]
    assert passes(match("x", mail_from="!spam"), tables=tables, sender="")
    assert passes(match("x", mail_from="!spam"), tables=tables, sender="a@sub.spam.example")
    assert not passes(match("x", mail_from="!spam"), tables=tables, sender="a@Spam.example")
    assert passes(match("x", mail_from="all"), tables=tables, sender="")


def test_bad_regex_in_a_rule_never_matches_and_is_reported():
    bad = []
    rule = match("x", helo=criterion("helo", "r", regex=True))
    rules = ruleset(rule, tables=[table("r", "(", "good")], bad=bad)
    assert bad == [("r", "(")]
    assert decide(rules, subject(helo="(")) is None
    assert decide(rules, subject(helo="very good")) is not None


def test_a_table_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="nowhere"):
        ruleset(match("x", helo="nowhere"))


TABLES = [table("d", "example.org", "*.net"), table("a", "alice", "@example.org"), table("n", "10.0.0.0/8")]
SOURCES = st.sampled_from(["any", "local", "socket", "rdns", "src"])
CHOICE = st.sampled_from([None, "", "!"])


@st.composite
def any_rule(draw):
    kind = draw(SOURCES)
    source = Criterion(kind=kind, table="n" if kind == "src" else "", negated=draw(st.booleans()))
    dest = draw(st.sampled_from(["any", "local", "domain"]))
    marks = {name: draw(CHOICE) for name in ("helo", "tls", "auth", "mail_from")}
    used = {
        name: mark + {"helo": "d", "mail_from": "a"}.get(name, "") for name, mark in marks.items() if mark is not None
    }
    target = Criterion(kind=dest, table="d" if dest == "domain" else "", negated=draw(st.booleans()))
    return match("x", source=source, dest=target, **used)


@given(
    st.lists(any_rule(), max_size=6),
    st.sampled_from(["alice@example.org", "bob@a.net", "x@localhost"]),
    st.sampled_from(["10.1.2.3", "127.0.0.1", "local"]),
    st.booleans(),
    st.booleans(),
)
def test_many_rules_decide_as_each_alone_in_order(rules, dest, address, tls, internal):
    who = subject(dest=dest, address=address, tls=tls, internal=internal, sender=dest, helo="example.org")
    first = next((r for r in rules if decide(ruleset(r, tables=TABLES), who) is not None), None)
    assert decide(ruleset(*rules, tables=TABLES), who) is first
