"""One TCP connection to a next hop: bytes between the transport and `smtp/client_protocol`, with deadlines.

`delivery` owns it and waits for its milestones one by one; what is said about single recipients reaches `delivery`
at once, in the callback that read it.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from pillarbox.mta.events import LinkEvents
from pillarbox.smtp.client_events import Answered, Event, Failed, Transaction
from pillarbox.smtp.client_protocol import Client
from pillarbox.sockets import attach

TIMEOUT = 300.0  # seconds, each wait on the peer
VERDICT_TIMEOUT = 600.0  # RFC 5321 §4.5.3.2.6: whoever leaves before the answer to the message sends it twice
_CLOSE_TIMEOUT = 30.0  # seconds for the answer to QUIT
_BUFFER = 256 * 1024  # bytes of a large body on their way before more of it is read
# connect(2) says these before a packet was sent; the reference calls them so.
_LOCAL = (errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.EINVAL)


class SourceError(Exception):
    """The local address cannot be used."""


class ConnectError(Exception):
    """There is no connection; the text is the reference's."""


class Link(asyncio.Protocol):
    """A connection. `answered` is called for each `Answered`, `broken` when it is lost with nobody waiting.

    `events`: where anybody listens to the session, those of this connection.
    """

    def __init__(
        self,
        client: Client,
        *,
        answered: Callable[[Answered], None],
        broken: Callable[[Failed], None],
        events: LinkEvents | None = None,
    ) -> None:
        self.client = client
        self.events = events
        self.local_address = ""
        self._answered = answered
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._milestones: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._handshaking = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, address: str, port: int, source: str, host: str) -> None:
        """Connect. `host`: the name of the address, for the events. Raises SourceError or ConnectError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise ConnectError(f"Connection failed: {error.strerror}") from error
        try:
            if source:
                _bind(sock, source)
            async with asyncio.timeout(TIMEOUT):
                await self._loop.sock_connect(sock, (address, port))
            local = sock.getsockname()
            self.local_address = local[0]
            if self.events is not None:
                self.events.connected(host, local[:2], (address, port))
            await attach(lambda: self, sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise ConnectError("Connection timeout") from error
            if isinstance(error, OSError):
                kind = "Connection failed" if error.errno in _LOCAL else "IO Error"
                raise ConnectError(f"{kind}: {os.strerror(error.errno or 0)}") from error
            raise

    async def start_tls(self, context: ssl.SSLContext, host: str) -> ssl.SSLObject:
        """Do the handshake. Raises OSError (ssl.SSLError included), ValueError or TimeoutError."""
        assert self._transport is not None
        self._stop_timer()
        self._handshaking = True  # the end of the connection is the handshake's to explain
        transport = await self._loop.start_tls(
            self._transport, self, context, server_hostname=host, ssl_handshake_timeout=TIMEOUT
        )
        self._handshaking = False
        if transport is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._transport = transport
        tls = cast(ssl.SSLObject, transport.get_extra_info("ssl_object"))
        if self.events is not None:
            self.events.tls_started(describe(tls))
        self._dispatch(self.client.tls_started())
        return tls

    async def milestone(self, timeout: float | None = None) -> Event:
        """The next event that is not about one recipient. The peer has `timeout` seconds for each thing it must say."""
        while not self._milestones:
            self._deadline = self._loop.time() + (timeout or self._patience())
            if self._timer is None or self._timer.when() > self._deadline:
                self._stop_timer()
                self._timer = self._loop.call_at(self._deadline, self._check_deadline)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._milestones.popleft()

    def begin(self, transaction: Transaction) -> None:
        """Start a transaction; milestones follow."""
        self._dispatch(self.client.begin(transaction))

    async def send(self, chunk: bytes) -> None:
        """Send a piece of a body, waiting until there is room for another. A peer that takes nothing is given up."""
        self.client.body_chunk(chunk)
        self._flush()
        if not self._paused or self.client.failed:
            return
        self._writable = self._loop.create_future()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._writable
        except TimeoutError:
            self._give_up()
        finally:
            self._writable = None

    def end_body(self) -> None:
        """The body is complete."""
        self._dispatch(self.client.body_end())

    async def quit(self) -> Event:
        """Say QUIT and wait for its answer: `Closed`, or `Failed`."""
        if not self.client.failed:
            self.client.quit()
            self._flush()
        return await self.milestone(_CLOSE_TIMEOUT)

    def fail(self, text: str) -> None:
        """Give the connection up."""
        self._dispatch(self.client.fail(text))

    def close(self) -> None:
        """Close; unless the peer answered QUIT, without waiting for what was not sent."""
        self._stop_timer()
        if self.events is not None:
            self.events.closed()
        if self._transport is not None:
            transport, self._transport = self._transport, None
            if self.client.closed:
                transport.close()
            else:
                transport.abort()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER)

    def data_received(self, data: bytes) -> None:
        """The peer said something."""
        if not self.client.failed:
            self._dispatch(self.client.feed(data))

    def eof_received(self) -> bool | None:
        """The peer closed its side: nothing more can be answered."""
        if self._handshaking:
            return None
        self._dispatch(self.client.eof())
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._paused = False
        self._wake(self._writable)
        if self._transport is None or self._handshaking:
            return
        if isinstance(error, OSError) and error.errno:
            self._dispatch(self.client.fail(f"IO Error: {os.strerror(error.errno)}"))
        else:
            self._dispatch(self.client.eof())

    def pause_writing(self) -> None:
        """Enough is waiting to be sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._paused = False
        self._wake(self._writable)

    # Plumbing.

    def _dispatch(self, events: list[Event]) -> None:
        self._flush()
        waited_for = self._waiter is not None
        for event in events:
            if isinstance(event, Answered):
                self._deadline = self._loop.time() + self._patience()
                self._answered(event)
            elif isinstance(event, Failed):
                self._broken(event)
                self._milestones.append(event)
                self._wake(self._writable)
            else:
                self._milestones.append(event)
        if waited_for and self._milestones:
            self._wake(self._waiter)

    def _flush(self) -> None:
        data = self.client.output()
        if data and self._transport is not None:
            self._deadline = self._loop.time() + self._patience()
            self._transport.write(data)

    def _patience(self) -> float:
        return VERDICT_TIMEOUT if self.client.awaits_verdict else TIMEOUT

    def _check_deadline(self) -> None:
        """Fires at the earliest time a deadline can have passed; it is moved on without touching the timer."""
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self.events is not None:
            self.events.timed_out()
        self.fail("Connection timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _wake(waiter: "asyncio.Future[Any] | None") -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def describe(tls: ssl.SSLObject) -> str:
    """`VERSION:CIPHER:BITS`, as in the log and in events."""
    name, _, bits = tls.cipher() or ("", "", 0)
    return f"{tls.version()}:{name}:{bits}"


def _bind(sock: socket.socket, source: str) -> None:
    try:
        # Many connections from one address: let the port be chosen with the destination known.
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    except OSError as error:
        raise SourceError(os.strerror(error.errno or 0)) from error


_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
