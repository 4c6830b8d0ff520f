"""`table-sqlite`, `table-postgres` and `table-mysql` against the real databases: what they share."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.servers import PASSWORD, Database, Mariadb, Postgres, running
from tests.sdk.child import Child, installed
from tests.system.server import wait_for

SERVICES = ["alias", "domain", "credentials", "netaddr", "userinfo", "source", "mailaddr", "addrname", "mailaddrmap"]
OURS = ["relayhost", "string", "regex"]
COLUMNS = {"credentials": "a, b", "userinfo": "a, b, c"}

# service, key, columns
ROWS = [
    ("alias", "root", "alice", None, None),
    ("alias", "root", "bob@example.org", None, None),
    ("alias", "a|b", "|/usr/bin/cat -u", None, None),
    ("alias", "o'neil\"%s\\", "caf\u00e9 %s ? $1", None, None),
    ("alias", "null", None, None, None),
    ("alias", "empty", "", None, None),
    ("alias", "lines", "one\ntwo", None, None),
    ("domain", "example.org", "example.org", None, None),
    ("credentials", "alice", "alice", "$2b$08$a:b/c|d", None),
    ("credentials", "nullpw", "alice", None, None),
    ("netaddr", "192.0.2.1", "192.0.2.1", None, None),
    ("userinfo", "alice", "1000", "1001", "/home/a:b|c"),
    ("source", "k", "192.0.2.7", None, None),
    ("mailaddr", "a@example.org", "a@example.org", None, None),
    ("addrname", "192.0.2.1", "mx.example.org", None, None),
    ("mailaddrmap", "alice", "a@example.org", None, None),
    ("mailaddrmap", "alice", "@example.net", None, None),
    ("relayhost", "k", "smtp://relay.example.org", None, None),
    ("string", "tag", "tag", None, None),
    ("regex", "subject", "subject", None, None),
    ("fetched", "", "192.0.2.20", None, None),
    ("fetched", "", "192.0.2.10", None, None),
    ("fetched", "", "192.0.2.10", None, None),
]


@dataclass
class Case:
    """One kind of database with its program."""

    name: str
    where: str  # the lines of the configuration that say where it is
    parameter: str
    sql: Callable[[str], None]
    stop: Callable[[], None]
    start: Callable[[], None]
    pause: Callable[[], None] | None
    folder: Path

    def config(self, *more: str, queries: bool = True) -> Path:
        """A configuration file with a query for each service."""
        lines = [self.where, "# a comment", ""]
        if queries:
            for service in [*SERVICES, *OURS]:
                where = f"service='{service}' AND k={self.parameter} ORDER BY n"
                lines.append(f"query_{service}\tSELECT {COLUMNS.get(service, 'a')} FROM kv WHERE {where};")
            lines.append("fetch_source SELECT a FROM kv WHERE service='fetched'")
        file = self.folder / "table.conf"
        file.write_text("\n".join([*lines, *more]) + "\n")
        return file

    def child(self, file: Path) -> Child:
        """The program with that configuration."""
        return Child([installed(f"table-{self.name}"), str(file)])


def _literal(value: str | None, *, backslashes: bool) -> str:
    if value is None:
        return "NULL"
    text = value.replace("'", "''")
    return f"'{text.replace(chr(92), chr(92) * 2) if backslashes else text}'"


def _fill(sql: Callable[[str], None], *, backslashes: bool = False) -> None:
    values = ", ".join(
        f"({n}, {', '.join(_literal(value, backslashes=backslashes) for value in row)})" for n, row in enumerate(ROWS)
    )
    sql(f"INSERT INTO kv VALUES {values};")


SCHEMA = "CREATE TABLE kv (n INT, service VARCHAR(20), k VARCHAR(99), a VARCHAR(99), b VARCHAR(99), c VARCHAR(99))"


@contextlib.contextmanager
def _sqlite(place: Path) -> Iterator[Case]:
    """Stopped: the file is away. Started again: another one is there."""
    path = place / "it's 100%.db"

    def sql(text: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript(text)

    def start() -> None:
        sql(f"{SCHEMA};")
        _fill(sql)

    start()
    yield Case("sqlite", f"dbpath {path}", "?", sql, path.unlink, start, None, place)


@contextlib.contextmanager
def _postgres(place: Path) -> Iterator[Case]:
    pytest.importorskip("psycopg")
    server = Postgres(place / "postgres")
    with running(server):
        server.sql(f"CREATE ROLE table_ LOGIN PASSWORD 'x'; {SCHEMA}; GRANT SELECT ON kv TO table_;")
        _fill(server.sql)
        yield _case("postgres", f"conninfo {server.conninfo}", "$1", server.sql, server, place)


@contextlib.contextmanager
def _mysql(place: Path) -> Iterator[Case]:
    pytest.importorskip("pymysql")
    server = Mariadb(place / "mariadb")
    with running(server):
        server.sql(f"CREATE DATABASE mail CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci; USE mail; {SCHEMA};")
        for host in ("localhost", "127.0.0.1"):
            account = f"'mail'@'{host}'"
            quoted = PASSWORD.replace("'", "''")
            server.sql(f"CREATE USER {account} IDENTIFIED BY '{quoted}'; GRANT SELECT ON mail.* TO {account};")
        _fill(lambda text: server.sql(f"USE mail; {text}"), backslashes=True)
        where = f"socket {server.socket}\nusername mail\npassword {PASSWORD}\ndatabase mail"
        yield _case("mysql", where, "?", lambda text: server.sql(f"USE mail; {text}"), server, place)


def _case(name: str, where: str, parameter: str, sql: Callable[[str], None], server: Database, place: Path) -> Case:
    return Case(name, where, parameter, sql, server.stop, server.start, server.pause, place)


CASES = {"sqlite": _sqlite, "postgres": _postgres, "mysql": _mysql}


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.xdist_group(f"table-{n}")) for n in CASES])
def case(request: pytest.FixtureRequest, place: Path) -> Iterator[Case]:
    """Each database, with the same rows in it."""
    with CASES[request.param](place) as made:
        yield made


def test_every_service_is_answered(case: Case) -> None:
    with case.child(case.config()) as child:
        assert child.registered == [*SERVICES, *OURS]
        assert child.lookup("alias", "root") == "found|alice, bob@example.org"
        assert child.lookup("domain", "example.org") == "found|example.org"
        assert child.lookup("credentials", "alice") == "found|alice:$2b$08$a:b/c|d"
        assert child.lookup("netaddr", "192.0.2.1") == "found|192.0.2.1"
        assert child.lookup("userinfo", "alice") == "found|1000:1001:/home/a:b|c"
        assert child.lookup("source", "k") == "found|192.0.2.7"
        assert child.lookup("mailaddr", "a@example.org") == "found|a@example.org"
        assert child.lookup("addrname", "192.0.2.1") == "found|mx.example.org"
        assert child.lookup("mailaddrmap", "alice") == "found|a@example.org, @example.net"
        assert child.lookup("relayhost", "k") == "found|smtp://relay.example.org"
        assert child.check("string", "tag") == child.check("regex", "subject") == "found"
        for service in [*SERVICES, *OURS]:
            assert child.lookup(service, "nobody") == child.check(service, "nobody") == "not-found"
        assert child.end() == 0
        assert child.log() == ""


def test_keys_and_values_may_hold_anything(case: Case) -> None:
    with case.child(case.config()) as child:
        assert child.lookup("alias", "a|b") == "found||/usr/bin/cat -u"
        assert child.lookup("alias", "o'neil\"%s\\") == "found|caf\u00e9 %s ? $1"
        for key in ("' OR 1=1 --", "x' OR 'a'='a", "\\' OR 1=1 #", "%", "%s", "?", "$1", "caf\u00e9", "", "x" * 5000):
            assert child.lookup("alias", key) == "not-found"
        assert child.lookup("alias", "caf\udce9") == "error|the key is no UTF-8"


def test_a_value_that_is_none_is_an_error_and_not_not_found(case: Case) -> None:
    with case.child(case.config()) as child:
        assert child.lookup("alias", "null") == "error|query_alias returns NULL"
        assert child.lookup("credentials", "nullpw") == "error|query_credentials returns NULL"
        assert child.lookup("alias", "empty") == "error|the value is empty"
        assert child.lookup("alias", "lines") == "error|the value holds a line break or a NUL"
        assert child.check("alias", "null") == "found"


def test_a_list_is_fetched_in_turn(case: Case) -> None:
    with case.child(case.config("fetch_relayhost SELECT a FROM kv WHERE 1=0")) as child:
        got = [child.fetch("source") for _ in range(3)]
        assert got == ["found|192.0.2.10", "found|192.0.2.20", "found|192.0.2.10"]
        assert child.fetch("relayhost") == "not-found"


def test_a_list_is_asked_for_again_after_as_many_values_as_the_file_says(case: Case) -> None:
    with case.child(case.config("fetch_source_refresh 2", "fetch_source_expire 3600")) as child:
        assert [child.fetch("source") for _ in range(2)] == ["found|192.0.2.10", "found|192.0.2.20"]
        case.sql("INSERT INTO kv VALUES (99, 'fetched', '', '192.0.2.05', NULL, NULL)")
        try:
            assert child.fetch("source") == "found|192.0.2.05"
        finally:
            case.sql("DELETE FROM kv WHERE n = 99")


def test_an_update_reads_the_file_again_and_a_bad_one_changes_nothing(case: Case) -> None:
    query = "query_alias SELECT {} FROM kv WHERE service='domain' AND k=" + case.parameter
    with case.child(case.config(query.format("'old'"), queries=False)) as child:
        assert child.lookup("alias", "example.org") == "found|old"
        case.config(query.format("'new'"), "query_domain SELECT 1", queries=False)
        assert child.lookup("alias", "example.org") == "found|old"
        assert child.update() == "ok"
        assert child.lookup("alias", "example.org") == "found|new"
        case.config(queries=False)
        assert child.update() == f"error|{case.folder}/table.conf: there is no query_… and no fetch_… in it"
        (case.folder / "table.conf").unlink()
        assert child.update() == f"error|{case.folder}/table.conf: No such file or directory"
        assert child.lookup("alias", "example.org") == "found|new"
        assert "new lookups (domain) are known to the server after it was started again" in child.log()


def test_a_query_that_is_wrong_is_an_error_with_the_reason(case: Case) -> None:
    wrong = [
        "query_alias SELECT a FROM nowhere WHERE k=" + case.parameter,
        "query_userinfo SELECT a, b FROM kv WHERE k=" + case.parameter,
        "query_domain SELECT a FROM kv",
        "query_string DELETE FROM kv WHERE k=" + case.parameter,
    ]
    with case.child(case.config(*wrong, queries=False)) as child:
        assert child.lookup("alias", "root").startswith("error|")
        assert "nowhere" in child.lookup("alias", "root")
        assert child.lookup("userinfo", "alice") == "error|query_userinfo returns 2 columns, not 3"
        assert child.lookup("domain", "example.org").startswith("error|")
        assert child.lookup("string", "nobody").startswith("error|")


def test_a_database_that_comes_and_goes_is_errors_meanwhile(case: Case) -> None:
    with case.child(case.config()) as child:
        assert child.lookup("alias", "root").startswith("found|")
        case.stop()
        try:
            assert child.lookup("alias", "root").startswith("error|")
            assert child.check("domain", "nowhere.example").startswith("error|")
            assert child.fetch("source").startswith("error|")
            assert child.update().startswith("error|")
            with case.child(case.config()) as late:
                assert late.lookup("alias", "root").startswith("error|")
                assert "started without the database" in late.log()
                case.start()
                for each in (child, late):
                    assert wait_for(lambda each=each: each.lookup("alias", "root").startswith("found|"), 20), each.log()
                    assert each.lookup("alias", "nobody") == "not-found"
        finally:
            if "started" not in child.log() and not wait_for(lambda: child.check("alias", "root") == "found", 20):
                case.start()


def test_a_database_that_was_restarted_between_two_questions_costs_no_error(case: Case) -> None:
    with case.child(case.config()) as child:
        assert child.lookup("alias", "root").startswith("found|")
        case.stop()
        case.start()
        assert child.lookup("alias", "root") == "found|alice, bob@example.org"


def test_a_database_that_hangs_is_an_error_within_the_deadline(case: Case) -> None:
    if case.pause is None:
        pytest.skip("SQLite has no server that could hang")
    with case.child(case.config()) as child:
        assert child.lookup("alias", "root").startswith("found|")
        case.pause()
        try:
            before = time.monotonic()
            assert child.lookup("alias", "root").startswith("error|")
            assert time.monotonic() - before < 15
        finally:
            case.stop()
            case.start()
        assert wait_for(lambda: child.lookup("alias", "root").startswith("found|"), 30), child.log()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "table.conf: No such file or directory"),
        ("query_alias SELECT 1\n", "is missing"),
        ("fetch_source_expire soon\n", "fetch_source_expire must be a number from 0 to 2147483647"),
    ],
)
def test_a_file_that_is_wrong_ends_the_program_with_the_reason(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    file = tmp_path / "table.conf"
    if text is not None:
        where = {"sqlite": "dbpath /nowhere\n", "postgres": "conninfo host=/nowhere\n", "mysql": "host /nowhere\n"}
        file.write_text(text if "SELECT" in text else f"{where[name]}{text}fetch_source SELECT 1\n")
    if name == "mysql" and said == "is missing":
        pytest.skip("table-mysql needs no key: everything about a connection has a default")
    with Child([installed(f"table-{name}"), str(file)], handshake=[]) as child:
        assert child.process.wait(20) == 1
        assert said in child.log()
        assert child.log().startswith(f"table-{name}: {file}")


@pytest.mark.parametrize("name", CASES)
def test_a_call_without_a_file_is_told_the_usage(name: str) -> None:
    with Child([installed(f"table-{name}")], handshake=[]) as child:
        assert child.process.wait(20) == 1
        assert child.log().startswith(f"usage: table-{name} FILE")
