"""Limits of a whole server: exact over its dispatchers, and given back when one of them, or lookup, is killed."""

import signal
import smtplib
import socket
from pathlib import Path

import pytest

from tests.system.server import Server, Wiring, free_port, kill, wait_for
from tests.system.test_crash import role

CONFIG = """\
smtp limit max-session-per-source 6 max-session 8
smtp rate mails-per-source 4 1h
listen on 127.0.0.1 port {port} hostname mail.example.org
action "a" expand-only
match from any for any action "a"
"""


def serve(folder: Path, wiring: Wiring, port: int) -> Server:
    return Server(folder / "server", CONFIG.format(port=port), wiring, dispatchers=3)


def connect(port: int, source: str = "127.0.0.1") -> tuple[socket.socket, str]:
    """A connection, and what it was greeted with."""
    client = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
    return client, client.makefile().readline().strip()


def fill(port: int, most: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """So many sessions, perhaps only after a moment, and never one more."""
    taken: list[socket.socket] = []

    def refused() -> bool:
        client, greeting = connect(port, source)
        if greeting.startswith("220 "):
            taken.append(client)
            return False
        client.close()
        assert greeting.startswith("421 4."), greeting
        return len(taken) >= most

    assert wait_for(refused, 20)
    assert len(taken) == most
    return taken


def turned_away(port: int) -> bool:
    """Whether there is no room for one more."""
    client, greeting = connect(port)
    client.close()
    return greeting.startswith("421 ")


def test_so_many_sessions_a_source_and_in_all_over_all_dispatchers(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with serve(folder, wiring, port) as server:
        first = fill(port, 6)
        second = fill(port, 2, "127.0.0.2")
        assert "smtp refused address=127.0.0.1 limit=max-session-per-source" in server.log()
        assert "smtp refused address=127.0.0.2 limit=max-session" in server.log()
        for client in first:
            client.close()
        for client in (*fill(port, 6), *second):
            client.close()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("victim", ["dispatcher", "lookup"])
def test_counts_survive_who_is_killed_and_what_the_dead_held_is_free_again(folder: Path, victim: str) -> None:
    port = free_port()
    with serve(folder, Wiring.MANY, port) as server:
        taken = fill(port, 6)
        for pid in (victims := role(server, victim)):
            kill(pid, signal.SIGKILL)
        assert victims
        assert wait_for(lambda: not set(victims) & set(role(server, victim)) and role(server, victim), 20)
        if victim == "dispatcher":
            taken += fill(port, 6)  # the sessions died with those that held them
        else:
            # Until it is back and has been told, nobody is kept out.
            assert wait_for(lambda: turned_away(port), 20)
            assert turned_away(port)
        for client in taken:
            client.close()


def test_mail_is_for_later_above_a_rate_whichever_dispatcher_takes_it(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with serve(folder, wiring, port) as server:
        for sent in range(6):
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.ehlo()
                code, _ = client.mail("s@client.example.net")
                assert code == (250 if sent < 4 else 450)
        assert "smtp limited limit=mails-per-source address=127.0.0.1 user=<none>" in server.log()
