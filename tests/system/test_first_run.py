"""`make run` and `make hello`, as the README says: a server in the foreground, and a first message that arrives."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.server import BIN, bound_ports, free_port, kill, tree, wait_for

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"


def test_a_first_server_takes_and_shows_a_first_message(folder: Path) -> None:
    if BIN.name != "bin" or BIN.parent.name != "venv":
        pytest.skip("not in an environment that tools/setup made")
    port = free_port()
    places = {
        "PILLARBOX_HOME": str(BIN.parent.parent),
        "PILLARBOX_PORT": str(port),
        "PILLARBOX_STATE": str(folder / "run"),
    }
    environ = {**os.environ, **places}
    screen = folder / "screen"
    with screen.open("wb") as file:
        server = subprocess.Popen([TOOLS / "run"], env=environ, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: port in bound_ports() or server.poll() is not None, 30), screen.read_text()
        done = subprocess.run(
            [BIN / "python", TOOLS / "hello"], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + screen.read_text()
        assert "Subject: A first message" in done.stdout
        assert "It works." in done.stdout
        shown = screen.read_text()
        for said in (f"127.0.0.1 port {port}", str(folder / "run/smtpd.conf"), "make hello"):
            assert said in shown
    finally:
        for pid in tree(server.pid):
            kill(pid, signal.SIGTERM)
        assert server.wait(20) == 0, screen.read_text()
