"""Real proxies in front of whole servers: swaks, which sends PROXY headers, and HAProxy, which sends its clients."""

import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.system.certificates import write_pair
from tests.system.server import Server, Wiring, bound_ports, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

RULES = """
action "a" maildir
match from src 203.0.113.0/24 for domain "example.org" action "a"
match from src 127.0.0.2 for domain "example.org" action "a"
"""


def mail_in(home: str) -> list[str]:
    """The messages in a Maildir."""
    new = Path(home, "Maildir/new")
    return [file.read_text() for file in sorted(new.iterdir())] if new.exists() else []


def server_on(folder: Path, wiring: Wiring, *listeners: str) -> Server:
    """A server that takes mail of certain clients alone."""
    text = "".join(f"listen on 127.0.0.1 {listener} hostname mail.example.org\n" for listener in listeners)
    return Server(folder / "server", text + RULES, wiring)


@pytest.mark.parametrize("version", [1, 2])
def test_swaks_speaks_for_another_client(folder: Path, wiring: Wiring, version: int) -> None:
    swaks, port = program("swaks"), free_port()
    source = ["--proxy-source", "203.0.113.5", "--proxy-source-port", "4711"]
    dest = ["--proxy-dest", "198.51.100.7", "--proxy-dest-port", "25"]
    family = "TCP4" if version == 1 else "AF_INET"
    argv = ["--server", f"127.0.0.1:{port}", "--from", "s@client.example.net", "--to", "alice@example.org"]
    argv += ["--proxy-version", str(version), "--proxy-family", family, *source, *dest]
    with server_on(folder, wiring, f"port {port} proxy from 127.0.0.1") as server:
        done = subprocess.run([swaks, *argv], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + server.log()
        assert wait_for(lambda: mail_in("/home/alice"), 10), server.log()
        assert "[203.0.113.5])" in mail_in("/home/alice")[0]
        assert "smtp connected address=203.0.113.5 host=" in server.log()


def test_who_is_no_trusted_proxy_is_not_listened_to(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with server_on(folder, wiring, f"port {port} proxy-v2 from {{ 192.0.2.0/24, 127.0.0.9 }}") as server:
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            assert client.recv(100) == b""
        assert 'address=127.0.0.1 reason="not a trusted proxy"' in server.log()
        with socket.create_connection(("127.0.0.1", port), 20, ("127.0.0.9", 0)) as client:
            client.sendall(bytes.fromhex("0d0a0d0a000d0a515549540a20000000"))
            assert client.recv(100).startswith(b"220 ")


@contextmanager
def haproxy(folder: Path, *lines: tuple[int, int, str]) -> Iterator[None]:
    """HAProxy, passing connections on: (our port, the server's, how)."""
    binary = program("haproxy")
    services = "".join(
        f"listen p{port}\n  bind 127.0.0.1:{port}\n  server s 127.0.0.1:{target} {how}\n" for port, target, how in lines
    )
    conf = folder / "haproxy.cfg"
    conf.write_text(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n" + services
    )
    process = subprocess.Popen([binary, "-db", "-f", str(conf)], stdin=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: {port for port, _, _ in lines} <= bound_ports(), 20)
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_haproxy_passes_its_clients_on_in_both_versions_and_under_tls(folder: Path, wiring: Wiring) -> None:
    cert, key = folder / "cert.pem", folder / "key.pem"
    write_pair(cert, key, "mail.example.org")
    plain, secure, v1, v2, tls = (free_port() for _ in range(5))
    listeners = (f"port {plain} proxy from 127.0.0.1", f"port {secure} smtps pki p proxy from 127.0.0.1")
    server = server_on(folder, wiring, *listeners)
    server.conf.write_text(f'pki p cert "{cert}" key "{key}"\n' + server.config)
    ways = ((v1, plain, "send-proxy"), (v2, plain, "send-proxy-v2 check"), (tls, secure, "send-proxy-v2"))
    message = "Subject: x\r\n\r\nthrough a proxy\r\n"
    with server, haproxy(folder, *ways):
        for port in (v1, v2):
            with smtplib.SMTP("127.0.0.1", port, timeout=20, source_address=("127.0.0.2", 0)) as client:
                client.sendmail("s@client.example.net", ["alice@example.org"], message)
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with smtplib.SMTP_SSL(
            "127.0.0.1", tls, timeout=20, context=trusting, source_address=("127.0.0.2", 0)
        ) as client:
            client.sendmail("s@client.example.net", ["alice@example.org"], message)
        # Its own address is nobody's that may send.
        with smtplib.SMTP("127.0.0.1", v2, timeout=20) as client, pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("s@client.example.net", ["alice@example.org"], message)
        assert wait_for(lambda: len(mail_in("/home/alice")) == 3, 10), server.log()
        assert all("[127.0.0.2])" in text for text in mail_in("/home/alice"))
        assert sum("with ESMTPS" in text for text in mail_in("/home/alice")) == 1
