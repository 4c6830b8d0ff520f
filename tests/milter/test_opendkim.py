"""OpenDKIM behind the bridge signs mail; dkimpy, which is another's work, verifies it."""

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.backends.servers import program
from tests.milter.driver import MESSAGE, PROCEED, Bridge, received
from tests.system.server import wait_for

CONFIGURATION = """
Syslog no
Mode s
Domain example.org
Selector mail
KeyFile {folder}/key.pem
Socket local:{folder}/opendkim.sock
InternalHosts 192.0.2.1
Canonicalization relaxed/simple
OversignHeaders From
RequireSafeKeys no
"""


@pytest.fixture
def record(tmp_path: Path) -> str:
    """Makes a key; its DNS record."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


@pytest.fixture
def opendkim(tmp_path: Path, record: str) -> Iterator[str]:
    """The address of a running OpenDKIM."""
    path = program("opendkim")
    (tmp_path / "opendkim.conf").write_text(CONFIGURATION.format(folder=tmp_path))
    with subprocess.Popen([path, "-f", "-x", str(tmp_path / "opendkim.conf")], stderr=subprocess.PIPE) as process:
        socket = tmp_path / "opendkim.sock"
        assert wait_for(lambda: socket.exists() or process.poll() is not None, 20)
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield f"unix:{socket}"
        process.kill()  # libmilter takes five seconds to end when it is asked to


def verified(lines: list[str], record: str) -> bool:
    """Does the signature hold, with this record in the DNS?"""
    message = "".join(f"{line}\r\n" for line in lines).encode()
    return bool(dkim.verify(message, dnsfunc=lambda name, timeout=5: record.encode()))


@pytest.mark.parametrize("body", [["", "Hello"], ["", ".", "..two", "", ""], [], [""], ["", "caf\u00e9 " * 20000]])
def test_mail_is_signed_as_it_is_delivered(opendkim: str, record: str, body: list[str]) -> None:
    message = ["From: alice@example.org", "To: bob@example.net", "Subject: folded", "\tand long", *body]
    with Bridge(opendkim) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        client.begin()
        lines = client.content(message)
        assert client.commit() == PROCEED
        assert lines[0].startswith("DKIM-Signature: v=1; a=rsa-sha256;")  # above all that is there
        assert [line for line in lines if line in received(client.msgid)] == received(client.msgid)
        assert verified(lines, record)
        assert not verified([line.replace("To: bob", "To: eve") for line in lines], record)


def test_mail_of_others_is_not_signed(opendkim: str) -> None:
    with Bridge(opendkim) as bridge:
        client = bridge.session()
        assert client.connect(src="198.51.100.9:1025") == PROCEED
        assert client.deliver() == (list(MESSAGE), PROCEED)


def test_who_logged_in_is_signed_for_wherever_they_are(opendkim: str, record: str) -> None:
    with Bridge(opendkim) as bridge:
        client = bridge.session()
        assert client.connect(src="[2001:db8::1]:1025") == PROCEED
        client.starttls()
        client.auth("alice")
        lines, decision = client.deliver()
        assert decision == PROCEED and verified(lines, record)


def test_many_sessions_at_a_time_are_each_signed(opendkim: str, record: str) -> None:
    with Bridge(opendkim) as bridge:
        clients = [bridge.session() for _ in range(20)]
        for client in clients:
            assert client.connect() == PROCEED
            client.begin()
        tokens = [
            bridge.lines(client.id, [*received(client.msgid), *MESSAGE, f"number {number}"])
            for number, client in enumerate(clients)
        ]
        for number, token in reversed(list(enumerate(tokens))):
            lines = bridge.message(token)
            assert lines[-1] == f"number {number}" and verified(lines, record)
        assert bridge.log() == ""
