"""`table-redis` against Redis: its commands, and what their replies mean."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.servers import RedisServer, running
from tests.sdk.child import Child, installed
from tests.system.server import wait_for

pytest.importorskip("redis")
pytestmark = pytest.mark.xdist_group("table-redis")

DEFAULT = ["alias", "domain", "credentials", "netaddr", "userinfo", "source", "mailaddr", "addrname"]


@pytest.fixture
def server(place: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with nothing in it."""
    made = RedisServer(place / request.node.name[:30])
    with running(made):
        yield made


def child(place: Path, *lines: str) -> Child:
    """The program with this configuration."""
    file = place / "table.conf"
    file.write_text("".join(f"{line}\n" for line in lines))
    return Child([installed("table-redis"), str(file)])


def test_with_no_command_in_the_file_each_service_has_its_keys(server: RedisServer, place: Path) -> None:
    server.command("SET", "alias:a|b c", "alice, |/bin/cat -u")
    server.command("SET", "credentials:alice", "alice:$2b$08$a|b")
    server.command("SET", "userinfo:alice", "1000:1000:/home/alice")
    plain = {
        "domain": "example.org",
        "netaddr": "192.0.2.1",
        "source": "192.0.2.7",
        "addrname": "mx",
        "mailaddr": "a@b",
    }
    for service, value in plain.items():
        server.command("SET", f"{service}:k", value)
    with child(place, f"master_port {server.port}") as program:
        assert program.registered == DEFAULT
        assert program.lookup("alias", "a|b c") == "found|alice, |/bin/cat -u"
        assert program.lookup("credentials", "alice") == "found|alice:$2b$08$a|b"
        assert program.lookup("userinfo", "alice") == "found|1000:1000:/home/alice"
        for service, value in plain.items():
            assert program.lookup(service, "k") == f"found|{value}"
            assert program.check(service, "k") == "found"
        for service in DEFAULT:
            assert program.lookup(service, "nobody") == program.check(service, "nobody") == "not-found"
        assert program.end() == 0
        assert program.log() == ""


def test_the_commands_of_the_reference_s_manual_work(server: RedisServer, place: Path) -> None:
    server.command("SADD", "domains", "example.net")
    server.command(
        "HSET", "user:foo", "uid", "1001", "gid", "1002", "maildir", "/mail/foo", "login", "foo", "passwd", "$6$x"
    )
    server.command("RPUSH", "aliases:foo@example.net", "foo", "bar@example.org")
    server.command("SADD", "mailaddr", "foo@example.net")
    server.command("HSET", "user:half", "uid", "1001")
    lines = [
        f"master unix:{server.socket}",
        "query_domain SISMEMBER domains %s",
        "query_userinfo HMGET user:%s uid gid maildir",
        "query_credentials HMGET user:%s login passwd",
        "query_alias LRANGE aliases:%s 0 -1",
        "query_mailaddr SISMEMBER mailaddr %s",
        "query_mailaddrmap LRANGE aliases:%s 0 -1",
    ]
    with child(place, *lines) as program:
        assert program.lookup("userinfo", "foo") == "found|1001:1002:/mail/foo"
        assert program.lookup("credentials", "foo") == "found|foo:$6$x"
        assert program.lookup("alias", "foo@example.net") == "found|foo, bar@example.org"
        assert program.lookup("mailaddrmap", "foo@example.net") == "found|foo, bar@example.org"
        assert program.check("domain", "example.net") == program.check("mailaddr", "foo@example.net") == "found"
        assert program.lookup("domain", "example.net") == "found|example.net"
        for service in ("userinfo", "credentials", "alias", "domain", "mailaddr", "mailaddrmap"):
            assert program.lookup(service, "nobody") == program.check(service, "nobody") == "not-found"
        assert program.lookup("userinfo", "half").startswith("error|the reply lacks a part")


