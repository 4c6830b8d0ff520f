"""The programs of tables, in lookup: the parent is asked for them, and their sockets are handed over.

A socket travels over the channel between parent and lookup (`daemon/channel`), or is handed over within one process.
A lookup that was started again asks for new programs, which ends those of its predecessor.
"""

import asyncio
import secrets
import socket

from pillarbox.errors import TempFail
from pillarbox.roles.parent import Programs

ARRIVAL = 5.0  # seconds for a socket to arrive after the parent said that it had sent it


class HandedPrograms:
    """In lookup: asks the parent for programs, and takes their sockets as they arrive (`add`)."""

    def __init__(self, parent: Programs) -> None:
        self._parent = parent
        self._expected: dict[int, asyncio.Future[socket.socket]] = {}

    def of(self, generation: int, table: str) -> "HandedProgram":
        """The program of a table."""
        return HandedProgram(self._parent, self._expected, generation, table)

    def add(self, token: int, connection: socket.socket) -> None:
        """A socket has arrived."""
        expected = self._expected.pop(token, None)
        if expected is None or expected.done():
            connection.close()  # nobody waits for it any more
        else:
            expected.set_result(connection)


class HandedProgram:
    """Implements `tables.program.Program`."""

    def __init__(
        self, parent: Programs, expected: "dict[int, asyncio.Future[socket.socket]]", generation: int, table: str
    ) -> None:
        self._parent = parent
        self._expected = expected
        self._generation = generation
        self._table = table

    async def start(self) -> socket.socket:
        """See `Program`."""
        token = secrets.randbits(63)
        arriving: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._expected[token] = arriving
        try:
            await self._parent.start_table(self._generation, self._table, token)
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

    async def stop(self) -> None:
        """See `Program`."""
        await self._parent.stop_table(self._generation, self._table)
