"""Lookup with tables that are programs: passwords, generations, updates, and what each service is asked."""

import asyncio
import io
import sys
from pathlib import Path

import pytest

from pillarbox.conf.model import Local, Relay, Table, TableKind
from pillarbox.daemon.programs.programs import Programs
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.routing.lookup import Lookup
from tests.routing.support import (
    KEY,
    LOCAL,
    NOW,
    RELAY,
    Names,
    Parent,
    configuration,
    criterion,
    login,
    match,
    recipient,
)

ACTIONS = (LOCAL, RELAY)
SCRIPT = str(Path(__file__).parent.parent / "tables/misbehaving.py")


class Program:
    """Implements `Program`: the one of misbehaving.py that the table is named after."""

    def __init__(self, programs, generation, table):
        self.programs, self.key, self.mode = programs, f"{generation} {table}", table

    async def start(self):
        return await self.programs.start(self.key, self.mode, sys.executable, ["-u", SCRIPT, self.mode])

    async def stop(self):
        await self.programs.stop(self.key)


class Rig:
    def __init__(self, config):
        self.stream = io.StringIO()
        log = Log(self.stream)
        self.programs = Programs(account=None, log=log)
        self.lookup = Lookup(
            config=config,
            system=Parent(),
            resolver=Names(),
            seal_key=KEY,
            log=log,
            now=lambda: NOW,
            local_addresses=frozenset,
            libexec="/libexec",
            program_of=lambda generation, table: Program(self.programs, generation, table),
        )

    def running(self):
        return sorted(self.programs._running)

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - processes are no events
                await asyncio.sleep(0.02)


def play(body, config):
    async def bounded():
        rig = Rig(config)
        async with asyncio.timeout(30):
            try:
                await body(rig)
            finally:
                await rig.lookup.close_tables()
                rig.lookup.close()
        assert not rig.running()

    asyncio.run(bounded())


def programs(*modes, generation=0, **options):
    tables = [Table(name=mode, kind=TableKind.PROC, backend="x") for mode in modes]
    relays = [Relay(name=mode, auth=mode, helo_src=mode) for mode in modes]
    return configuration(tables=tables, generation=generation, **{"actions": (*ACTIONS, *relays), **options})


def test_a_program_that_registers_auth_checks_passwords_itself():
    async def body(rig):
        rig.lookup.open()
        assert await rig.lookup.authenticate(login("auth", "Alice"), "Secret PW")
        assert not await rig.lookup.authenticate(login("auth", "alice"), "secret pw")
        assert not await rig.lookup.authenticate(login("auth", "bob"), "Secret PW")

    play(body, programs("auth"))


def test_nobody_logs_in_as_a_user_whose_name_ends_within_the_password():
    async def body(rig):
        rig.lookup.open()
        assert not await rig.lookup.authenticate(login("auth", "alice:Secret PW"), "")
        assert not await rig.lookup.authenticate(login("auth", "alice:Secret"), "PW")

    play(body, programs("auth"))


def test_one_that_does_not_is_asked_for_the_hash():
    async def body(rig):
        rig.lookup.open()
        assert not await rig.lookup.authenticate(login("good", "alice"), "x")  # "value of alice" is no hash that fits
        assert await rig.lookup.credentials(0, "good", "label") == ("label", "value of label")
        with pytest.raises(TempFail, match="out of order"):
            await rig.lookup.authenticate(login("good", "error"), "x")

    play(body, programs("good"))


def test_every_other_service_is_asked_over_the_program():
    async def body(rig):
        rig.lookup.open()
        lookup = rig.lookup
        assert await lookup.host_name(0, "good", "2001:db8::1") == "value of [2001:db8::1]"
        assert await lookup.host_name(0, "good", "192.0.2.1") == "value of 192.0.2.1"
        assert await lookup.host_name(0, "good", "none") == ""
        assert await lookup.relay_url(0, "good", "Far.Example") == "value of far.example"
        assert await lookup.relay_url(0, "good", "") == "value of "
        assert await lookup.user(0, "good", "none") is None
        with pytest.raises(TempFail, match="expected uid:gid:directory"):
            await lookup.user(0, "good", "alice")
        with pytest.raises(TempFail, match="not an address to send from"):
            await lookup.source_addresses(0, "good")
        assert not await lookup.may_send_as(0, "good", "alice", "alice@example.org")
        assert not await lookup.may_send_as(0, "good", "none", "alice@example.org")

    play(body, programs("good"))


def test_a_table_that_fails_is_a_reply_and_what_needs_it_not_is_answered():
    async def body(rig):
        rig.lookup.open()
        refused = await rig.lookup.expand(recipient("x@other.example", helo="error"))
        assert (refused.code, refused.text) == (451, "Temporary failure: <x@other.example>")
        assert (await rig.lookup.expand(recipient("x@example.net", helo="error"))).code == 250
        listed = await rig.lookup.expand(recipient("error@example.org", helo="error"))
        assert (listed.code, listed.text) == (424, "4.2.4 Mailing list expansion problem: <error@example.org>")

    local = Local(name="local", method="maildir", userbase="users", alias="good")
    rules = (
        match("relay", dest=criterion("domain", "theirs")),
        match("local", dest=criterion("domain", "ours")),
        match("relay", helo="good"),
    )
    play(body, programs("good", rules=rules, actions=(local, RELAY)))


def test_tables_live_as_long_as_their_configuration():
    async def body(rig):
        assert rig.running() == []  # compiled, not opened
        rig.lookup.open()
        await rig.until(lambda: rig.running() == ["0 good"])
        rig.lookup.add_config(programs("good", generation=1))
        await rig.until(lambda: rig.running() == ["0 good", "1 good"])
        await rig.lookup.drop_config(0)
        assert rig.running() == ["1 good"]
        assert await rig.lookup.host_name(1, "good", "x") == "value of x"
        with pytest.raises(TempFail, match="configuration 0 is gone"):
            await rig.lookup.host_name(0, "good", "x")

    play(body, programs("good"))


def test_update_table_asks_the_program():
    async def body(rig):
        rig.lookup.open()
        assert await rig.lookup.update_table("good")
        assert 'info: Table "good" successfully updated' in rig.stream.getvalue()
        assert not await rig.lookup.update_table("dies_at_once")
        assert 'info: Failed to update table "dies_at_once"' in rig.stream.getvalue()

    play(body, programs("good", "dies_at_once"))
