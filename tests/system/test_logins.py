"""Logins to whole servers: tables of every kind, failures that end sessions, made-up salts that outlast a restart."""

import shutil
import smtplib
from base64 import b64decode
from pathlib import Path

import pytest

from tests.smtp.sasl.client import ScramClient
from tests.system.server import Server, Wiring, free_port, run

pytestmark = pytest.mark.usefixtures("machine")

CERTIFICATES = Path(__file__).parent.parent / "corpus/fixtures/certs"


def serving(folder: Path, wiring: Wiring, table: str, options: str = "", before: str = "") -> tuple[Server, int]:
    """A server whose listener takes the passwords of this table; its port."""
    shutil.copytree(CERTIFICATES, folder / "certs")
    (folder / "certs/rsa.key").chmod(0o600)
    port = free_port()
    config = f"""\
{before}table creds {table}
pki srv cert "{folder}/certs/rsa.crt" key "{folder}/certs/rsa.key"
listen on 127.0.0.1 port {port} hostname mail.example.org smtps pki srv auth <creds> {options}
action "local" maildir
match from any for domain "example.org" action "local"
"""
    return Server(folder / "server", config, wiring), port


def connect(port: int) -> smtplib.SMTP_SSL:
    client = smtplib.SMTP_SSL("127.0.0.1", port, timeout=20)
    client.ehlo()
    return client


def verifier(password: str) -> str:
    return run(["smtpctl", "encrypt", "--scram", password]).out.strip()


def scram(client: smtplib.SMTP_SSL, user: str, password: str) -> int:
    """Log in; the code of the last reply."""
    ours = ScramClient(user, password)
    code, said = client.docmd("AUTH", f"SCRAM-SHA-256 {ours.first()}")
    if code == 334:
        code, said = client.docmd(ours.final(said.decode()))
    if code == 334:
        assert ours.accepts(said.decode())
        code, said = client.docmd("")
    return code


def salt(client: smtplib.SMTP_SSL, user: str) -> str:
    """What somebody who only asks is told of a user."""
    _, said = client.docmd("AUTH", f"SCRAM-SHA-256 {ScramClient(user, 'x').first()}")
    client.docmd("*")
    return b64decode(said).decode().partition(",s=")[2]


def test_scram_with_a_database(folder: Path, wiring: Wiring) -> None:
    (folder / "map").write_text(f"alice {verifier('alice pw')}\n")
    assert run(["makemap", "-o", str(folder / "creds.db"), str(folder / "map")]).exit == 0
    server, port = serving(folder, wiring, f"db:{folder}/creds.db", "mechanisms { scram-sha-256, plain }")
    with server, connect(port) as client:
        assert client.esmtp_features["auth"].split() == ["SCRAM-SHA-256", "PLAIN"]
        assert scram(client, "alice", "wrong") == 535
        assert scram(client, "ghost", "alice pw") == 535
        assert scram(client, "alice", "alice pw") == 235


def test_a_table_that_is_read_again_decides_anew_what_is_offered(folder: Path, wiring: Wiring) -> None:
    people = folder / "people"
    people.write_text(f"alice {run(['smtpctl', 'encrypt', 'alice pw']).out}")
    server, port = serving(folder, wiring, f"file:{people}")
    with server:
        with connect(port) as client:
            assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
            client.login("alice", "alice pw")
        people.write_text(f"alice {verifier('new pw')}\n")
        assert server.ctl("update", "table", "creds").exit == 0
        with connect(port) as client:
            assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN", "SCRAM-SHA-256"]
            assert scram(client, "alice", "new pw") == 235
        with connect(port) as client:
            client.login("alice", "new pw")


def test_made_up_salts_outlast_a_restart(folder: Path, wiring: Wiring) -> None:
    (folder / "people").write_text(f"alice {verifier('alice pw')}\n")
    server, port = serving(folder, wiring, f"file:{folder}/people")
    told = []
    for _ in range(2):
        with server, connect(port) as client:
            told.append([salt(client, user) for user in ("alice", "ghost", "Ghost", "other")])
    assert told[0] == told[1]
    alice, ghost, same, other = told[0]
    assert ghost == same and len({alice, ghost, other}) == 3
    assert (server.state / "login.secret").stat().st_mode & 0o777 == 0o600


def test_who_goes_on_guessing_is_hung_up_on(folder: Path, wiring: Wiring) -> None:
    (folder / "people").write_text(f"alice {verifier('alice pw')}\n")
    server, port = serving(folder, wiring, f"file:{folder}/people", before="smtp limit max-failed-logins 2\n")
    with server:
        client = connect(port)
        assert scram(client, "alice", "wrong") == 535
        assert scram(client, "alice", "wrong") == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        client.close()
