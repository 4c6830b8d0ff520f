"""Programs that are not ours, in the role that talks to them: it asks the parent, which hands their sockets over.

A socket travels over the channel between parent and role (`processes/channel`), or is handed over within one process.
A role that was started again asks for new programs, which ends those of its predecessor.
"""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable

from pillarbox.errors import TempFail

ARRIVAL = 5.0  # seconds for a socket to arrive after the parent said that it had sent it

Start = Callable[[int], Awaitable[int | None]]  # asks the parent to start it, under this token; returns its pid
Stop = Callable[[float], Awaitable[None]]  # asks the parent to end it, after so many seconds at the latest


class HandedPrograms:
    """In a role: asks the parent for programs, and takes their sockets as they arrive (`add`)."""

    def __init__(self) -> None:
        self._expected: dict[int, asyncio.Future[socket.socket]] = {}

    def program(self, start: Start, stop: Stop) -> "HandedProgram":
        """One that is started and ended so."""
        return HandedProgram(self._expected, start, stop)

    def add(self, token: int, connection: socket.socket) -> None:
        """A socket has arrived."""
        expected = self._expected.pop(token, None)
        if expected is None or expected.done():
            connection.close()  # nobody waits for it any more
        else:
            expected.set_result(connection)


class HandedProgram:
    """Implements `tables.program.Program` and `filters.supervisor.Program`."""

    def __init__(self, expected: "dict[int, asyncio.Future[socket.socket]]", start: Start, stop: Stop) -> None:
        self._expected = expected
        self._start = start
        self._stop = stop
        self.pid = 0

    async def start(self) -> socket.socket:
        """See `Program`."""
        token = secrets.randbits(63)
        arriving: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._expected[token] = arriving
        try:
            self.pid = await self._start(token) or 0
            async with asyncio.timeout(ARRIVAL):
                return await arriving
        except TimeoutError:
            raise TempFail("its socket did not arrive") from None
        except BaseException:
            if arriving.done() and not arriving.cancelled():
                arriving.result().close()
            raise
        finally:
            self._expected.pop(token, None)

    async def stop(self, grace: float = 0.0) -> None:
        """See `Program`."""
        await self._stop(grace)
