"""The clients that people use, in the ways that each has: what they send arrives."""

import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.programs import exim, program
from tests.peers.test_deliver import mail_in, message
from tests.system.certificates import write_pair
from tests.system.server import Server, Wiring, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

NAME = "mail.example.org"
USER, PASSWORD = "alice", "alice-pw"


@dataclass(frozen=True)
class Place:
    """A server, and where it listens: with STARTTLS, with TLS at once, and for submission."""

    server: Server
    cert: Path
    smtp: int
    smtps: int
    submission: int
    submissions: int

    def trusting(self) -> ssl.SSLContext:
        """A client that verifies our certificate."""
        return ssl.create_default_context(cafile=str(self.cert))


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """A server with everything that a client may ask for; mail for example.org goes into Maildirs."""
    write_pair(folder / "cert", folder / "key", NAME)
    ports = [free_port() for _ in range(4)]
    smtp, smtps, submission, submissions = ports
    config = f"""\
pki "{NAME}" cert "{folder}/cert"
pki "{NAME}" key "{folder}/key"
listen on 127.0.0.1 port {smtp} tls pki "{NAME}" hostname {NAME}
listen on 127.0.0.1 port {smtps} smtps pki "{NAME}" hostname {NAME}
listen on 127.0.0.1 port {submission} tls-require pki "{NAME}" hostname {NAME} auth
listen on 127.0.0.1 port {submissions} smtps pki "{NAME}" hostname {NAME} auth
action "in" maildir
match from any for domain "example.org" action "in"
"""
    with Server(folder / "server", config, Wiring.MANY) as server:
        yield Place(server, folder / "cert", *ports)


def arrived(place: Place, text: str) -> str:
    """The one message that came for Alice."""
    assert wait_for(lambda: mail_in("/home/alice"), 15), place.server.log()[-3000:]
    (found,) = mail_in("/home/alice")
    assert text in found
    return found