def test_a_key_is_one_word_of_a_command_whatever_it_holds(server: RedisServer, place: Path) -> None:
    server.command("SET", "100% a|b\r x %s caf\u00e9", "there")
    server.command("SET", "victim", "untouched")
    with child(place, f"master unix:{server.socket}", "query_alias GET 100%%%s") as program:
        assert program.lookup("alias", " a|b\r x %s caf\u00e9") == "found|there"
        assert program.lookup("alias", "x\r\nDEL victim".replace("\n", "")) == "not-found"
        assert program.lookup("alias", "caf\udce9") == "not-found"
    with child(place, f"master unix:{server.socket}", "query_alias GET %s") as program:
        assert program.lookup("alias", "victim") == "found|untouched"


def test_a_command_that_is_wrong_is_an_error_with_the_reason(server: RedisServer, place: Path) -> None:
    server.command("SADD", "alias:set", "x")
    lines = [f"master unix:{server.socket}", "query_domain NONSENSE %s", "query_userinfo INCR n:%s"]
    with child(place, *lines) as program:
        assert program.lookup("alias", "set").startswith("error|Redis: WRONGTYPE")
        assert program.lookup("domain", "x").startswith("error|Redis: ")
        assert program.lookup("userinfo", "x") == "error|query_userinfo replies with a number"
        assert program.lookup("alias", "nobody") == "not-found"


def test_a_list_is_fetched_in_turn(server: RedisServer, place: Path) -> None:
    server.command("SADD", "sources", "192.0.2.2", "192.0.2.1")
    with child(place, f"master unix:{server.socket}", "fetch_source SMEMBERS sources") as program:
        assert [program.fetch("source") for _ in range(3)] == ["found|192.0.2.1", "found|192.0.2.2", "found|192.0.2.1"]


def test_database_and_password_are_used(place: Path) -> None:
    server = RedisServer(place / "closed", "--requirepass", "se cret")
    with running(server):
        with child(place, f"master unix:{server.socket}", "database 3") as program:
            assert "NOAUTH" in program.lookup("alias", "x") or "Authentication" in program.lookup("alias", "x")
        with child(place, f"master unix:{server.socket}", "database 3", "password se cret") as program:
            assert program.lookup("alias", "x") == "not-found"
        with child(place, f"master unix:{server.socket}", "password wrong") as program:
            assert "WRONGPASS" in program.lookup("alias", "x") or "invalid" in program.lookup("alias", "x")


def test_a_slave_answers_while_the_master_is_away_and_nobody_is_an_error(server: RedisServer, place: Path) -> None:
    slave = RedisServer(place / "slave")
    with running(slave):
        server.command("SET", "alias:root", "master")
        slave.command("SET", "alias:root", "slave")
        lines = [f"master_port {server.port}", f"slave 127.0.0.1\nslave_port {slave.port}"]
        with child(place, *lines) as program:
            assert program.lookup("alias", "root") == "found|master"
            server.stop()
            assert program.lookup("alias", "root") == "found|slave"
            slave.stop()
            assert program.lookup("alias", "root").startswith("error|")
            assert program.update().startswith("error|")
            server.start()
            server.command("SET", "alias:root", "again")
            assert wait_for(lambda: program.lookup("alias", "root") == "found|again", 20), program.log()


def test_a_server_that_hangs_is_an_error_within_the_deadline(server: RedisServer, place: Path) -> None:
    with child(place, f"master unix:{server.socket}") as program:
        assert program.lookup("alias", "root") == "not-found"
        server.pause()
        before = time.monotonic()
        assert program.lookup("alias", "root").startswith("error|")
        assert time.monotonic() - before < 15
        server.stop()
        server.start()
        assert wait_for(lambda: program.lookup("alias", "root") == "not-found", 30), program.log()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("database 257", "database must be a number from 0 to 256"),
        ("master_port 70000", "master_port must be a number from 0 to 65535"),
        ("password", '"password" has no value'),
        ("database 1\ndatabase 2", '"database" was given before'),
    ],
)
def test_a_file_that_is_wrong_ends_the_program_with_the_reason(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "table.conf"
    file.write_text(f"{line}\n")
    with Child([installed("table-redis"), str(file)], handshake=[]) as program:
        assert program.process.wait(20) == 1
        assert said in program.log()
