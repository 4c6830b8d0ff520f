"""The descriptors of a conversation: standard input and output, kept from whatever else would read or print there."""

import asyncio
import io
import os
import sys
import threading
from collections.abc import AsyncIterator

from pillarbox.sdk.wire import Lines

_CHUNK = 1 << 16


class ServerGone(Exception):
    """The server does not read any more what is written to it."""


def write_some(fd: int, data: bytes | bytearray | memoryview) -> int:
    """Write what there is room for; how much that was. Raises ServerGone, BlockingIOError and other OSErrors."""
    try:
        return os.write(fd, data)
    except ConnectionError as error:  # EPIPE, ECONNRESET
        raise ServerGone(str(error)) from error


class Stdio:
    """Takes descriptors 0 and 1 for itself: from now on `print` goes to standard error, which the server logs."""

    def __init__(self) -> None:
        self.reading = os.dup(0)
        self.writing = os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        os.dup2(2, 1)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What was printed so far goes where it belongs, and what is printed from now on does so line by line.
            sys.stdout.reconfigure(line_buffering=True)
        for fd in (self.reading, self.writing):
            os.set_blocking(fd, True)

    def write(self, data: bytes) -> None:
        """Write all of it. While the server does not read, the program stands still: nothing piles up here.

        Raises ServerGone.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[write_some(self.writing, rest) :]

    async def lines(self) -> AsyncIterator[tuple[str, bool]]:
        """Lines as they come, without their ends, and whether each was cut; ends with the input."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[bytes] = asyncio.Queue()
        wanted = threading.Semaphore(1)
        # A thread, not the loop, because the loop cannot wait for a regular file: `table-x < recorded.txt`.
        threading.Thread(target=self._read, args=(loop, pieces, wanted), name="stdin", daemon=True).start()
        lines = Lines()
        while piece := await pieces.get():
            for line in lines.feed(piece):
                yield line
            wanted.release()

    def _read(self, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[bytes], wanted: threading.Semaphore) -> None:
        piece = b"-"
        while piece:
            wanted.acquire()
            try:
                piece = os.read(self.reading, _CHUNK)
            except OSError:  # ECONNRESET: a server that died with our answers unread
                piece = b""
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed: the program ends
                return
