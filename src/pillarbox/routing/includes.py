"""Files that aliases include (`:include:/path`), read in threads of their own, for a file server may hang.

A path is read by one thread at a time, and whoever asks for it meanwhile waits for the same: one that hangs costs one
thread, however much mail wants it.
"""

import asyncio
import os
import stat
from concurrent.futures import ThreadPoolExecutor

from pillarbox.errors import TempFail

THREADS = 8  # paths that are read at a time
DEADLINE = 15.0  # seconds
MAX_SIZE = 16 << 20  # bytes


class Includes:
    """Reads included files."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="include")
        self._reading: dict[str, asyncio.Future[bytes]] = {}

    async def read(self, path: str) -> bytes:
        """The content of a regular file; TempFail."""
        reading = self._reading.get(path)
        if reading is None:
            reading = asyncio.get_running_loop().run_in_executor(self._threads, read_file, path)
            self._reading[path] = reading
            reading.add_done_callback(lambda done: self._forget(path, done))
        try:
            async with asyncio.timeout(DEADLINE):
                return await asyncio.shield(reading)
        except TimeoutError:
            raise TempFail("not read in time") from None

    def _forget(self, path: str, done: "asyncio.Future[bytes]") -> None:
        del self._reading[path]
        if not done.cancelled():
            done.exception()  # perhaps nobody waits for it any more

    def close(self) -> None:
        """Stop the threads; what waits for them is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def read_file(path: str) -> bytes:
    """A regular file's content; TempFail on anything else. Never blocks on a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TempFail("not a regular file")
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        raise TempFail(str(error)) from None
    if len(data) > MAX_SIZE:
        raise TempFail(f"larger than {MAX_SIZE} bytes")
    return data
