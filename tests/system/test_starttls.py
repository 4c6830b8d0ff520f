"""What is slipped in beside STARTTLS, in either direction, is never taken for something said over TLS (RFC 3207 §5)."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.certificates import write_pair
from tests.system.load import read_maildir
from tests.system.server import Server, Wiring, free_port, wait_for
from tests.system.test_crash import make_server

EVIL = (
    b"EHLO evil.example\r\nMAIL FROM:<evil@x.example>\r\nRCPT TO:<local@bench.test>\r\n"
    b"DATA\r\nSubject: 6.6\r\n\r\nx\r\n.\r\n"
)


def trusting() -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def with_tls(folder: Path, wiring: Wiring, port: int) -> Server:
    """A server that offers STARTTLS and delivers for bench.test."""
    folder.chmod(0o755)
    server = make_server(folder, wiring, free_port(), port)
    write_pair(folder / "cert", folder / "key", "mail.bench.test")
    pki = f'pki "mx" cert "{folder}/cert"\npki "mx" key "{folder}/key"\n'
    server.config = pki + server.config.replace("hostname mail.bench.test", 'hostname mail.bench.test tls pki "mx"')
    server.conf.write_text(server.config)
    return server


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "before the answer was read"])
def test_commands_behind_starttls_are_never_carried_out(folder: Path, wiring: Wiring, together: bool) -> None:
    port = free_port()
    with with_tls(folder, wiring, port) as server:
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            assert client.recv(1000).startswith(b"220 ")
            client.sendall(b"EHLO client.example.net\r\n")
            assert client.recv(1000).startswith(b"250-")
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if together:
                client.sendall(b"STARTTLS\r\n" + EVIL)
            else:
                client.sendall(b"STARTTLS\r\n")
                client.sendall(EVIL)
            said = _over_tls(client)
        assert b"250" not in said and b"354" not in said, said
        with socket.create_connection(("127.0.0.1", port), 20) as client:  # the server is well
            assert client.recv(1000).startswith(b"220 ")
        assert not server.queue()
        assert not read_maildir(folder / "mail/Maildir").arrived
        assert "failed-command" in server.log() or "reason=" in server.log(), server.log()[-2000:]


def _over_tls(client: socket.socket) -> bytes:
    """All that the server says by itself, in the clear or, where it does begin TLS, over that."""
    clear = b""
    with contextlib.suppress(OSError):
        clear = client.recv(1000)
        if clear.startswith(b"220 "):
            with trusting().wrap_socket(client, server_hostname="mail.bench.test") as secure:
                secure.settimeout(1)
                return secure.recv(1000)
    return clear


class InjectedHop:
    """A next hop behind somebody who puts a reply of his own behind the answer to STARTTLS."""

    def __init__(self, context: ssl.SSLContext, injected: bytes) -> None:
        self._context, self._injected = context, injected
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.ahead: list[bytes] = []  # what came before it was time, a connection
        self.commands: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            connection.settimeout(20)
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.sendall(b"220 hop.example ESMTP\r\n")
        while not (line := connection.recv(1000)).startswith(b"STARTTLS"):
            connection.sendall(b"250-hop.example\r\n250 STARTTLS\r\n" if line.startswith(b"EHLO") else b"221 bye\r\n")
        connection.sendall(b"220 go\r\n" + self._injected)
        with self._context.wrap_socket(connection, server_side=True) as secure:
            hello = secure.recv(1000)
            self.commands.append(hello)
            # Whoever took the injected reply for the answer to this goes on now.
            ready, _, _ = select.select([secure], [], [], 0.7)
            self.ahead.append(secure.recv(1000) if ready else b"")
            secure.sendall(b"250-hop.example\r\n250 8BITMIME\r\n")
            while line := secure.recv(1000):
                self.commands.append(line)
                secure.sendall(b"221 bye\r\n" if line.startswith(b"QUIT") else b"554 no mail here\r\n")


@contextlib.contextmanager
def hop(folder: Path, injected: bytes) -> Iterator[InjectedHop]:
    """A next hop with a certificate of its own."""
    write_pair(folder / "hop-cert", folder / "hop-key", "hop.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hop-cert", folder / "hop-key")
    made = InjectedHop(context, injected)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("injected", [b"", b"250-hop.example\r\n250 AUTH PLAIN\r\n", b"250 half a line"])
def test_replies_behind_the_answer_to_starttls_are_never_believed(
    folder: Path, wiring: Wiring, injected: bytes
) -> None:
    port = free_port()
    with hop(folder, injected) as next_hop:
        server = make_server(folder, wiring, next_hop.port, port)
        server.config = server.config.replace("smtp://127.0.0.1", "smtp+tls://127.0.0.1").replace(
            f":{next_hop.port}\n", f":{next_hop.port} tls no-verify\n"
        )
        server.conf.write_text(server.config)
        with server:
            _submit(port)
            if not injected:
                assert wait_for(lambda: len(next_hop.commands) >= 2, 20), server.log()[-2000:]
                assert next_hop.commands[1].startswith(b"MAIL FROM:<a@bench.test>")  # without it, all is well
                return
            assert wait_for(lambda: "result=" in server.log(), 20), server.log()[-2000:]
            assert not any(next_hop.ahead), next_hop.ahead
            assert not any(line.startswith(b"MAIL") for line in next_hop.commands), next_hop.commands
            assert len({row[0] for row in server.queue()}) == 1, "it waits for a next hop that makes sense"


def _submit(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        answers = client.makefile("rb")
        answers.readline()
        for command in (
            "HELO x",
            "MAIL FROM:<a@bench.test>",
            "RCPT TO:<b@far.example>",
            "DATA",
            "Subject: 1.1\r\n\r\nx\r\n.",
        ):
            client.sendall(command.encode() + b"\r\n")
            assert answers.readline()[:1] in b"23"
