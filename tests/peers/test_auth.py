"""Real clients log in, with each mechanism that they have; what they submit arrives, with the user in Received."""

import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.peers.test_deliver import mail_in, message
from tests.sandbox import own_directory
from tests.system.server import Server, Wiring, free_port, run, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

CERTIFICATES = Path(__file__).parent.parent / "corpus/fixtures/certs"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl-of_alice"


@contextmanager
def serving(folder: Path, wiring: Wiring, options: str = "auth <creds>") -> Iterator[tuple[Server, int]]:
    """A server with STARTTLS whose alice has the password `alice pw` and the token; its port."""
    for name in ("rsa.crt", "rsa.key"):
        shutil.copy(CERTIFICATES / name, folder / name)
        (folder / name).chmod(0o600 if name.endswith("key") else 0o644)
    verifier = run(["smtpctl", "encrypt", "--scram"], stdin="alice pw\n").out.strip()
    (folder / "creds").write_text(f"alice {verifier}\n")
    (folder / "tokens").write_text(f"alice {run(['smtpctl', 'encrypt', '--token', TOKEN]).out.strip()}\n")
    port = free_port()
    config = f"""\
table creds file:{folder}/creds
table tokens file:{folder}/tokens
pki srv cert "{folder}/rsa.crt" key "{folder}/rsa.key"
listen on 127.0.0.1 port {port} hostname mail.example.org tls-require pki srv received-auth {options}
action "local" maildir
match auth from any for domain "example.org" action "local"
"""
    with Server(folder / "server", config, wiring) as server:
        yield server, port


def arrived(server: Server) -> str:
    """The one message that came."""
    assert wait_for(lambda: mail_in("/home/alice"), 10), server.log()[-3000:]
    (text,) = mail_in("/home/alice")
    assert " with ESMTPSA id " in text and " auth=yes user=alice" in text.replace("\n\t", " ")
    return text


