"""`table-mysql`: what only MySQL and MariaDB have."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.servers import PASSWORD, Mariadb, running
from tests.sdk.child import Child, installed

pytestmark = pytest.mark.xdist_group("table-mysql")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Mariadb]:
    """A server with a database and its user."""
    made = Mariadb(place / "mariadb")
    quoted = PASSWORD.replace("'", "''")
    with running(made):
        made.sql(
            f"CREATE DATABASE mail; CREATE USER mail@127.0.0.1 IDENTIFIED BY '{quoted}';"
            "GRANT ALL ON mail.* TO mail@127.0.0.1"
        )
        yield made


def child(server: Mariadb, *lines: str, password: str = PASSWORD) -> Child:
    """The program with this configuration, over TCP."""
    file = server.socket.parent.parent / "table.conf"
    where = f"host 127.0.0.1\nport {server.port}\nusername mail\npassword {password}\ndatabase mail"
    file.write_text("\n".join([where, *lines]) + "\n")
    return Child([installed("table-mysql"), str(file)])


@pytest.mark.parametrize("collation", ["utf8mb4_bin", "utf8mb4_german2_ci", "latin1_swedish_ci", "utf8mb3_general_ci"])
def test_a_key_is_compared_in_whatever_collation_the_column_has(server: Mariadb, collation: str) -> None:
    charset = collation.partition("_")[0]
    server.sql(
        f"USE mail; DROP TABLE IF EXISTS t; CREATE TABLE t (k VARCHAR(50), v VARCHAR(50)) CHARACTER SET {charset}"
        f" COLLATE {collation}; INSERT INTO t VALUES ('caf\u00e9', 'na\u00efve')"
    )
    with child(server, "query_alias SELECT v FROM t WHERE k=?") as program:
        assert program.lookup("alias", "caf\u00e9") == "found|na\u00efve"
        # A column that cannot hold the key makes MySQL refuse to compare them; its word is passed on.
        beyond = "not-found" if charset == "utf8mb4" else "error|MySQL: Illegal mix of collations"
        assert program.lookup("alias", "\U0001f600").startswith(beyond)


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"])
def test_no_key_gets_out_of_its_quotes(server: Mariadb, mode: str) -> None:
    server.sql(f"SET GLOBAL sql_mode = '{mode}'")
    server.sql("USE mail; DROP TABLE IF EXISTS t; CREATE TABLE t (k VARCHAR(50), v VARCHAR(50))")
    server.sql("USE mail; INSERT INTO t VALUES (CHAR(92, 39), 'backslash and quote'), ('x', 'other')")
    with child(server, "query_alias SELECT v FROM t WHERE k=?") as program:
        assert program.lookup("alias", "\\'") == "found|backslash and quote"
        for key in ("' OR ''='", "\\' OR 1=1 -- ", "\\\\' OR 1=1 -- ", '" OR 1=1 -- ', "\u00bf' OR 1=1 -- "):
            assert program.lookup("alias", key) == "not-found"


def test_values_of_any_type_are_text(server: Mariadb) -> None:
    query = "query_userinfo SELECT CAST(? AS SIGNED), 1000, CAST('/home' AS BINARY)"
    with child(server, query, "query_domain SELECT DATE '2026-03-26' WHERE ? = ''") as program:
        assert program.lookup("userinfo", "42") == "found|42:1000:/home"
        assert program.lookup("domain", "") == "found|2026-03-26"


def test_a_password_that_is_refused_is_an_error_until_the_file_is_mended(server: Mariadb) -> None:
    with child(server, "query_alias SELECT ?", password="wrong") as program:
        assert program.lookup("alias", "x").startswith("error|MySQL: Access denied for user 'mail'")
        with child(server, "query_alias SELECT ?"):
            pass  # the file is right now
        assert program.update() == "ok"
        assert program.lookup("alias", "x") == "found|x"
