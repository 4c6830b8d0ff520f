"""Debian's opensmtpd-filter-dkimsign, unmodified: an independent verifier (dkimpy) sees what it signed under us."""

import contextlib
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.peers.dkimkeys import new_key, verified
from tests.peers.programs import debian_filter, program
from tests.system.server import Server, Wiring, bound_ports, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

HEADER = (
    b"From: Sender <s@example.org>\r\n"
    b"To: alice@example.org,\r\n\tbob@example.org\r\n"
    b"Date: Thu, 26 Nov 2026 07:00:00 +0000\r\n"
    b"Message-ID: <test@example.org>\r\n"
    b"Subject:   folded\r\n   and   spaced \r\n"
)
BODIES = {
    "plain": b"First line\r\n\r\nLast line\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.x\r\nx.\r\n",
    "spaces": b"  leading\r\ntrailing \t \r\n\r\n\r\n\r\n",
    "eight-bit": "Grüße, 日本\r\n".encode(),
    "long": b"x" * 990 + b"\r\n" + b"line\r\n" * 20_000,
}


@pytest.fixture
def key(folder: Path) -> rsa.RSAPrivateKey:
    """A key that the filter's user alone may read."""
    return new_key(folder / "dkim.key", "_smtpd")


@contextlib.contextmanager
def signing(folder: Path, wiring: Wiring, action: str, options: str = "") -> Iterator[tuple[Server, int]]:
    """A server that signs everything, and its port."""
    port = free_port()
    command = f"{debian_filter('dkimsign')} -d example.org -s s1 -k {folder}/dkim.key {options}"
    config = (
        f'filter "sign" proc-exec "{command}"\n'
        f'listen on 127.0.0.1 port {port} hostname mail.example.org filter "sign"\n'
        f'action "a" {action}\nmatch from any for any action "a"\n'
    )
    with Server(folder / "server", config, wiring) as server:
        yield server, port


def send(port: int, message: bytes, *rcpts: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.ehlo("client.example.net")
        client.sendmail("s@example.org", rcpts or ["alice@example.org"], message)


def delivered(user: str = "alice") -> list[bytes]:
    """What is in a Maildir, as it went over the wire."""
    new = Path("/home", user, "Maildir/new")
    return [f.read_bytes().replace(b"\n", b"\r\n") for f in sorted(new.iterdir())] if new.exists() else []


@pytest.mark.parametrize(
    "options",
    ["", *(pytest.param(o, marks=pytest.mark.long) for o in ("-c relaxed/relaxed -t", "-c simple/relaxed -x 3600"))],
)
def test_signatures_are_valid_whatever_is_in_the_body(
    folder: Path, wiring: Wiring, key: rsa.RSAPrivateKey, options: str
) -> None:
    with signing(folder, wiring, "maildir", options) as (server, port):
        for number, body in enumerate(BODIES.values(), 1):
            send(port, HEADER + b"\r\n" + body)
            assert wait_for(lambda: len(delivered()) == number, 20), server.log()  # noqa: B023 - asked at once
    found = delivered()
    assert all(verified(message, key, "s1") for message in found)
    assert sorted(message.partition(b"\r\n\r\n")[2] for message in found) == sorted(BODIES.values())


def test_verifier_notices_a_change(folder: Path, wiring: Wiring, key: rsa.RSAPrivateKey) -> None:
    with signing(folder, wiring, "maildir") as (server, port):
        send(port, HEADER + b"\r\nPay 100\r\n")
        assert wait_for(delivered, 20), server.log()
    (message,) = delivered()
    assert verified(message, key, "s1")
    assert not verified(message.replace(b"Pay 100", b"Pay 900"), key, "s1")
    assert not verified(message.replace(b"Sender", b"Sendex"), key, "s1")


def test_each_recipient_gets_the_signed_message(folder: Path, wiring: Wiring, key: rsa.RSAPrivateKey) -> None:
    with signing(folder, wiring, "maildir") as (server, port):
        send(port, HEADER + b"\r\nHello\r\n", "alice@example.org", "bob@example.org")
        assert wait_for(lambda: delivered("alice") and delivered("bob"), 20), server.log()
    assert all(verified(message, key, "s1") for message in delivered("alice") + delivered("bob"))


def test_relayed_mail_is_signed_as_it_leaves(folder: Path, wiring: Wiring, key: rsa.RSAPrivateKey) -> None:
    sink, out = free_port(), folder / "sink"
    out.mkdir()
    argv = [program("smtp-sink"), "-u", "nobody", "-R", str(out), "-d", "%M.", f"127.0.0.1:{sink}", "10"]
    shutil.chown(out, "nobody")
    process = subprocess.Popen(argv)
    try:
        assert wait_for(lambda: sink in bound_ports(), 10)
        with signing(folder, wiring, f"relay host smtp://127.0.0.1:{sink}") as (server, port):
            for body in BODIES.values():
                send(port, HEADER + b"\r\n" + body, "alice@far.example")
            assert wait_for(lambda: server.wait_empty(1), 30), server.log()
    finally:
        process.terminate()
        process.wait(10)
    dumps = [file.read_bytes().replace(b"\n", b"\r\n") for file in out.iterdir()]
    assert len(dumps) == len(BODIES)
    assert all(verified(dump, key, "s1") for dump in dumps)


def test_hundred_messages_of_ten_sessions_are_signed_each_for_itself(
    folder: Path, wiring: Wiring, key: rsa.RSAPrivateKey
) -> None:
    source = program("smtp-source")
    with signing(folder, wiring, "maildir") as (server, port):
        argv = [source, "-s", "10", "-m", "100", "-l", "4000", "-f", "s@example.org", "-t", "alice@example.org"]
        subprocess.run([*argv, f"127.0.0.1:{port}"], timeout=120, check=True)
        assert wait_for(lambda: len(delivered()) == 100, 60), server.log()[-3000:]
    assert all(verified(message, key, "s1") for message in delivered())
