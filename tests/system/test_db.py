"""A server with `db:` tables, as an operator has it: made by makemap, closed to others, made anew while it runs."""

import smtplib
from pathlib import Path

import pytest

from tests.system.server import BIN, Result, Server, Wiring, free_port, run

pytestmark = pytest.mark.usefixtures("machine", "homes")
_CONFIG = """\
table aliases db:{folder}/closed/aliases.db
table users db:{folder}/closed/users.db
listen on 127.0.0.1 port {port} hostname mail.example.org
action "a" maildir alias <aliases> userbase <users>
match from any for domain "example.org" action "a"
"""


@pytest.fixture
def maps(folder: Path) -> Path:
    """A folder that only root may enter."""
    (folder / "closed").mkdir(0o700)
    (folder / "closed/users").write_text(f"real: 6001:6001:{folder}\n")
    make(folder / "closed/aliases", "Team: real\n")
    make(folder / "closed/users")
    return folder / "closed"


def make(path: Path, text: str = "") -> None:
    if text:
        path.write_text(text)
    path.chmod(0o600)
    kind = ["-t", "aliases"] if path.name == "aliases" else []
    assert run([str(BIN / "makemap"), *kind, str(path)]) == Result(0, "", "")


def answer(port: int, rcpt: str) -> int:
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo()
        client.mail("s@client.example.net")
        return client.rcpt(rcpt)[0]


def test_maps_that_only_root_may_read_are_asked_and_may_be_made_anew(folder: Path, wiring: Wiring, maps: Path) -> None:
    port = free_port()
    with Server(folder / "server", _CONFIG.format(folder=folder, port=port), wiring) as server:
        assert answer(port, "TEAM@example.org") == 250
        assert answer(port, "real@example.org") == 250
        assert answer(port, "other@example.org") == 550
        make(maps / "aliases", "other: real\n")
        assert answer(port, "other@example.org") == 250
        assert answer(port, "team@example.org") == 550
        assert server.ctl("update", "table", "aliases") == Result(0, "command succeeded\n", "")


def test_a_map_that_is_gone_turns_nobody_away_for_good(folder: Path, wiring: Wiring, maps: Path) -> None:
    port = free_port()
    with Server(folder / "server", _CONFIG.format(folder=folder, port=port), wiring) as server:
        (maps / "aliases.db").write_bytes(b"\0" * 3000)
        assert answer(port, "team@example.org") == 424
        assert server.ctl("update", "table", "aliases").exit == 1
        (maps / "aliases.db").unlink()
        assert answer(port, "team@example.org") == 424
        for why in ("not a Berkeley DB file", "No such file or directory"):
            assert f"{maps}/aliases.db: {why}" in server.log()
        make(maps / "aliases")
        assert answer(port, "team@example.org") == 250


def test_a_server_does_not_start_on_a_map_that_cannot_be_read(folder: Path, maps: Path) -> None:
    config = folder / "smtpd.conf"
    config.write_text(_CONFIG.format(folder=folder, port=free_port()))
    assert run(["smtpd", "-n", "-f", str(config)]).exit == 0
    (maps / "users.db").write_text("real: 6001\n")
    checked = run(["smtpd", "-n", "-f", str(config)])
    wanted = f"{config}:2: invalid configuration file {maps}/users.db for table users: not a Berkeley DB file"
    assert (checked.exit, wanted in checked.err) == (1, True), checked.err
