"""A session of a local user over the control socket: a transport in memory instead of a connection.

The user's end is driven by `Server.submit_*`. Bounded both ways: `write_to_session` waits while the session does not
read, and a session whose output nobody fetches is told to stop writing.
"""

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pillarbox.server.session import Session

_HIGH_WATER = 64 * 1024


class _MemoryTransport(asyncio.Transport):
    """What the session sees."""

    def __init__(self, owner: "Submission") -> None:
        super().__init__()
        self._owner = owner

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        self._owner.from_session(bytes(data))

    def pause_reading(self) -> None:
        self._owner.reading.clear()

    def resume_reading(self) -> None:
        self._owner.reading.set()

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._owner.closed

    def close(self) -> None:
        self._owner.end()

    def abort(self) -> None:
        self._owner.end()


class Submission:
    """One such session with both of its ends."""

    def __init__(self, session: "Session", loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        self.reading = asyncio.Event()
        self.reading.set()
        self._session = session
        self._loop = loop
        self._output = bytearray()
        self._has_output = asyncio.Event()
        self._blocked = False

    def begin(self) -> None:
        """The session greets."""
        self._session.begin()
        self._session.connection_made(_MemoryTransport(self))

    async def write_to_session(self, data: bytes) -> None:
        """The client's bytes, when the session reads."""
        await self.reading.wait()
        if not self.closed:
            self._session.data_received(data)
        await self.reading.wait()

    async def read_from_session(self) -> bytes:
        """The session's bytes, when there are some; b"" when it is over."""
        await self._has_output.wait()
        data = bytes(self._output)
        self._output.clear()
        if not self.closed:
            self._has_output.clear()
        if self._blocked:
            self._blocked = False
            self._session.resume_writing()
        return data

    def client_gone(self) -> None:
        """As a connection that the client closed."""
        if not self.closed:
            self.end()

    def from_session(self, data: bytes) -> None:
        """The session wrote."""
        self._output += data
        self._has_output.set()
        if len(self._output) > _HIGH_WATER and not self._blocked:
            self._blocked = True
            self._session.pause_writing()

    def end(self) -> None:
        """Nothing more comes from the session; what it said can still be read."""
        if self.closed:
            return
        self.closed = True
        self.reading.set()
        self._has_output.set()
        self._loop.call_soon(self._session.connection_lost, None)
