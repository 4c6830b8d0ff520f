"""Whole servers with tables that are programs: whatever these do, mail is accepted or put off, in bounded time."""

import os
import signal
import smtplib
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from tests.system.server import Server, Wiring, free_port, kill, tree, wait_for
from tests.system.test_crash import account

PROGRAM = """\
#!/usr/bin/python3
import sys

for line in sys.stdin:
    if line == "config|ready\\n":
        print("register|domain\\nregister|alias\\nregister|ready", flush=True)
    fields = line.rstrip("\\n").split("|")
    if fields[0] != "table":
        continue
    if fields[4] == "update":
        print(f"update-result|{fields[5]}|ok", flush=True)
        continue
    op, service, number, key = fields[4:8]
    if key == "elsewhere.example":
        print(f"{op}-result|{number}|not-found", flush=True)
    elif key == "broken.example":
        print("nonsense", flush=True)
    else:
        print(f"{op}-result|{number}|found" + ("|x" if op == "lookup" else ""), flush=True)
"""
CONFIG = """\
table asked ours:/etc/ours.conf
listen on 127.0.0.1 port {port} hostname mail.test
action "local" maildir "{folder}/mail" user alice
action "hold" relay host "smtp://127.0.0.1:{closed}"
match from any for domain "fixed.example" action "hold"
match from any for domain <asked> action "hold"
"""


def make_server(folder: Path, wiring: Wiring, port: int, *args: str) -> Server:
    """A server whose rules ask a program about domains; nothing is delivered."""
    (folder / "bin").mkdir()
    program = folder / "bin/table-ours"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    config = CONFIG.format(port=port, folder=folder, closed=free_port())
    return Server(folder, config, wiring, ["-P", "mda", "-P", "mta", *args], path=str(folder / "bin"))