def submit(argv: list[str], stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks(folder: Path, wiring: Wiring, mechanism: str) -> None:
    swaks = program("swaks")
    with serving(folder, wiring) as (server, port):
        argv = [swaks, "--server", f"127.0.0.1:{port}", "-tls", "--auth", mechanism, "--auth-user", "alice"]
        envelope = ["--from", "alice@example.org", "--to", "alice@example.org"]
        assert submit([*argv, *envelope, "--auth-password", "wrong"]).returncode == 28
        done = submit([*argv, *envelope, "--auth-password", "alice pw"])
        assert done.returncode == 0, done.stdout + done.stderr
        arrived(server)


@pytest.mark.parametrize("mechanism", ["on", "scram-sha-256", "plain", "login"])
def test_msmtp(folder: Path, wiring: Wiring, mechanism: str) -> None:
    """`on`: what msmtp thinks best."""
    msmtp = program("msmtp")
    with serving(folder, wiring) as (server, port):
        argv = [msmtp, "--file=/dev/null", "--host=127.0.0.1", f"--port={port}", "--tls=on", "--tls-certcheck=off"]
        argv += ["--from=alice@example.org", f"--auth={mechanism}", "--user=alice", "--debug"]
        refused = submit([*argv, "--passwordeval=echo wrong", "alice@example.org"], str(message()))
        assert refused.returncode == 77, refused.stdout + refused.stderr  # EX_NOPERM
        done = submit([*argv, "--passwordeval=echo alice pw", "alice@example.org"], str(message()))
        assert done.returncode == 0, done.stdout + done.stderr
        arrived(server)
        assert mechanism == "on" or f"AUTH {mechanism.upper()}" in done.stdout


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
def test_msmtp_with_a_token(folder: Path, wiring: Wiring, mechanism: str) -> None:
    msmtp = program("msmtp")
    with serving(folder, wiring, "auth <creds> tokens <tokens>") as (server, port):
        argv = [msmtp, "--file=/dev/null", "--host=127.0.0.1", f"--port={port}", "--tls=on", "--tls-certcheck=off"]
        argv += ["--from=alice@example.org", f"--auth={mechanism}", "--user=alice"]
        refused = submit([*argv, "--passwordeval=echo wrong", "alice@example.org"], str(message()))
        assert refused.returncode == 77, refused.stdout + refused.stderr
        done = submit([*argv, f"--passwordeval=echo {TOKEN}", "alice@example.org"], str(message()))
        assert done.returncode == 0, done.stdout + done.stderr
        arrived(server)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("at_once", [True, False])
def test_curl(folder: Path, wiring: Wiring, mechanism: str, at_once: bool) -> None:
    curl = program("curl")
    how = (
        ["--user", "alice:alice pw"]
        if mechanism in ("PLAIN", "LOGIN")
        else ["--user", "alice", "--oauth2-bearer", TOKEN]
    )
    how += ["--sasl-ir"] if at_once else []
    text = str(message()).replace("\n", "\r\n")
    options = f"auth <creds> tokens <tokens> mechanisms {{ {mechanism}, XOAUTH2 }}"
    with serving(folder, wiring, options) as (server, port):
        argv = [
            curl,
            "--silent",
            "--show-error",
            "--ssl-reqd",
            "--insecure",
            f"smtp://127.0.0.1:{port}/client.example.net",
        ]
        argv += ["--mail-from", "alice@example.org", "--mail-rcpt", "alice@example.org", "--upload-file", "-"]
        wrong = [word.replace("alice pw", "wrong").replace(TOKEN, "wrong") for word in how]
        refused = submit([*argv, *wrong], text)
        assert refused.returncode == 67, refused.stderr  # CURLE_LOGIN_DENIED
        done = submit([*argv, *how], text)
        assert done.returncode == 0, done.stderr + server.log()[-2000:]
        arrived(server)


@pytest.mark.parametrize(
    ("mechanism", "priority", "right"),
    [
        ("SCRAM-SHA-256", "NORMAL", True),
        ("SCRAM-SHA-256-PLUS", "NORMAL:-VERS-TLS1.3", True),  # tls-unique
        ("SCRAM-SHA-256", "NORMAL", False),
        ("SCRAM-SHA-256-PLUS", "NORMAL:-VERS-TLS1.3", False),
    ],
)
def test_gsasl(folder: Path, wiring: Wiring, mechanism: str, priority: str, right: bool) -> None:
    gsasl = program("gsasl")
    with serving(folder, wiring) as (server, port):
        argv = [gsasl, "--smtp", f"--connect=127.0.0.1:{port}", "--verbose", f"--mechanism={mechanism}"]
        argv += ["--authentication-id=alice", f"--password={'alice pw' if right else 'wrong'}"]
        argv += [f"--x509-ca-file={CERTIFICATES}/ca.crt", "--hostname=mail.example.org"]
        argv += [] if mechanism.endswith("-PLUS") else ["--no-cb"]  # else it insists on a binding
        done = submit([*argv, "--authorization-id=", f"--priority={priority}"])
        assert (done.returncode == 0) is right, done.stdout + done.stderr + server.log()[-2000:]
        assert f"smtp authentication user=alice result={'ok' if right else 'permfail'}" in server.log()


def test_smtplib(folder: Path, wiring: Wiring) -> None:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.crt"))
    context.check_hostname = False
    with serving(folder, wiring) as (server, port), smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.starttls(context=context)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("alice", "wrong")
        client.login("alice", "alice pw")
        client.send_message(message(), to_addrs=["alice@example.org"])
        arrived(server)


def test_system_users_by_pam(folder: Path, wiring: Wiring) -> None:
    (own_directory("/etc/pam.d") / "mail-test").write_text("auth required pam_unix.so\naccount required pam_unix.so\n")
    with serving(folder, wiring, "auth pam mail-test") as (server, port):
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.starttls()
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("alice", "bob-pw")
            client.login("alice", "alice-pw")
            client.send_message(message(), to_addrs=["alice@example.org"])
        arrived(server)


def test_system_users_by_shadow(folder: Path, wiring: Wiring) -> None:
    with serving(folder, wiring, "auth") as (server, port):
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.starttls()
            for user, password in (("alice", "bob-pw"), ("_smtpd", ""), ("ghost", "x")):
                with pytest.raises(smtplib.SMTPAuthenticationError):
                    client.login(user, password or "x")
            client.login("alice", "alice-pw")
            client.send_message(message(), to_addrs=["alice@example.org"])
        arrived(server)
