"""A filter as a process, started as the server starts one: one socket is its standard input and output."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from pillarbox.errors import PillarboxError

_CHUNK = 1 << 16


class FilterProcess:
    """Made by `start_filter`; to be ended by `end`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._out: list[bytes] = []
        self.pending = 0  # bytes that wait for `flush`

    def write(self, data: bytes) -> None:
        """Lines for it; `flush` sends them."""
        self._out.append(data)
        self.pending += len(data)

    async def flush(self, timeout: float) -> None:
        """Send what was written, and wait until it reads. Raises TimeoutError, ConnectionError."""
        if self._out:
            data, self._out, self.pending = b"".join(self._out), [], 0
            self._writer.write(data)
            async with asyncio.timeout(timeout):
                await self._writer.drain()

    async def read(self) -> bytes:
        """What it wrote; empty when it ended, or closed its output."""
        try:
            return await self._reader.read(_CHUNK)
        except ConnectionError:
            return b""

    def hang_up(self) -> None:
        """It gets no more, and is not listened to; who waits until it reads goes on."""
        self._writer.transport.abort()

    async def end(self, timeout: float) -> int | None:
        """Close its input and wait; its exit status, negative for a signal. None: it had to be killed."""
        self._writer.close()
        ended = asyncio.ensure_future(self._ended())
        await asyncio.wait({ended}, timeout=timeout)  # not asyncio.timeout, which 3.11.2 has no more of once cancelled
        status = ended.result() if ended.done() else None
        if status is None:
            ended.cancel()
            self.hang_up()
        with contextlib.suppress(ProcessLookupError):  # what it started ends with it
            os.killpg(self._process.pid, signal.SIGKILL)
        if status is None:
            await self._process.wait()
        return status

    async def _ended(self) -> int:
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return await self._process.wait()


async def start_filter(command: Sequence[str]) -> FilterProcess:
    """Run it; its standard error is ours. Raises PillarboxError where it cannot be started."""
    ours, its = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=its.fileno(),
            stdout=its.fileno(),
            start_new_session=True,
            env={**os.environ, "PILLARBOX_ACCEPTS": "report"},
        )
    except OSError as error:
        ours.close()
        raise PillarboxError(f"{command[0]}: {error.strerror}") from None
    finally:
        its.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return FilterProcess(process, reader, writer)
