"""Whole servers whose tables are in real databases: `table NAME sqlite:/file` with no further set-up."""

import contextlib
import smtplib
import sqlite3
from pathlib import Path

import pytest

from tests.backends.servers import Postgres, running
from tests.system.server import Server, Wiring, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

RULES = """\
table domains {name}:{file}
table virtuals {name}:{file}
action "local" maildir virtual <virtuals>
match from any for domain <domains> action "local"
"""


def serve(folder: Path, wiring: Wiring, port: int, name: str, file: Path) -> Server:
    """A server whose domains and virtual users are asked of a program."""
    listen = f"listen on 127.0.0.1 port {port} hostname mail.example.org\n"
    return Server(folder / "server", listen + RULES.format(name=name, file=file), wiring)


def code(port: int, rcpt: str) -> int:
    """The code of the reply to a recipient."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("client.example.net")
        client.mail("s@client.example.net")
        return client.rcpt(rcpt)[0]


def test_mail_is_delivered_by_what_a_sqlite_file_says(folder: Path, wiring: Wiring) -> None:
    port, file = free_port(), folder / "sqlite.conf"
    with contextlib.closing(sqlite3.connect(folder / "mail.db")) as database:
        database.executescript(
            "CREATE TABLE domains (domain); INSERT INTO domains VALUES ('example.com');"
            "CREATE TABLE virtuals (email, destination); INSERT INTO virtuals VALUES ('sales@example.com', 'alice');"
        )
    file.write_text(
        f"dbpath {folder}/mail.db\nquery_domain SELECT domain FROM domains WHERE domain=?\n"
        "query_alias SELECT destination FROM virtuals WHERE email=?\n"
    )
    with serve(folder, wiring, port, "sqlite", file) as server:
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.sendmail("s@client.example.net", ["Sales@Example.COM"], "Subject: x\r\n\r\nhello\r\n")
        new = Path("/home/alice/Maildir/new")
        assert wait_for(lambda: new.exists() and any(new.iterdir()), 20), server.log()
        assert code(port, "nobody@example.com") == 524
        assert code(port, "sales@elsewhere.example") == 550


def test_mail_waits_while_postgresql_is_away(folder: Path, wiring: Wiring) -> None:
    pytest.importorskip("psycopg")
    port, file = free_port(), folder / "postgres.conf"
    database = Postgres(folder / "postgres")
    with running(database):
        database.sql("CREATE TABLE virtuals (email TEXT, destination TEXT)")
        database.sql("INSERT INTO virtuals VALUES ('sales@example.com', 'alice')")
        file.write_text(
            f"conninfo {database.conninfo}\nquery_domain SELECT 1 WHERE $1 = 'example.com'\n"
            "query_alias SELECT destination FROM virtuals WHERE email=$1\n"
        )
        with serve(folder, wiring, port, "postgres", file) as server:
            assert code(port, "sales@example.com") == 250, server.log()
            database.stop()
            assert code(port, "sales@example.com") == 451, server.log()
            assert code(port, "nobody@example.com") == 451
            database.start()
            assert wait_for(lambda: code(port, "sales@example.com") == 250, 30), server.log()
            assert code(port, "nobody@example.com") == 524
