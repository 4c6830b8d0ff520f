"""Connections to a milter: where it is, how many at a time, how long we wait for it."""

import asyncio
import contextlib
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pillarbox.milter import wire
from pillarbox.milter.wire import Command, Options, Packets, ProtocolError

_READ = 1 << 16
_PORT_AT_HOST = re.compile(r"([0-9]{1,5})(?:@(.+))?")
_HOST_PORT = re.compile(r"(.+):([0-9]{1,5})")
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


class MilterError(Exception):
    """No answer can be had of the milter. The text is for the log."""


class Gone(MilterError):
    """The milter closed the connection."""


@dataclass(frozen=True, slots=True)
class Address:
    """A UNIX socket, or a host and port of a family."""

    path: str = ""
    host: str = ""
    port: int = 0
    family: int = socket.AF_UNIX


def parse_address(text: str) -> Address:
    """`unix:PATH`, `local:PATH`, `inet:PORT@HOST`, `inet6:PORT@HOST`, as milters take it, or Postfix: `inet:HOST:PORT`.

    Raises ValueError with a text for the person who wrote it.
    """
    kind, _, rest = text.partition(":")
    if kind in ("unix", "local"):
        if not rest.startswith("/"):
            raise ValueError(f"{text}: the path of a socket begins with /")
        return Address(path=rest)
    if kind not in _FAMILIES:
        raise ValueError(f"{text}: an address is unix:PATH, inet:PORT@HOST or inet6:PORT@HOST")
    if match := _PORT_AT_HOST.fullmatch(rest):
        port, host = int(match[1]), match[2] or ("127.0.0.1" if kind == "inet" else "::1")
    elif match := _HOST_PORT.fullmatch(rest):
        host, port = match[1], int(match[2])
    else:
        raise ValueError(f"{text}: write {kind}:PORT@HOST")
    if not 0 < port < 1 << 16:
        raise ValueError(f"{text}: there is no port {port}")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=port, family=_FAMILIES[kind])


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: for a connection, for the answer to a command, and to a whole message; milters may ask for more time."""

    connect: float = 30.0
    command: float = 10.0
    message: float = 300.0


class Connection:
    """Bytes to and from a milter. Whatever goes wrong is a MilterError, after which it can only be closed.

    `idle`: nobody would miss it now.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        limit: int,
        closed: Callable[[], object],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._packets = Packets(limit=limit)
        self._ready: deque[tuple[bytes, bytes]] = deque()
        self._closed: Callable[[], object] | None = closed
        self.idle = False

    def send(self, data: bytes) -> None:
        """Say something; nothing is waited for."""
        if self._closed is not None:
            self._writer.write(data)

    async def drained(self, seconds: float) -> None:
        """Wait until the milter has taken most of what was said. Raises MilterError."""
        with _translated():
            async with asyncio.timeout(seconds):
                await self._writer.drain()

    async def packet(self, seconds: float) -> tuple[bytes, bytes]:
        """The next packet, letter and fields. Raises MilterError."""
        with _translated():
            async with asyncio.timeout(seconds):
                while not self._ready:
                    data = await self._reader.read(_READ)
                    if not data:
                        raise Gone("it closed the connection")
                    self._ready.extend(self._packets.feed(data))
        return self._ready.popleft()

    async def unasked(self) -> bool:
        """Did the milter say more than it was asked? What it says next would be taken for another answer."""
        if self._ready or self._packets.partial:
            return True
        with _translated(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # what has come is there at once
                return bool(await self._reader.read(_READ))
        return False

    async def usable(self) -> bool:
        """Is the milter still there, and waiting?"""
        try:
            over = await self.unasked()
        except MilterError:
            return False
        return not (over or self._closed is None or self._reader.at_eof() or self._writer.is_closing())

    def close(self) -> None:
        """End it. What the milter has not taken by now is not kept for it."""
        if self._closed is None:
            return
        self._closed()
        self._closed = None
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        self._writer.close()


class Milter:
    """One milter. `most`: connections at a time; `limit`: bytes of a packet that is taken.

    When there are so many, the oldest that is idle is ended for a new one: clients that do nothing keep nobody out.
    """

    def __init__(self, *, address: Address, deadlines: Deadlines, most: int, limit: int) -> None:
        self._address = address
        self.deadlines = deadlines
        self._most = most
        self._limit = limit
        self._coming = 0  # connections on their way
        self._open: dict[Connection, None] = {}

    async def connect(self) -> tuple[Connection, Options]:
        """A connection, and what was agreed on. Raises MilterError."""
        if self._coming + len(self._open) >= self._most:
            self._spare()
        self._coming += 1
        try:
            reader, writer = await self._streams()
        finally:
            self._coming -= 1
        connection = Connection(reader, writer, limit=self._limit, closed=lambda: self._open.pop(connection))
        self._open[connection] = None
        try:
            connection.send(wire.negotiate())
            letter, payload = await connection.packet(self.deadlines.command)
            with _translated():
                return connection, wire.parse_options(letter, payload)
        except BaseException:
            connection.close()
            raise

    def _spare(self) -> None:
        idle = next((connection for connection in self._open if connection.idle), None)
        if idle is None:
            raise MilterError(f"{self._most} messages are on their way already")
        idle.send(wire.packet(Command.QUIT))
        idle.close()

    async def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._address
        with _translated("no connection: "):
            async with asyncio.timeout(self.deadlines.connect):
                if address.path:
                    return await asyncio.open_unix_connection(address.path)
                return await asyncio.open_connection(address.host, address.port, family=address.family)


@contextlib.contextmanager
def _translated(before: str = "") -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise MilterError(f"{before}no answer in time") from None
    except ProtocolError as error:
        raise MilterError(f"{before}{error}") from None
    except ConnectionError as error:
        raise Gone(f"{before}{error.strerror or error}") from None
    except OSError as error:
        raise MilterError(f"{before}{error.strerror or error}") from None
