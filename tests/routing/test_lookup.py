"""The lookup role's answers."""

import asyncio
import io

import msgspec
import pytest

from pillarbox.conf.model import AUTH_SYSTEM, Local, Relay, SmtpOptions, Table, TableKind
from pillarbox.errors import TempFail
from pillarbox.roles.lookup import User
from tests.routing.support import (
    RELAY,
    Parent,
    configuration,
    criterion,
    expand,
    login,
    make_lookup,
    match,
    table,
)
from tests.routing.test_auth import SHA512


def ask(tables, question, *, parent=None, actions=(RELAY,)):
    """The answer to one question put to a lookup with these tables."""
    lookup = make_lookup(configuration(tables=tables, actions=actions, rules=()), parent=parent)
    try:
        return asyncio.run(question(lookup))
    finally:
        lookup.close()


def test_authenticate_by_table():
    tables = [table("creds", ("Alice", SHA512), ("bob", "xy"), ("carol", "alice-pw"))]

    def check(user, password):
        return ask(tables, lambda lookup: lookup.authenticate(login("creds", user), password))

    assert check("alice", "alice-pw")
    assert check("ALICE", "alice-pw")
    assert not check("alice", "wrong")
    assert not check("ghost", "alice-pw")
    assert not check("carol", "alice-pw")
    with pytest.raises(TempFail):
        check("bob", "xy")


def test_authenticate_system_users():
    parent = Parent(passwords={"alice": "pw"})
    assert ask([], lambda lookup: lookup.authenticate(login(AUTH_SYSTEM, "alice"), "pw"), parent=parent)
    assert not ask([], lambda lookup: lookup.authenticate(login(AUTH_SYSTEM, "alice"), "xx"), parent=parent)


@pytest.mark.parametrize(
    ("sender", "allowed"),
    [
        ("alice@example.org", True),
        ("ALICE@EXAMPLE.ORG", True),
        ("alice+x@example.org", True),
        ("any@alias.example.org", True),
        ("bob@example.org", False),
        ("", False),
    ],
)
def test_senders(sender, allowed):
    tables = [table("who", ("alice", "alice@example.org, @alias.example.org"))]
    assert ask(tables, lambda lookup: lookup.may_send_as(0, "who", "Alice", sender)) is allowed
    assert not ask(tables, lambda lookup: lookup.may_send_as(0, "who", "ghost", sender))


def test_names_users_credentials_urls_and_sources():
    tables = [
        table("names", ("127.0.0.1", "one.example"), ("[::1]", "six.example")),
        table("creds", ("label", "user:s3cret two")),
        table("urls", ("example.net", "smtp://a"), ("example.com", "smtp://b")),
        table("hosts", "smtp://b", "smtp://a"),
        table("src", "192.0.2.2", "[::1]", "192.0.2.1"),
    ]
    relay = [Relay(name="relay", auth="creds", helo_src="names")]
    assert ask(tables, lambda lookup: lookup.host_name(0, "names", "::1"), actions=relay) == "six.example"
    assert ask(tables, lambda lookup: lookup.host_name(0, "names", "127.0.0.2"), actions=relay) == ""
    credentials = ask(tables, lambda lookup: lookup.credentials(0, "creds", "LABEL"), actions=relay)
    assert credentials == ("user", "s3cret two")
    assert ask(tables, lambda lookup: lookup.credentials(0, "creds", "x"), actions=relay) is None
    assert ask(tables, lambda lookup: lookup.relay_url(0, "urls", "Example.NET")) == "smtp://a"
    assert ask(tables, lambda lookup: lookup.relay_url(0, "urls", "a.example.net")) == ""
    assert ask(tables, lambda lookup: lookup.source_addresses(0, "src")) == ["192.0.2.1", "192.0.2.2", "::1"]
    assert ask(tables, lambda lookup: lookup.user(0, "users", "BOB")) == User(
        name="bob", uid=6001, gid=6002, home="/home/bob"
    )
    assert ask(tables, lambda lookup: lookup.user(0, "<getpwnam>", "root")).uid == 0

    async def in_turn(lookup):
        return [await lookup.relay_url(0, "hosts", "") for _ in range(3)]

    assert ask(tables, in_turn) == ["smtp://a", "smtp://b", "smtp://a"]


def test_hashes_of_passwords_are_told_to_nobody():
    tables = [table("people", ("alice", SHA512)), table("creds", ("label", "user:s3cret"))]
    relay = [Relay(name="relay", auth="creds")]
    for question in (
        lambda lookup: lookup.credentials(0, "people", "alice"),
        lambda lookup: lookup.host_name(0, "people", "alice"),
        lambda lookup: lookup.host_name(0, "creds", "label"),
    ):
        with pytest.raises(TempFail, match="this configuration"):
            ask(tables, question, actions=relay)


