"""The clients' end of the control socket: blocking, with a deadline on every wait."""

import contextlib
import socket

from pillarbox import places
from pillarbox.control import wire

TIMEOUT = 300.0  # seconds for one answer: `schedule all` of a long queue takes its time

_REPEATABLE = (
    wire.ShowQueue,
    wire.ShowEnvelope,
    wire.ReadMessage,
    wire.ShowMta,
    wire.ShowStats,
    wire.ShowStatus,
    wire.ShowFilters,
    wire.Explain,
)


class ControlError(Exception):
    """What a program says after its name before it exits with 1."""


class NotRunning(ControlError):
    """No server listens."""

    def __init__(self) -> None:
        super().__init__("smtpd doesn't seem to be running")


class Unanswered(ControlError):
    """The server took the connection and gave no answer."""


class Connection:
    """Requests and answers; connects at the first request."""

    def __init__(self, path: str, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def ask(self, request: wire.Request) -> wire.Answer:
        """The answer to a request; raises `ControlError`.

        The server closes connections that are idle, as where a listing waits in a pager: what only looks is asked
        once more over a new one.
        """
        used = self._socket is not None
        try:
            return self._exchange(request)
        except (ConnectionError, EOFError) as error:
            self.close()
            if not used or not isinstance(request, _REPEATABLE):
                raise Unanswered("pipe closed") from error
        try:
            return self._exchange(request)
        except (ConnectionError, EOFError) as error:
            raise Unanswered("pipe closed") from error

    def submit(self) -> socket.socket:
        """Begin an SMTP session: the connected socket that carries it, the caller's to close. Raises `ControlError`."""
        answer = self.ask(wire.Submit())
        if isinstance(answer, wire.Failed):
            raise ControlError(answer.text)
        if not isinstance(answer, wire.Done) or self._socket is None:
            raise ControlError("unexpected imsg reply type")
        session, self._socket = self._socket, None
        return session

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def connect(self) -> None:
        """Connect now, unless it is; raises `NotRunning`."""
        if self._socket is not None:
            return
        try:
            self._socket = places.connect(self._path, self._timeout)
        except OSError as error:
            raise NotRunning from error

    def _exchange(self, request: wire.Request) -> wire.Answer:
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        try:
            with contextlib.suppress(ConnectionError):  # a server that refuses says why before it closes
                self._socket.sendall(wire.frame(request))
            header = self._read(wire.HEADER)
            return wire.decode_answer(self._read(wire.body_length(header, wire.ANSWER_MAX)))
        except TimeoutError as error:
            raise Unanswered("smtpd does not answer") from error
        except wire.Bad as error:
            raise ControlError(str(error)) from error

    def _read(self, count: int) -> bytes:
        """Exactly so many bytes: byte by byte nothing is lost to a buffer when the connection changes its use."""
        assert self._socket is not None
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
