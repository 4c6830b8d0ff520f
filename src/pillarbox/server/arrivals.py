"""From an accepted connection to a client who gets a session: the PROXY header, and the server's limits.

Connections that need neither pass at once. A header is read from the plain socket and not a byte beyond it, so that a
TLS handshake may follow. Whoever is turned away before there is a session is told why where that can be read.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Protocol

import msgspec

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.roles.lookup import Lookup
from pillarbox.server.doors import Serving
from pillarbox.server.services import bracketed
from pillarbox.smtp import replies
from pillarbox.smtp.proxy import BadHeader, HeaderReader
from pillarbox.smtp.replies import Reply

HEADER = 300.0  # seconds for the whole PROXY header, as the reference
_UNREAD = 65536  # bytes


class Admitting(Protocol):
    """What is needed of `server/admissions`."""

    async def admit(self, config: Config, address: str) -> tuple[int, str]:
        """A ticket, or 0 and the limit that is reached."""
        ...

    def leave(self, ticket: int) -> None:
        """It will be no session after all."""
        ...


class Arrival(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Who came in, and where. `address` and `client_port` are the client's, behind a proxy as that says."""

    serving: Serving
    listener: Listener
    connection: socket.socket
    address: str
    client_port: int
    server: str
    port: int
    ticket: int = 0  # of `server/admissions`

    @property
    def proxied(self) -> bool:
        """Whether the first thing to come is a header."""
        return self.listener.proxy or self.listener.proxy_v2

    @property
    def limited(self) -> bool:
        """Whether lookup has to be asked for a ticket."""
        return self.serving.config.smtp.limits_sessions and not self.listener.unlimited


class Arrivals:
    """Those who have no session yet. `ready` makes one; `random64` names what is logged before."""

    def __init__(
        self,
        *,
        lookup: Lookup,
        admissions: Admitting,
        log: Log,
        random64: Callable[[], int],
        ready: Callable[[Arrival], None],
        background: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._lookup = lookup
        self._admissions = admissions
        self._log = log
        self._random64 = random64
        self._ready = ready
        self._background = background
        self._waiting: set[Arrival] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, arrival: Arrival) -> None:
        """Make a session of it, at once or later."""
        if arrival.proxied or arrival.limited:
            self._waiting.add(arrival)
            self._background(self._bring_in(arrival))
        else:
            self._ready(arrival)

    def generations(self) -> set[int]:
        """Of which configurations sessions may still begin."""
        return {arrival.serving.config.generation for arrival in self._waiting}

    def send_away(self, generation: int | None = None) -> None:
        """Wait no longer for those of this configuration, or for anybody."""
        for arrival in self._waiting:
            if generation in (None, arrival.serving.config.generation):
                with contextlib.suppress(OSError):  # it is gone already
                    arrival.connection.shutdown(socket.SHUT_RD)

    async def _bring_in(self, arrival: Arrival) -> None:
        came, client = arrival, None
        try:
            if arrival.proxied:
                arrival = await self._behind_proxy(arrival)
            client = await self._admit(arrival)
        except BadHeader as error:
            # In the reference's form, %p of its session included.
            line = f"proxy 0x{id(came):012x} event=closed address={bracketed(arrival.address)}"
            self._log.info(f'{line} reason="{error}"')
            with contextlib.suppress(OSError):
                came.connection.recv(_UNREAD)  # to close with input unread would be a reset
        finally:
            self._waiting.discard(came)
            if client is None:
                came.connection.close()
        if client is not None:
            self._ready(client)

    async def _behind_proxy(self, arrival: Arrival) -> Arrival:
        """The arrival with the client's address. Raises BadHeader."""
        self._log.event(self._random64(), "smtp", event="proxy", address=bracketed(arrival.address))
        await self._require_trust(arrival)
        reader = HeaderReader(v1=arrival.listener.proxy)
        source = None
        try:
            async with asyncio.timeout(HEADER):
                while source is None:
                    data = await self._loop.sock_recv(arrival.connection, reader.wanted)
                    if not data:
                        raise BadHeader("disconnected")
                    source = reader.feed(data)
        except TimeoutError:
            raise BadHeader("timeout") from None
        except OSError as error:
            raise BadHeader(f"IO error ({error.strerror or error})") from None
        if not source.address:
            return arrival
        return msgspec.structs.replace(arrival, address=source.address, client_port=source.port)

    async def _require_trust(self, arrival: Arrival) -> None:
        table = arrival.listener.proxy_from
        if not table:
            return
        try:
            trusted = await self._lookup.trusts_proxy(arrival.serving.config.generation, table, arrival.address)
        except PillarboxError as error:
            raise BadHeader(f"not known to be a trusted proxy ({error})") from None
        if not trusted:
            raise BadHeader("not a trusted proxy")

    async def _admit(self, arrival: Arrival) -> Arrival | None:
        """The arrival with its ticket; None: it was told why there is none."""
        if not arrival.limited:
            return arrival
        ticket, limit = await self._admissions.admit(arrival.serving.config, arrival.address)
        if limit:
            self._log.event(self._random64(), "smtp refused", address=bracketed(arrival.address), limit=limit)
            say(arrival, replies.limited_session(limit))
            return None
        return msgspec.structs.replace(arrival, ticket=ticket)


def say(arrival: Arrival, reply: Reply) -> None:
    """To somebody who gets no session, unless TLS would have to come first."""
    if arrival.listener.tls is not TlsMode.SMTPS:
        with contextlib.suppress(OSError):  # it is closed anyway
            arrival.connection.send(reply.wire)