def test_a_missing_table_or_configuration_is_temporary():
    for question in (
        lambda lookup: lookup.user(0, "nowhere", "x"),
        lambda lookup: lookup.credentials(7, "users", "x"),
    ):
        with pytest.raises(TempFail):
            ask([], question)


def test_dns_is_the_resolvers():
    assert ask([], lambda lookup: lookup.exchangers("example.net", True, "inet4")) == [("example.net", True, "inet4")]
    assert ask([], lambda lookup: lookup.reverse_name("192.0.2.1")) == "name-of-192.0.2.1"


def test_dns_is_asked_as_the_configuration_of_today_says():
    class Other:
        async def reverse_name(self, address):
            return "other.example"

    async def question(lookup):
        lookup.add_config(configuration(generation=1))
        before = await lookup.reverse_name("192.0.2.1")
        lookup.use_config(1, Other())
        return before, await lookup.reverse_name("192.0.2.1")

    assert ask([], question) == ("name-of-192.0.2.1", "other.example")


def test_each_generation_has_its_own_rules():
    lookup = make_lookup()
    lookup.add_config(configuration(generation=1, rules=[match("relay")]))
    assert expand(lookup, "x@elsewhere.example").startswith("550 ")
    (envelope,) = expand(lookup, "x@elsewhere.example", generation=1)
    assert envelope.dispatcher == "relay"
    asyncio.run(lookup.drop_config(0))
    assert expand(lookup, "alice@example.org") == "451 Temporary failure: <alice@example.org>"
    lookup.close()


def test_tables_that_hold_something_are_closed_with_their_configuration():
    lookup, closed = make_lookup(), []
    lookup.add_config(configuration(generation=1))

    def closing(number):
        async def close():
            closed.append(number)

        return close

    async def scenario():
        for number, generation in lookup._generations.items():
            generation.tables["users"].close = closing(number)
        await lookup.drop_config(0)
        assert closed == [0]
        await lookup.close_tables()
        assert closed == [0, 1]

    asyncio.run(scenario())
    lookup.close()


def with_path(generation, path):
    """A configuration with `path.example` for local, in the file `path`."""
    domains = Table(name="domains", kind=TableKind.FILE, config=path, entries=((f"{path}.example", ""),))
    rules = [match("local", dest=criterion("domain", "domains"))]
    return configuration(generation=generation, rules=rules, tables=[domains])


def test_update_table_leaves_another_file_of_that_name_in_an_older_configuration_alone():
    parent = Parent(tables={"domains": (("read.example", ""),)})
    parent.paths["domains"] = "new"
    lookup = make_lookup(with_path(0, "old"), parent=parent)
    lookup.add_config(with_path(1, "new"))
    lookup.use_config(1, lookup._resolver)
    assert asyncio.run(lookup.update_table("domains"))
    assert expand(lookup, "alice@old.example")[0].dispatcher == "local"
    assert expand(lookup, "alice@read.example").startswith("550 ")
    assert expand(lookup, "alice@read.example", generation=1)[0].dispatcher == "local"
    assert expand(lookup, "alice@new.example", generation=1).startswith("550 ")
    lookup.close()


@pytest.mark.parametrize("kept", [True, False])
def test_update_table_across_a_reload_gives_no_table_the_entries_of_another_file(kept):
    """The parent has read the file of the configuration that it had then."""
    new = with_path(1, "new") if kept else configuration(generation=1)

    class Reloading(Parent):
        async def read_table(self, name):
            found = await super().read_table(name)
            lookup.add_config(new)
            lookup.use_config(1, lookup._resolver)
            return found

    parent = Reloading(tables={"domains": (("read.example", ""),)})
    parent.paths["domains"] = "old"
    lookup = make_lookup(with_path(0, "old"), parent=parent)
    assert asyncio.run(lookup.update_table("domains"))
    assert expand(lookup, "alice@read.example")[0].dispatcher == "local"
    if kept:
        assert expand(lookup, "alice@read.example", generation=1).startswith("550 ")
        assert expand(lookup, "alice@new.example", generation=1)[0].dispatcher == "local"
    lookup.close()


@pytest.mark.parametrize("current", [TableKind.STATIC, TableKind.FILE])
def test_update_table_is_told_of_the_current_configuration_only(current):
    """An older one means a program by the name, which nobody can ask, or a file, which the parent does not read."""
    stream = io.StringIO()
    older = TableKind.PROC if current is TableKind.FILE else TableKind.FILE
    parent = Parent(tables={"domains": ()} if current is TableKind.FILE else {})
    lookup = make_lookup(
        configuration(tables=[table("domains", "old.example", kind=older)]), parent=parent, stream=stream
    )
    lookup.add_config(configuration(generation=1, tables=[table("domains", "new.example", kind=current)]))
    lookup.use_config(1, lookup._resolver)
    assert asyncio.run(lookup.update_table("domains"))
    assert stream.getvalue() == 'info: Table "domains" successfully updated\n'
    lookup.close()