def run(argv: list[str], *, stdin: str = "") -> str:
    """What a client says; it must succeed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


SWAKS: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "plain": (lambda p: ["-p", str(p.smtp)], "with ESMTP id"),
    "HELO": (lambda p: ["-p", str(p.smtp), "--protocol", "SMTP"], "with SMTP id"),
    "pipelining": (lambda p: ["-p", str(p.smtp), "--pipeline"], "with ESMTP id"),
    "starttls": (lambda p: ["-p", str(p.smtp), "-tls", *_verify(p)], "with ESMTPS id"),
    "starttls if offered": (lambda p: ["-p", str(p.smtp), "-tlso"], "with ESMTPS id"),
    "starttls, pipelining": (lambda p: ["-p", str(p.smtp), "-tls", "--pipeline"], "with ESMTPS id"),
    "tls at once": (lambda p: ["-p", str(p.smtps), "-tlsc", *_verify(p)], "with ESMTPS id"),
    "tls 1.2": (lambda p: ["-p", str(p.smtps), "-tlsc", "--tls-protocol", "tlsv1_2"], "with ESMTPS id"),
    "auth plain": (lambda p: ["-p", str(p.submission), "-tls", *_auth("PLAIN")], "with ESMTPSA id"),
    "auth login": (lambda p: ["-p", str(p.submission), "-tls", *_auth("LOGIN")], "with ESMTPSA id"),
    "auth at once": (lambda p: ["-p", str(p.submissions), "-tlsc", *_auth("PLAIN")], "with ESMTPSA id"),
}


def _verify(place: Place) -> list[str]:
    return ["--tls-verify", "--tls-ca-path", str(place.cert), "--tls-sni", NAME]


def _auth(mechanism: str) -> list[str]:
    return ["-a", mechanism, "-au", USER, "-ap", PASSWORD]


@pytest.mark.parametrize("way", SWAKS)
def test_swaks(place: Place, way: str) -> None:
    swaks = program("swaks")
    options, protocol = SWAKS[way]
    text = run([swaks, "-s", "127.0.0.1", "-f", "s@client.example.net", "-t", "alice@example.org", *options(place)])
    assert "<** " not in text and "<~* " not in text, text
    assert protocol in arrived(place, "This is a test mailing")


@pytest.mark.parametrize("way", ["plain", "starttls", "tls", "submission"])
def test_curl(place: Place, way: str) -> None:
    curl = program("curl")
    port = {"tls": place.smtps, "submission": place.submissions}.get(way, place.smtp)
    scheme = "smtps" if way in ("tls", "submission") else "smtp"
    argv = [curl, "-sS", f"{scheme}://{NAME}:{port}/client.example.net", "--resolve", f"{NAME}:{port}:127.0.0.1"]
    argv += ["--cacert", str(place.cert), "--mail-from", "s@client.example.net", "--mail-rcpt", "alice@example.org"]
    argv += ["-T", "-"]
    argv += ["--ssl-reqd"] if way == "starttls" else []
    argv += ["-u", f"{USER}:{PASSWORD}"] if way == "submission" else []
    run(argv, stdin="Subject: by curl\r\n\r\nfirst\r\n.\r\nlast\r\n")
    protocol = {"plain": "ESMTP", "submission": "ESMTPSA"}.get(way, "ESMTPS")
    assert f"with {protocol} id" in arrived(place, "\n\nfirst\n.\nlast\n")


@pytest.mark.parametrize("way", ["plain", "starttls", "tls", "submission"])
def test_msmtp(place: Place, way: str) -> None:
    msmtp = program("msmtp")
    port = {"tls": place.smtps, "submission": place.submission}.get(way, place.smtp)
    argv = [msmtp, "--host=127.0.0.1", f"--port={port}", "--from=s@client.example.net", "--domain=client.example.net"]
    if way != "plain":
        argv += ["--tls=on", f"--tls-trust-file={place.cert}", f"--tls-host-override={NAME}"]
        argv += [f"--tls-starttls={'off' if way == 'tls' else 'on'}"]
    if way == "submission":
        argv += ["--auth=plain", f"--user={USER}", f"--passwordeval=echo {PASSWORD}"]
    run([*argv, "alice@example.org"], stdin="Subject: by msmtp\n\nfirst\n.\nlast\n")
    protocol = {"plain": "ESMTP", "submission": "ESMTPSA"}.get(way, "ESMTPS")
    assert f"with {protocol} id" in arrived(place, "\n\nfirst\n.\nlast\n")


def test_exim(folder: Path, place: Place) -> None:
    command = exim(folder / "exim", place.smtp)
    run([*command, "s@client.example.net", "alice@example.org"], stdin="Subject: by exim\n\nfirst\n.\nlast\n")
    assert "with ESMTPS id" in arrived(place, "\n\nfirst\n.\nlast\n")  # it takes STARTTLS where it is offered


@pytest.mark.parametrize("implicit", [False, True], ids=["587", "465"])
def test_a_mail_program_submits(place: Place, implicit: bool) -> None:
    """As Thunderbird does it: EHLO by address, STARTTLS or TLS at once, AUTH PLAIN, SIZE and BODY behind MAIL."""
    text = message("from a mail program").as_bytes(policy=message().policy.clone(linesep="\r\n"))
    made: smtplib.SMTP = (
        smtplib.SMTP_SSL("127.0.0.1", place.submissions, timeout=20, context=_unnamed(place))
        if implicit
        else smtplib.SMTP("127.0.0.1", place.submission, timeout=20)
    )
    with made as client:
        client.ehlo("[192.0.2.7]")
        if not implicit:
            assert not client.has_extn("auth")
            assert client.mail("s@client.example.net")[0] == 530  # not before TLS
            client.starttls(context=_unnamed(place))
            client.ehlo("[192.0.2.7]")
        assert client.mail("s@client.example.net")[0] == 530  # not before AUTH
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(USER, "wrong")
        client.user, client.password = USER, PASSWORD
        assert client.auth("PLAIN", client.auth_plain)[0] == 235
        refused = client.sendmail(
            "s@client.example.net", ["alice@example.org"], text, [f"size={len(text)}", "BODY=8BITMIME"]
        )
        assert not refused
    assert "with ESMTPSA id" in arrived(place, "The last line")


def _unnamed(place: Place) -> ssl.SSLContext:
    context = place.trusting()
    context.check_hostname = False  # it connects to an address
    return context
