"""`smtpctl explain`: of a running server in both wirings, and of a file without one; what it says is what happens."""

import json
import os
import smtplib
from pathlib import Path
from typing import Any

import pytest

from tests.system.server import Result, Server, Wiring, free_port, run
from tests.system.test_tables import make_server as make_asking_server

CONFIG = """\
table vdoms file:{folder}/vdoms
table aliases {{ "team" = "alice, |/bin/cat, far@elsewhere.example", "gone" = "error:550 5.1.1 gone",
    "a" = "b", "b" = "a" }}
table hubs {{ "smtp://127.0.0.1:1", "smtp://127.0.0.1:2" }}
listen on 127.0.0.1 port {port} hostname mail.example.org
listen on 127.0.0.1 port {other} hostname lan.example.org tag LAN
action "local" maildir alias <aliases>
action "virtual" mbox virtual {{ "@" = "bob" }}
action "out" relay host <hubs>
match from any for domain <vdoms> action "virtual"
match from any for domain "example.org" action "local"
match tag LAN for any reject
match for any action "out"
"""

pytestmark = pytest.mark.usefixtures("machine", "homes")


def make_server(folder: Path, wiring: Wiring) -> Server:
    folder.mkdir(exist_ok=True)
    (folder / "vdoms").write_text("# @list\n*.example.com\nexample.com\n")
    config = CONFIG.format(folder=folder, port=free_port(), other=free_port())
    return Server(folder, config, wiring, args=["-P", "mda", "-P", "mta"])


def write_forward(user: str, text: str, mode: int = 0o600) -> None:
    home = Path("/home", user)
    (home / ".forward").write_text(text)
    status = home.stat()
    os.chown(home / ".forward", status.st_uid, status.st_gid)
    (home / ".forward").chmod(mode)


def document(result: Result) -> dict[str, Any]:
    assert result.err == ""
    found: dict[str, Any] = json.loads(result.out)
    return found


def rcpt_to(server: Server, rcpt: str) -> str:
    """What a client hears."""
    port = next(int(line.split()[4]) for line in server.config.splitlines() if line.startswith("listen"))
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.helo("localhost")
        client.mail("s@client.example")
        code, text = client.rcpt(rcpt)
    return f"{code} {text.decode()}"


def test_it_says_what_a_client_hears_and_what_is_queued(folder: Path, wiring: Wiring) -> None:
    write_forward("alice", "alice, carol@elsewhere.example\n")
    with make_server(folder, wiring) as server:
        for rcpt, status in (
            ("team@example.org", 0),
            ("x+y@www.example.com", 0),
            ("gone@example.org", 1),
            ("ghost@example.org", 1),
            ("a@example.org", 1),
        ):
            explained = server.ctl("explain", "--from", "s@client.example", "--rcpt", rcpt, "--json")
            assert explained.exit == status, explained
            assert document(explained)["reply"] == rcpt_to(server, rcpt)
        assert server.queue() == [], "explaining leaves nothing behind"
        found = document(server.ctl("explain", "--from", "s@client.example", "--rcpt", "team@example.org", "--json"))
        port = next(int(line.split()[4]) for line in server.config.splitlines() if line.startswith("listen"))
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.sendmail("s@client.example", ["team@example.org"], "Subject: x\r\n\r\nx")
        queued = {(row[2], row[6]) for row in server.queue()}
        assert queued == {(e["type"], e["dest"]) for e in found["envelopes"]}
        assert len(server.queue()) == len(found["envelopes"])


def test_a_forward_is_read_by_the_parent_and_told(folder: Path, wiring: Wiring) -> None:
    write_forward("alice", "carol@elsewhere.example\n")
    write_forward("bob", "carol\n", mode=0o622)
    with make_server(folder, wiring) as server:
        told = server.ctl("explain", "--rcpt", "alice@example.org")
        assert told.exit == 0, told
        assert "/home/alice/.forward: read\n     | carol@elsewhere.example\n" in told.out
        refused = server.ctl("explain", "--rcpt", "bob@example.org")
        assert refused.exit == 1
        assert "writable by others" in refused.out
        assert "524 5.2.4 Mailing list expansion problem: <bob@example.org>" in refused.out


