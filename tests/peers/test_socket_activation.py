"""A whole server on a socket that systemd bound for it."""

import smtplib
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.system.server import Server, Wiring, bound_ports, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine")


def test_the_first_client_starts_the_server_and_is_served_by_it(folder: Path, wiring: Wiring) -> None:
    activate, port = program("systemd-socket-activate"), free_port()
    config = f'listen on 127.0.0.1 port {port}\naction "a" expand-only\nmatch for local action "a"\n'
    prefix = [activate, "-E", "PATH", "-l", f"127.0.0.1:{port}"]
    server = Server(folder / "server", config, wiring, dispatchers=2, prefix=prefix)
    server.launch()
    try:
        assert wait_for(lambda: port in bound_ports(), 20)
        assert "Pillarbox" not in server.log()
        for _ in range(4):
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                assert client.ehlo()[0] == 250
        assert wait_for(lambda: "info: ready" in server.log(), 30)
        assert "warn" not in server.log()
    finally:
        assert server.stop() == 0, server.log()