def test_update_table_reads_a_file_again_and_rules_see_it():
    domains = table("domains", "old.example", kind=TableKind.FILE)
    aliases = table("aliases", ("a", "alice"), kind=TableKind.FILE)
    action = Local(name="local", method="maildir", userbase="users", alias="aliases")
    rules = [match("local", dest=criterion("domain", "domains"))]
    config = configuration(rules=rules, actions=[action, RELAY], tables=[domains, aliases])
    parent = Parent(tables={"domains": (("new.example", ""),), "aliases": (("a", "bob"),)})
    stream = io.StringIO()
    lookup = make_lookup(config, parent=parent, stream=stream)
    assert asyncio.run(lookup.update_table("domains"))
    assert expand(lookup, "a@old.example").startswith("550 ")
    assert [e.mda_user for e in expand(lookup, "a@new.example")] == ["alice"]
    assert asyncio.run(lookup.update_table("aliases"))
    assert [e.mda_user for e in expand(lookup, "a@new.example")] == ["bob"]
    assert stream.getvalue().splitlines()[0] == 'info: Table "domains" successfully updated'


def test_update_table_that_fails_changes_nothing():
    parent, stream = Parent(), io.StringIO()
    aliases = table("aliases", ("a", "alice"), kind=TableKind.FILE)
    lookup = make_lookup(configuration(tables=[aliases]), parent=parent, stream=stream)
    assert not asyncio.run(lookup.update_table("nowhere"))
    assert not asyncio.run(lookup.update_table("aliases"))
    assert asyncio.run(lookup.update_table("users"))
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == ["warn", "info", "warn", "info"]


def test_a_bad_regex_is_logged_with_its_table():
    rule = match("relay", helo=criterion("helo", "bad", regex=True))
    stream = io.StringIO()
    make_lookup(configuration(rules=[rule], tables=[table("bad", "(unclosed")]), stream=stream)
    assert 'warn: table "bad": regex "(unclosed" never matches: missing )' in stream.getvalue()


def test_that_a_user_has_no_forward_is_believed_for_a_second():
    parent, clock = Parent(), [1000.0]
    lookup = make_lookup(parent=parent, now=lambda: clock[0])
    try:
        for _ in range(3):
            assert [e.mda_user for e in expand(lookup, "alice@example.org")] == ["alice"]
        assert len(parent.asked) == 1
        parent.forwards["alice"] = b"bob\n"
        clock[0] += 1.0
        assert [e.mda_user for e in expand(lookup, "alice@example.org")] == ["bob"]
        clock[0] -= 3600.0  # the clock was set back
        assert [e.mda_user for e in expand(lookup, "alice@example.org")] == ["bob"]
    finally:
        lookup.close()


def test_proxies_are_trusted_by_address_and_network():
    tables = [table("proxies", "192.0.2.1", "198.51.100.0/24", "[2001:db8::1]")]

    def trusted(address):
        return ask(tables, lambda lookup: lookup.trusts_proxy(0, "proxies", address))

    assert trusted("192.0.2.1")
    assert trusted("198.51.100.7")
    assert trusted("2001:db8::1")
    assert not trusted("192.0.2.2")
    assert not trusted("2001:db8::2")


def test_limits_are_those_of_the_configuration_that_a_session_came_for():
    strict = msgspec.structs.replace(configuration(), smtp=SmtpOptions(max_session_per_source=1))
    lookup = make_lookup(strict)
    lookup.add_config(msgspec.structs.replace(strict, generation=1, smtp=SmtpOptions(max_session_per_source=2)))

    async def scenario() -> None:
        assert await lookup.admit(0, "d.0", 1, "192.0.2.1") == ""
        assert await lookup.admit(0, "d.0", 2, "192.0.2.1") == "max-session-per-source"
        assert await lookup.admit(1, "d.1", 1, "192.0.2.1") == ""
        lookup.release("d.0")
        await lookup.leave("d.1", 1)
        await lookup.hold("d.1", {5: "192.0.2.1"})
        assert await lookup.admit(0, "d.0", 3, "192.0.2.1") == "max-session-per-source"
        with pytest.raises(TempFail):
            await lookup.admit(7, "d.0", 4, "192.0.2.1")

    try:
        asyncio.run(scenario())
    finally:
        lookup.close()
