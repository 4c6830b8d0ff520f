"""`table-postgres`: what only PostgreSQL has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.servers import Postgres, running
from tests.sdk.child import Child, installed

pytest.importorskip("psycopg")
pytestmark = pytest.mark.xdist_group("table-postgres")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Postgres]:
    """A server with nothing in it."""
    made = Postgres(place / "postgres")
    with running(made):
        yield made


def child(server: Postgres, *lines: str) -> Child:
    """The program with this configuration."""
    file = server.folder / "table.conf"
    file.write_text("\n".join([f"conninfo {server.conninfo}", *lines]) + "\n")
    return Child([installed("table-postgres"), str(file)])


def test_values_of_any_type_are_the_text_that_the_server_gives_them(server: Postgres) -> None:
    lines = [
        "query_netaddr SELECT $1::inet",
        "query_domain SELECT $1 = 'x'",
        "query_userinfo SELECT 1000::bigint, 1000.5::numeric, E'\\x41'::bytea WHERE $1 <> ''",
        "query_string SELECT current_setting('client_encoding') WHERE $1 = 'k'",
    ]
    with child(server, *lines) as program:
        assert program.lookup("netaddr", "192.0.2.1") == "found|192.0.2.1"
        assert program.lookup("domain", "x") == "found|t"
        assert program.lookup("userinfo", "a") == "found|1000:1000.5:\\x41"
        assert program.lookup("string", "k") == "found|UTF8"
        assert program.lookup("netaddr", "nonsense").startswith("error|PostgreSQL: invalid input syntax for type inet")
        assert program.lookup("netaddr", "192.0.2.2") == "found|192.0.2.2"  # the connection is as good as before


def test_a_slow_query_delays_no_other_question(server: Postgres) -> None:
    lines = [
        "query_alias SELECT 'slow' FROM pg_sleep(2) WHERE $1 <> ''",
        "query_domain SELECT 'quick' WHERE $1 <> ''",
    ]
    with child(server, *lines) as program:
        program.send("table|0.1|1|t|lookup|alias|slow|k")
        assert [program.lookup("domain", "k") for _ in range(20)] == ["found|quick"] * 20
        assert program.line() == "lookup-result|slow|found|slow"


def test_a_flood_of_questions_is_answered_over_few_connections(server: Postgres) -> None:
    with child(server, "query_alias SELECT $1 || '!' FROM pg_sleep(0.001)") as program:
        program.send(*(f"table|0.1|1|t|lookup|alias|{n}|{n}" for n in range(500)))
        assert {program.line() for _ in range(500)} == {f"lookup-result|{n}|found|{n}!" for n in range(500)}
    with child(server, "query_string SELECT count(*) FROM pg_stat_activity WHERE application_name = $1") as program:
        program.send(*(f"table|0.1|1|t|lookup|string|{n}|table-postgres" for n in range(100)))
        assert all(1 <= int(program.line().rpartition("|")[2]) <= 8 for _ in range(100))  # four, and four that end


def test_a_conninfo_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.conf"
    file.write_text("conninfo nonsense\nquery_alias SELECT $1\n")
    with Child([installed("table-postgres"), str(file)], handshake=[]) as program:
        assert program.process.wait(20) == 1
        assert 'conninfo: missing "=" after "nonsense"' in program.log()


def test_the_reference_s_example_works_as_it_is(server: Postgres) -> None:
    server.sql(
        "CREATE TABLE virtuals (id SERIAL, email VARCHAR(255) NOT NULL, destination VARCHAR(255) NOT NULL);"
        "INSERT INTO virtuals (email, destination) VALUES ('abuse@example.com', 'bob@example.com');"
    )
    with child(server, "query_alias SELECT destination FROM virtuals WHERE email=$1;") as program:
        assert program.lookup("alias", "abuse@example.com") == "found|bob@example.com"
        assert program.lookup("alias", "nobody@example.com") == "not-found"