def test_the_next_host_stays_the_next(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring) as server:
        plans = [
            document(server.ctl("explain", "--rcpt", "x@far.example", "--json"))["envelopes"][0]["plan"]
            for _ in range(2)
        ]
        assert [plan["url"] for plan in plans] == ["smtp://127.0.0.1:1"] * 2


def test_a_table_that_was_read_again_counts(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring) as server:
        (folder / "vdoms").write_text("# @list\nnew.example\n")
        assert "out" in server.ctl("explain", "--rcpt", "x@new.example").out
        assert server.ctl("update", "table", "vdoms").exit == 0
        found = document(server.ctl("explain", "--rcpt", "x@new.example", "--json"))
        assert [e["action"] for e in found["envelopes"]] == ["virtual"]


def test_after_a_reload_it_goes_by_the_new_configuration(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring) as server:
        arguments = ["explain", "--rcpt", "x@new.example", "--src", "192.0.2.1"]
        assert server.ctl(*arguments).exit == 1
        server.conf.write_text(server.config + 'match from any for domain "new.example" action "nowhere"\n')
        assert server.ctl("reload").exit == 1
        assert server.ctl(*arguments).exit == 1
        server.conf.write_text(server.config + 'match from any for domain "new.example" action "out"\n')
        assert server.ctl("reload").exit == 0
        assert server.ctl(*arguments).exit == 0


def test_a_program_is_asked_as_for_a_client(folder: Path, wiring: Wiring) -> None:
    with make_asking_server(folder, wiring, free_port()) as server:
        found = server.ctl("explain", "--rcpt", "x@asked.example")
        assert found.exit == 0
        assert 'yes for domain <asked>: asked.example is in "asked" (ours:/etc/ours.conf)' in found.out
        missing = server.ctl("explain", "--rcpt", "x@elsewhere.example")
        assert missing.exit == 1
        assert 'no  for domain <asked>: elsewhere.example is not in "asked"' in missing.out
        broken = server.ctl("explain", "--rcpt", "x@broken.example")
        assert broken.exit == 2
        assert "Temporary: 451 Temporary failure: <x@broken.example>" in broken.out


def test_only_who_runs_the_server_may_ask_it(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring) as server:
        denied = server.ctl("explain", "--rcpt", "team@example.org", user="alice")
        assert (denied.exit, denied.out) == (2, "")
        assert "need root privileges" in denied.err


def test_a_file_says_the_same_as_the_server_that_runs_it(folder: Path) -> None:
    write_forward("alice", "alice, carol@elsewhere.example\n")
    with make_server(folder, Wiring.ONE) as server:
        for rcpt in ("team@example.org", "alice@example.org", "x@sub.example.com", "gone@example.org", "y@far.example"):
            arguments = ["explain", "--from", "s@client.example", "--rcpt", rcpt, "--tag", "LAN", "--json"]
            asked = server.ctl(*arguments)
            alone = run(["smtpctl", *arguments, "-f", str(server.conf)])
            assert document(asked) == document(alone)
            assert asked.exit == alone.exit


def test_without_a_server_a_file_is_explained_by_whoever_can_read_it(folder: Path) -> None:
    write_forward("alice", "carol\n")
    write_forward("bob", "carol\n", mode=0o644)
    server = make_server(folder, Wiring.ONE)
    command = ["smtpctl", "explain", "-f", str(server.conf), "--rcpt"]
    Path("/home/alice").chmod(0o700)
    own = run([*command, "alice@example.org"], user="alice")
    assert own.exit == 0 and "-> 3 user carol" in own.out
    others = run([*command, "alice@example.org"], user="bob")
    assert others.exit == 2
    assert "/home/alice/.forward: .forward of alice: Permission denied; a server reads it as alice" in others.out
    assert "Not seen: /home/alice/.forward" in others.out
    assert run([*command, "bob@example.org"], user="alice").exit == 0, "this one is everybody's to read"


def test_a_file_with_problems_names_them(folder: Path) -> None:
    bad = folder / "bad.conf"
    bad.write_text('match for any action "none"\nmatch for any action "nowhere"\n')
    said = run(["smtpctl", "explain", "-f", str(bad)])
    assert (said.exit, said.out) == (2, "")
    assert f"{bad}:1: no such dispatcher: none" in said.err and f"{bad}:2:" in said.err
