"""An LMTP client (RFC 2033) for one message to one mailbox: blocking, run in a delivery child as the user.

It speaks as plainly as the reference: one command at a time, and no parameters but SMTPUTF8 for addresses that need
it. The host was resolved before; here is no resolver.
"""

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from pillarbox.mail.idn import ascii_address
from pillarbox.mda.mailers import expand_target
from pillarbox.mda.message import Failure, Message, failure

_PROGRAM = "mail.lmtp"
_EX_UNAVAILABLE = 69
_LINE_MAX = 4096
_LINES_MAX = 1000
_CONNECT_WAIT = 30.0


def deliver_lmtp(message: Message, deadline: float) -> None:
    """Hand the message over; `deadline` on the monotonic clock. Raises Failure."""
    message.check_loop()
    job = message.job
    recipient = job.dest if job.rcpt_to else job.user
    try:
        with _connect(expand_target(job), job.addresses, deadline) as connection:
            talk = _Talk(connection, deadline)
            talk.expect("2")
            offered = talk.say("LHLO localhost", "2")
            sender, recipient, utf8 = _envelope(job.sender, recipient, offered)
            talk.say(f"MAIL FROM:<{sender}>{utf8}", "2")
            talk.say(f"RCPT TO:<{recipient}>", "2")
            talk.say("DATA", "3")
            talk.send(_with_dots(message.chunks()))
            talk.say(".", "2")
            talk.quit()
    except OSError as error:
        raise failure(_PROGRAM, error.strerror or "timed out") from None


def _envelope(sender: str, recipient: str, offered: list[str]) -> tuple[str, str, str]:
    """Sender, recipient, and the parameter that they need (RFC 6531 §3.4); Failure where the store lacks it.

    A header in UTF-8 alone stops nothing: this is the end of its way, and stores take it.
    """
    if (sender + recipient).isascii():
        return sender, recipient, ""
    if "SMTPUTF8" in map(str.upper, offered):
        return sender, recipient, " SMTPUTF8"
    plain = ascii_address(sender), ascii_address(recipient)
    if None in plain:
        raise failure(_PROGRAM, "553 5.6.7 SMTPUTF8 needed, but not offered", _EX_UNAVAILABLE)
    return plain[0] or "", plain[1] or "", ""


class _Talk:
    """Lines of one connection, each wait within the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._socket = connection
        self._deadline = deadline
        self._buffer = b""

    def say(self, line: str, expected: str) -> list[str]:
        """A command; the lines of its answer without codes."""
        self.send([line.encode("utf-8", "surrogateescape") + b"\r\n"])
        return self.expect(expected)

    def send(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._limit()
            self._socket.sendall(chunk)

    def expect(self, expected: str) -> list[str]:
        """Read a reply of one or more lines; Failure unless its code begins with `expected`."""
        texts: list[str] = []
        while True:
            line = self._line()
            texts.append(line[4:])
            if len(line) < 3 or not line[:3].isdigit() or line[3:4] not in ("", " ", "-"):
                raise failure(_PROGRAM, "LMTP server sent an invalid line")
            if line[0] != expected:
                temporary = line[0] == "4"
                raise failure(_PROGRAM, f"LMTP server error: {line}", 75 if temporary else _EX_UNAVAILABLE)
            if line[3:4] != "-":
                return texts
            if len(texts) > _LINES_MAX:
                raise failure(_PROGRAM, "LMTP server sent an endless reply")

    def quit(self) -> None:
        """Say goodbye; the message is theirs already, so nothing that happens here counts."""
        try:
            self.say("QUIT", "2")
        except (OSError, Failure):
            return

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LINE_MAX:
                raise failure(_PROGRAM, "LMTP server sent an invalid line")
            self._limit()
            data = self._socket.recv(4096)
            if not data:
                raise failure(_PROGRAM, "unexpected EOF from LMTP server")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "replace")

    def _limit(self) -> None:
        self._socket.settimeout(max(0.1, self._deadline - time.monotonic()))


def _with_dots(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Local form to wire form: CRLF, and a dot doubled at the start of a line (RFC 5321 §4.5.2)."""
    at_start = True
    for chunk in chunks:
        data = chunk.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
        yield b"." + data if at_start and data.startswith(b".") else data
        at_start = chunk.endswith(b"\n")


def split_destination(destination: str) -> tuple[str, str]:
    """(host, port) of `host`, `host:port`, `[address]`, `[IPv6:address]:port`. Raises Failure."""
    if not destination.startswith("["):
        if destination.count(":") > 1:
            return destination, "25"
        host, _, port = destination.partition(":")
        return host, port or "25"
    host, bracket, rest = destination[1:].partition("]")
    if not bracket or (rest and not rest.startswith(":")):
        raise failure(_PROGRAM, "inet: invalid address syntax")
    if host.lower().startswith("ipv6:"):
        host = host[5:]
    return host, rest[1:] or "25"


def addresses_of(host: str) -> tuple[str, ...]:
    """The addresses of a host that need no resolver: a literal, or localhost. Empty: it has to be looked up."""
    if host.lower() == "localhost":
        return ("127.0.0.1", "::1")
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        return ()


def _connect(destination: str, addresses: tuple[str, ...], deadline: float) -> socket.socket:
    if destination.startswith("/"):
        return _first([lambda: _open(socket.AF_UNIX, destination, deadline)], "connect: ")
    host, port = split_destination(destination)
    known = addresses_of(host) or addresses
    if not known:
        raise failure(_PROGRAM, "inet: Name or service not known")
    if not port.isdigit() or int(port) > 65535:
        raise failure(_PROGRAM, "inet: Servname not supported for ai_socktype")
    families = [(socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in known]
    return _first([lambda f=f, a=a: _open(f, (a, int(port)), deadline) for f, a in families], "")  # type: ignore[misc]


def _open(family: socket.AddressFamily, address: str | tuple[str, int], deadline: float) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(max(0.1, min(_CONNECT_WAIT, deadline - time.monotonic())))
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _first(attempts: list[Callable[[], socket.socket]], prefix: str) -> socket.socket:
    """The first that connects. COMPAT: of a host the reference says no more than `connect`."""
    reason = ""
    for attempt in attempts:
        try:
            return attempt()
        except OSError as error:
            reason = error.strerror or "timed out"
    raise failure(_PROGRAM, prefix + reason if prefix else "connect")