def rcpt(port: int, *domains: str) -> list[int]:
    """The codes of RCPT, one session."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.ehlo()
        client.mail("s@client.example")
        return [client.rcpt(f"x@{domain}")[0] for domain in domains]


def program_pid(server: Server) -> int:
    """The table program: the process whose arguments are its path and configuration."""

    def find() -> list[int]:
        return [pid for pid in server.pids() if "table-ours" in _arguments(pid)]

    assert wait_for(find, 20), server.log()
    return find()[0]


def _arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_program_decides_and_is_asked_again_after_an_update(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, port) as server:
        assert rcpt(port, "fixed.example", "asked.example", "elsewhere.example") == [250, 250, 550]
        pid = program_pid(server)
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert arguments[-2:] == [b"/etc/ours.conf", b""]
        if os.geteuid() == 0:
            assert os.stat(f"/proc/{pid}").st_uid != 0
        assert server.ctl("update", "table", "asked").exit == 0
        assert 'info: Table "asked" successfully updated' in server.log()
        assert program_pid(server) == pid
        server.stop()
        assert not Path(f"/proc/{pid}").exists()


@contextmanager
def load(port: int, domains: Sequence[str], clients: int = 4) -> Iterator[Counter[int]]:
    """Sessions, one after the other, in several threads; counts the codes, 0 for a broken session."""
    codes: Counter[int] = Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                codes.update(rcpt(port, *domains))
            except (OSError, smtplib.SMTPException):
                codes[0] += 1
                time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield codes
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_killed_under_load_it_comes_back_and_meanwhile_mail_is_put_off(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, port) as server:
        with load(port, ["asked.example"]) as codes:
            for _ in range(4):
                accepted = codes[250]
                assert wait_for(partial(lambda before: codes[250] > before + 5, accepted), 30), (
                    codes,
                    server.log()[-2000:],
                )
                kill(program_pid(server), signal.SIGKILL)
            accepted = codes[250]
            assert wait_for(lambda: codes[250] > accepted + 20, 30), (codes, server.log()[-2000:])
        assert set(codes) <= {250, 451}, codes
        assert "asked: killed by SIGKILL" in server.log()
        assert "table asked: ended; starting it again" in server.log()
        assert "table asked: runs again" in server.log()


def test_stopped_it_delays_nobody_else_and_its_own_questions_are_put_off_in_time(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, port) as server:
        assert rcpt(port, "asked.example") == [250]
        kill(program_pid(server), signal.SIGSTOP)
        codes: list[int] = []
        begun = time.monotonic()
        waiting = threading.Thread(target=lambda: codes.extend(rcpt(port, "asked.example")))
        waiting.start()
        for _ in range(20):
            assert rcpt(port, "fixed.example") == [250]
        assert waiting.is_alive(), "it was answered although the program is stopped"
        waiting.join(40)
        assert codes == [451]
        assert time.monotonic() - begun < 30
        assert wait_for(lambda: rcpt(port, "asked.example") == [250], 20)


def test_nonsense_is_put_off_and_the_program_replaced(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, port) as server:
        assert rcpt(port, "asked.example", "broken.example") == [250, 451]
        assert wait_for(lambda: rcpt(port, "asked.example") == [250], 20)
        assert "table asked: answers what was not asked: a line of 8 bytes" in server.log()
        assert "starting it again" in server.log()


def test_a_program_that_cannot_be_started_does_not_keep_the_server_from_starting(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    server = make_server(folder, wiring, port)
    (folder / "bin/table-ours").write_text("#!/bin/sh\nexit 5\n")
    with server:
        assert rcpt(port, "fixed.example", "asked.example") == [250, 451]
        assert wait_for(lambda: "left alone for 60 s" in server.log(), 30), server.log()
        assert rcpt(port, "fixed.example", "asked.example") == [250, 451]
        (folder / "bin/table-ours").write_text(PROGRAM)
        assert server.ctl("update", "table", "asked").exit == 0, server.log()
        assert rcpt(port, "asked.example") == [250]


def test_a_lookup_that_was_killed_gets_programs_of_its_own(folder: Path, machine: None) -> None:
    port = free_port()
    with make_server(folder, Wiring.MANY, port) as server:
        assert rcpt(port, "asked.example") == [250]
        program = program_pid(server)
        (lookup,) = [pid for pid in server.pids() if "process\0lookup" in _arguments(pid)]
        kill(lookup, signal.SIGKILL)
        assert wait_for(lambda: rcpt_or_none(port) == [250], 30), server.log()
        assert program_pid(server) != program
        assert wait_for(lambda: not Path(f"/proc/{program}").exists(), 10)


def rcpt_or_none(port: int) -> list[int] | None:
    try:
        return rcpt(port, "asked.example")
    except (OSError, smtplib.SMTPException):
        return None


def test_programs_end_with_a_server_that_is_killed(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    server = make_server(folder, wiring, port)
    server.start()
    program = program_pid(server)
    try:
        assert server.process is not None
        server.process.kill()
        assert wait_for(lambda: not Path(f"/proc/{program}").exists(), 20)
    finally:
        for pid in [program, *tree(server.process.pid if server.process else program)]:
            kill(pid, signal.SIGKILL)
        server.stop()


def test_mail_for_users_of_a_database_is_delivered(folder: Path, wiring: Wiring) -> None:
    """Domains, aliases and users by `table-sqlite`, which comes with the server."""
    port, owner = free_port(), account()
    home = folder / "home"
    home.mkdir()
    os.chown(home, owner.pw_uid, owner.pw_gid)
    with closing(sqlite3.connect(folder / "mail.sqlite")) as database, database:
        database.execute("CREATE TABLE entries (service, name, value)")
        rows = [("domain", "db.example", ""), ("alias", "staff", "bob, ann"), ("alias", "bob", "ann")]
        database.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        database.execute("CREATE TABLE users (name, uid, gid, home)")
        database.execute("INSERT INTO users VALUES ('ann', ?, ?, ?)", (owner.pw_uid, owner.pw_gid, str(home)))
    (folder / "sqlite.conf").write_text(
        f"dbpath {folder}/mail.sqlite\n"
        "query_domain SELECT name FROM entries WHERE service = 'domain' AND name = ?;\n"
        "query_alias SELECT value FROM entries WHERE service = 'alias' AND name = ?;\n"
        "query_userinfo SELECT uid, gid, home FROM users WHERE name = ?;\n"
    )
    config = f"""\
table db sqlite:{folder}/sqlite.conf
listen on 127.0.0.1 port {port} hostname mail.test
action "local" maildir userbase <db> alias <db>
match from any for domain <db> action "local"
"""
    with Server(folder, config, wiring) as server:
        assert rcpt(port, "db.example", "other.example") == [550, 550]  # nobody is x@db.example
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.sendmail("s@client.example", ["Staff@DB.example"], "Subject: from a database\r\n\r\nx\r\n")
        delivered = home / "Maildir/new"
        assert wait_for(lambda: delivered.is_dir() and list(delivered.iterdir()), 20), server.log()
        assert "Subject: from a database" in next(delivered.iterdir()).read_text()


def test_many_recipients_at_once_are_all_answered(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, port) as server, socket.create_connection(("127.0.0.1", port), 30) as client:
        stream = client.makefile("rwb")
        stream.write(b"EHLO c.example\r\nMAIL FROM:<s@client.example>\r\n")
        stream.write(b"".join(b"RCPT TO:<x@d%d.example>\r\n" % n for n in range(500)) + b"QUIT\r\n")
        stream.flush()
        codes = Counter(line[:3] for line in stream if line[3:4] == b" ")
        assert codes[b"250"] == 502, (codes, server.log()[-2000:])
