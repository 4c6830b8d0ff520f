"""Tables in memory and of system users."""

import asyncio
import pwd
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pillarbox.errors import TempFail
from pillarbox.roles.lookup import User
from pillarbox.tables.passwd import PasswdTable, system_user
from pillarbox.tables.services import Service, parse_address, parse_credentials, parse_source, parse_userinfo
from pillarbox.tables.table import MemoryTable, lookup_user


def memory(*entries):
    pairs = tuple(e if isinstance(e, tuple) else (e, "") for e in entries)
    return MemoryTable(name="t", entries=pairs, delimiter="+", on_bad_regex=lambda pattern, why: None)


def run(coroutine):
    return asyncio.run(coroutine)


def test_lookup_ignores_case_and_the_last_entry_of_a_key_counts():
    table = memory(("Root", "alice"), ("ROOT", "bob"))
    assert run(table.lookup(Service.ALIAS, "rOOt")) == "bob"
    assert run(table.lookup(Service.ALIAS, "other")) is None


def test_match_of_each_service():
    table = memory("*.example.org", "192.0.2.0/24", "alice@example.net", "^x+$")
    assert run(table.match(Service.DOMAIN, "a.example.org"))
    assert run(table.match(Service.NETADDR, "192.0.2.9"))
    assert run(table.match(Service.MAILADDR, "alice+t@example.net"))
    assert run(table.match(Service.STRING, "^X+$"))
    assert not run(table.match(Service.STRING, "xx"))


def test_fetch_goes_round():
    table = memory("b", "a", "c", "a")
    assert [run(table.fetch(Service.SOURCE)) for _ in range(4)] == ["a", "b", "c", "a"]
    assert run(memory().fetch(Service.SOURCE)) is None


def test_addrname_is_found_however_the_address_is_written():
    table = memory(("[2001:DB8::1]", "six"), ("127.0.0.1", "four"))
    assert run(table.lookup(Service.ADDRNAME, "2001:db8:0::1")) == "six"
    assert run(table.lookup(Service.ADDRNAME, "[2001:db8::1]")) == "six"
    assert run(table.lookup(Service.ADDRNAME, "127.0.0.1")) == "four"


def test_userinfo():
    table = memory(("one", "6010:6011:/tmp/a:b"), ("two", "6010:/tmp/two"), ("three", "abc:1:/"), ("four", "1:2:"))
    assert run(lookup_user(table, "ONE")) == User(name="one", uid=6010, gid=6011, home="/tmp/a:b")
    assert run(lookup_user(table, "four")).home == ""
    assert run(lookup_user(table, "nobody")) is None
    for broken in ("two", "three"):
        with pytest.raises(TempFail):
            run(lookup_user(table, broken))


def test_ids_are_bounded():
    parse_userinfo("x", "4294967294:0:/")
    for value in ("4294967295:0:/", "-1:0:/", "0:99999999999:/", "٣:0:/"):
        with pytest.raises(TempFail):
            parse_userinfo("x", value)


def test_credentials():
    assert parse_credentials("label", "user:pass:word") == ("user", "pass:word")
    assert parse_credentials("alice", "$6$salt$hash") == ("alice", "$6$salt$hash")
    for value in ("", "ab", ":abc", "abc:"):
        with pytest.raises(TempFail):
            parse_credentials("x", value)


def test_addresses():
    assert parse_source("[::1]") == "::1"
    assert parse_address("[IPv6:2001:DB8::1]") == "2001:db8::1"
    assert parse_address("fe80::1%eth0") == "fe80::1%eth0"
    assert parse_address("localhost") is None
    with pytest.raises(TempFail):
        parse_source("localhost")


def test_system_users_are_found():
    me = pwd.getpwuid(0)
    assert system_user(me.pw_name) == User(name=me.pw_name, uid=0, gid=me.pw_gid, home=me.pw_dir)
    assert system_user("no-such-user-here") is None
    assert system_user("") is None
    assert system_user("a\0b") is None


def passwd_table(find, clock):
    return PasswdTable(name="<getpwnam>", executor=ThreadPoolExecutor(1), find=find, clock=clock)


def test_found_users_are_kept_for_a_while_and_unknown_ones_are_not():
    asked = []
    now = [0.0]

    def find(name):
        asked.append(name)
        return User(name=name, uid=1, gid=1, home="/") if name == "alice" else None

    table = passwd_table(find, lambda: now[0])

    async def main():
        for _ in range(3):
            assert (await table.user("Alice")).name == "alice"
            assert await table.user("ghost") is None
        now[0] = PasswdTable.CACHE_SECONDS + 1
        await table.user("alice")

    run(main())
    assert asked == ["alice", "ghost", "ghost", "ghost", "alice"]


def test_cache_of_users_is_bounded():
    table = passwd_table(lambda name: User(name=name, uid=1, gid=1, home="/"), lambda: 0.0)
    table.CACHE_SIZE = 10

    async def main():
        for i in range(50):
            await table.user(f"u{i}")

    run(main())
    assert len(table._cache) == 10


def test_a_name_service_that_hangs_is_a_temporary_failure():
    released = threading.Event()
    table = passwd_table(lambda name: released.wait(10), lambda: 0.0)
    table.DEADLINE = 0.05
    try:
        with pytest.raises(TempFail):
            run(table.user("alice"))
    finally:
        released.set()


def test_passwd_answers_userinfo_only():
    table = passwd_table(lambda name: User(name=name, uid=1, gid=2, home="/h"), lambda: 0.0)
    assert run(table.lookup(Service.USERINFO, "x")) == "1:2:/h"
    for question in (table.lookup(Service.ALIAS, "x"), table.fetch(Service.SOURCE)):
        with pytest.raises(TempFail):
            run(question)
