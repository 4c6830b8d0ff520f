"""The client's side of the SMTP session that `sendmail` has over the control socket.

One command, one reply: the server is local. A reply that refuses and a server that goes away are different things:
the one is the message's fate, after the other it can be left for later.
"""

import socket
from collections.abc import Callable, Iterator

_LINE_MAX = 64 * 1024


class Refused(Exception):
    """The server's no: its text is the last line of the reply."""

    @property
    def temporary(self) -> bool:
        """Whether it may be accepted later."""
        return str(self).startswith("4")


class Lost(Exception):
    """The connection ended, or the server is going away, before it took the message."""


class Dialogue:
    """Commands and replies; `show` is given each of both for `-v`, as the reference prints them."""

    def __init__(self, connection: socket.socket, *, show: Callable[[str], None]) -> None:
        self._connection = connection
        self._show = show
        self._buffer = b""
        self._extensions: set[str] = set()

    def greet(self) -> None:
        """Banner and EHLO."""
        self._reply()
        self._send("EHLO localhost")
        for line in self._reply():
            self._extensions.add(line[4:].partition(" ")[0].upper())

    def mail(self, sender: str, *, ret: str, envid: str, eight_bit: bool, utf8: bool) -> None:
        """MAIL FROM, with DSN parameters where given; what the message needs is declared where it may be."""
        parameters = [f"RET={ret}" if ret else "", f"ENVID={envid}" if envid else ""]
        if eight_bit and "8BITMIME" in self._extensions:
            parameters.append("BODY=8BITMIME")
        if utf8 and "SMTPUTF8" in self._extensions:
            parameters.append("SMTPUTF8")
        self._send(f"MAIL FROM:<{sender}>", *parameters)
        self._reply()

    def rcpt(self, recipient: str, *, notify: str) -> None:
        """RCPT TO; each must be accepted."""
        self._send(f"RCPT TO:<{recipient}>", f"NOTIFY={notify}" if notify else "")
        self._reply()

    def data(self, pieces: Iterator[bytes]) -> None:
        """DATA and the message; when this returns it is the server's."""
        self._send("DATA")
        self._reply()
        for piece in pieces:
            self._write(piece)
        self._send(".")
        self._reply()

    def quit(self) -> None:
        """QUIT; whatever comes of it, the message is accepted."""
        try:
            self._send("QUIT")
            self._reply()
        except (Lost, Refused):
            return

    def _send(self, command: str, *parameters: str) -> None:
        """A command. The spaces of absent parameters are shown, as by the reference, and not sent."""
        self._show(" ".join((">>>", command, *parameters)))
        line = " ".join((command, *filter(None, parameters)))
        self._write(line.encode("utf-8", "surrogateescape") + b"\r\n")

    def _write(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            self._reply()  # why it hung up, if it said
            raise Lost from error

    def _reply(self) -> list[str]:
        """The lines of a positive reply; raises `Refused` or `Lost`."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            lines.append(self._line())
            self._show(f"<<< {lines[-1]}")
        last = lines[-1]
        if last.startswith("421"):  # RFC 5321 §3.8: it closes, and says nothing about the message
            raise Lost
        if last[:1] not in ("2", "3"):
            raise Refused(last)
        return lines

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            try:
                data = self._connection.recv(4096)
            except OSError as error:
                raise Lost from error
            if not data or len(self._buffer) > _LINE_MAX:
                raise Lost
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r").decode("utf-8", "replace")
