"""Reads and writes for a conversation, each on its own, so that neither waits for the other.

**No deadlock.** What is read is bounded by what is not yet written: above MAX_UNWRITTEN, reading pauses. The server
must not do the same, or each could wait for the other; it does not: OpenSMTPD and Pillarbox read what a filter writes
whether or not the filter reads. So what is unwritten drains, and reading goes on. Writing never waits for reading.
"""

import asyncio
import os
import stat
import threading
from typing import Protocol

from pillarbox.sdk.stdio import ServerGone, write_some

_CHUNK = 1 << 18
MAX_UNWRITTEN = 16 << 20  # bytes
_MUCH = 1 << 20  # bytes unwritten at which who has more at hand waits
LINGER = 60.0  # seconds after the end of input for what is under way


class Conversation(Protocol):
    """What is read and written for."""

    @property
    def full(self) -> bool:
        """Should no more be read for now?"""
        ...

    @property
    def idle(self) -> bool:
        """Is nothing under way?"""
        ...

    def feed(self, data: bytes) -> None:
        """What was read."""
        ...

    def take(self) -> bytes:
        """What is to be written."""
        ...


class Pipes:
    """Two descriptors. Sockets and pipes are waited for by the loop; a thread reads files, which it cannot wait for.

    `run` raises what `feed` does, ServerGone, and OSError when writing fails otherwise.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._in, self._out = reading, writing
        self._conversation: Conversation
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._buffer = memoryview(bytearray(_CHUNK))
        self._unwritten = bytearray()
        self._room = asyncio.Event()  # is less than _MUCH unwritten?
        self._polled_in, self._polled_out = _can_be_polled(reading), _can_be_polled(writing)
        self._reading = self._ended = self._woken = False
        self._wanted = threading.Semaphore(0)

    async def run(self, conversation: Conversation) -> None:
        """Until the other side has closed its end and all is answered and written."""
        self._conversation = conversation
        for fd, polled in ((self._in, self._polled_in), (self._out, self._polled_out)):
            os.set_blocking(fd, not polled)
        if not self._polled_in:
            threading.Thread(target=self._read_blocking, name="stdin", daemon=True).start()
        self._regulate()
        try:
            await self._over
        finally:
            self._stop_reading()
            self._loop.remove_writer(self._out)
            for fd in (self._in, self._out):
                os.set_blocking(fd, True)

    def wake(self) -> None:
        """The conversation has something to write, or got room. From the loop's thread only."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._flush)

    async def drained(self) -> None:
        """Write, and wait until most of it is read; others are served meanwhile. At once when all is over."""
        self._flush()
        await asyncio.sleep(0)
        if not self._over.done():
            await self._room.wait()

    def fail(self, error: BaseException) -> None:
        """End with this error."""
        if not self._over.done():
            self._over.set_exception(error)
            self._room.set()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
            self._room.set()

    # Reading

    def _start_reading(self) -> None:
        self._reading = True
        if self._polled_in:
            self._loop.add_reader(self._in, self._readable)
        else:
            self._wanted.release()

    def _stop_reading(self) -> None:
        if self._reading and self._polled_in:
            self._loop.remove_reader(self._in)
            self._reading = False

    def _readable(self) -> None:
        try:
            # Into memory that is there: a new block of this size costs page faults with each read, a third of the time.
            data = bytes(self._buffer[: os.readv(self._in, [self._buffer])])
        except BlockingIOError:
            return
        except OSError:  # ECONNRESET: a server that died with our answers unread
            data = b""
        self._received(data)

    def _read_blocking(self) -> None:
        data = b"-"
        while data:
            self._wanted.acquire()
            try:
                data = os.read(self._in, _CHUNK)
            except OSError:
                data = b""
            try:
                self._loop.call_soon_threadsafe(self._received_in_thread, data)
            except RuntimeError:  # the loop is closed: the program ends
                return

    def _received_in_thread(self, data: bytes) -> None:
        self._reading = False
        self._received(data)

    def _received(self, data: bytes) -> None:
        if self._over.done():
            return
        try:
            if data:
                self._conversation.feed(data)
            else:
                self._ended = True
                self._loop.call_later(LINGER, self._end)
        except Exception as error:  # noqa: BLE001 - it ends the program, which says why
            self.fail(error)
            return
        self._flush()

    # Writing

    def _flush(self) -> None:
        self._woken = False
        if self._over.done():
            return
        data = self._conversation.take()
        try:
            if data and not self._unwritten:
                data = data[write_some(self._out, data) :] if self._polled_out else self._write_blocking(data)
        except BlockingIOError:
            pass
        except (OSError, ServerGone) as error:
            self.fail(error)
            return
        if data:
            if not self._unwritten:
                self._loop.add_writer(self._out, self._writable)
            self._unwritten += data
        self._regulate()

    def _write_blocking(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[write_some(self._out, rest) :]
        return b""

    def _writable(self) -> None:
        try:
            del self._unwritten[: write_some(self._out, self._unwritten)]
        except BlockingIOError:
            return
        except (OSError, ServerGone) as error:
            self.fail(error)
            return
        if not self._unwritten:
            self._loop.remove_writer(self._out)
        self._regulate()

    def _regulate(self) -> None:
        """Read on, pause, or end; let who has more to write go on, or wait."""
        if len(self._unwritten) < _MUCH:
            self._room.set()
        else:
            self._room.clear()
        if self._ended:
            self._stop_reading()
            if self._conversation.idle and not self._unwritten:
                self._end()
        elif self._conversation.full or len(self._unwritten) > MAX_UNWRITTEN:
            self._stop_reading()
        elif not self._reading:
            self._start_reading()


def _can_be_polled(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
