"""Large bodies as files of their own: streamed in, synced, their folder synced, and only then referred to.

Those are the bodies that came by `append`, larger than `INLINE_BODY`. What is smaller is a row or lies in a segment.
"""

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from pillarbox.errors import NoSpace, TempFail
from pillarbox.queue.spool import Spool

ABANDONED = 3600.0  # seconds without an append, after which a body is taken for abandoned
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class _Growing:
    """A body that is being appended. `used`: monotonic time of the last append."""

    __slots__ = ("descriptor", "lock", "size", "used", "writing")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.writing: asyncio.Future[None] | None = None
        self.size = 0
        self.used = 0.0
        self.lock = asyncio.Lock()


class Bodies:
    """The body files of a spool. Disk work is done in `executor`. `on_fatal`: a disk that fails ends the role."""

    def __init__(
        self,
        spool: Spool,
        *,
        executor: Executor,
        monotonic: Callable[[], float],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._spool = spool
        self._executor = executor
        self._monotonic = monotonic
        self._on_fatal = on_fatal
        # An id is in one of these before its file is there, until the file is referred to. It goes from one to the next
        # by being added before it is removed, and `candidates` asks in this order: it never falls between them.
        self._creating: set[int] = set()
        self._growing: dict[int, _Growing] = {}
        self._committing: set[int] = set()
        self._begun: set[int] | None = None  # ids that were taken while a folder is being swept

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """Write the next piece. TempFail where it is not the next one, or there is no room."""
        body = self._growing.get(msgid)
        if body is None:
            if offset or self.is_busy(msgid):
                raise TempFail(f"queue: {msgid:08x}: nothing was appended before {offset}")
            body = await self._create(msgid)
        async with body.lock:
            if offset != body.size or self._growing.get(msgid) is not body:
                raise TempFail(f"queue: {msgid:08x}: {body.size} bytes were appended, not {offset}")
            body.used = self._monotonic()
            try:
                await self._write(body, chunk)
            except BaseException:  # cancelled too: what the file holds is unknown now
                self._forget(msgid)
                raise
            body.size += len(chunk)

    async def _write(self, body: _Growing, chunk: bytes) -> None:
        loop = asyncio.get_running_loop()
        body.writing = loop.run_in_executor(self._executor, _write_at, body.descriptor, chunk, body.size)
        try:
            # The thread cannot be stopped: the descriptor stays open until it is done (see _forget).
            await asyncio.shield(body.writing)
        except OSError as error:
            raise _failure(error) from error

    async def _create(self, msgid: int) -> _Growing:
        self._creating.add(msgid)
        if self._begun is not None:
            self._begun.add(msgid)
        loop = asyncio.get_running_loop()
        creating = loop.run_in_executor(self._executor, _create, self._spool.body_path(msgid))
        try:
            descriptor = await asyncio.shield(creating)
        except asyncio.CancelledError:  # the client is gone, but the thread goes on
            creating.add_done_callback(functools.partial(self._drop_created, msgid))
            raise
        except BaseException as error:
            self._creating.discard(msgid)
            if isinstance(error, OSError):
                raise _failure(error) from error
            raise
        self._growing[msgid] = _Growing(descriptor)
        self._creating.discard(msgid)
        return self._growing[msgid]

    def _drop_created(self, msgid: int, creating: "asyncio.Future[int]") -> None:
        """The file that nobody waited for is there, or could not be made."""
        if not creating.cancelled() and creating.exception() is None:
            os.close(creating.result())
            self.unlink([msgid])
        self._creating.discard(msgid)

    async def finish(self, msgid: int, size: int) -> None:
        """Make what was appended durable. TempFail, and it is gone, where its length is not `size`."""
        body = self._growing.get(msgid)
        if body is None:
            raise TempFail(f"queue: {msgid:08x}: no body was appended")
        async with body.lock:
            if self._growing.get(msgid) is not body:
                raise TempFail(f"queue: {msgid:08x}: the body was discarded")
            self._committing.add(msgid)
            del self._growing[msgid]
            try:
                if body.size != size:
                    raise TempFail(f"queue: {msgid:08x}: the body has {body.size} bytes instead of {size}")
                await self._sync(_sync_and_close, body.descriptor, self._spool.body_path(msgid).parent)
            except BaseException:
                self.abandon(msgid)
                raise

    def settled(self, msgid: int) -> None:
        """The commit that `finish` was for is done: the file is referred to."""
        self._committing.discard(msgid)

    def abandon(self, msgid: int) -> None:
        """The commit failed."""
        self._committing.discard(msgid)
        self.unlink([msgid])

    def discard(self, msgid: int) -> None:
        """Forget what was appended."""
        if msgid in self._growing:
            self._forget(msgid)

    def _forget(self, msgid: int) -> None:
        body = self._growing.pop(msgid, None)
        if body is None:
            return
        if body.writing is None or body.writing.done():
            os.close(body.descriptor)
        else:
            body.writing.add_done_callback(functools.partial(_close_after, body.descriptor))
        self.unlink([msgid])

    def unlink(self, msgids: list[int]) -> None:
        """Remove files. One that stays is an orphan, and swept."""
        for msgid in msgids:
            with contextlib.suppress(OSError):
                self._spool.body_path(msgid).unlink()

    def read(self, msgid: int, offset: int, count: int) -> bytes:
        """A piece of a file. In a thread. TempFail where it cannot be read."""
        try:
            with open(self._spool.body_path(msgid), "rb", buffering=0) as file:
                return os.pread(file.fileno(), count, offset)
        except OSError as error:
            raise TempFail(f"queue: body of {msgid:08x}: {error.strerror}") from error

    async def orphans(self, folder: int, referred: Callable[[list[int]], Awaitable[set[int]]]) -> list[int]:
        """The files of one of the 256 folders that nothing refers to, or will. One folder at a time.

        `referred`: which of these ids the store knows. It is asked after we looked who is busy: what was neither busy
        then nor known later is nobody's, unless its id was taken in the meantime.
        """
        self._begun = set()
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._executor, self._candidates, folder)
            if not found:
                return []
            known = await referred(found)
            return [m for m in found if m not in known and m not in self._begun]
        finally:
            self._begun = None

    def _candidates(self, folder: int) -> list[int]:
        """The files that no commit under way will refer to. In a thread."""
        found = []
        for entry in os.scandir(self._spool.bodies / f"{folder:02x}"):
            with contextlib.suppress(ValueError):
                msgid = int(entry.name, 16)
                if not self.is_busy(msgid):
                    found.append(msgid)
        return found

    def is_busy(self, msgid: int) -> bool:
        """Is this body being appended or committed?"""
        return msgid in self._creating or msgid in self._growing or msgid in self._committing

    def drop_abandoned(self) -> None:
        """Forget bodies that nobody has appended to for an hour: their dispatcher is gone."""
        limit = self._monotonic() - ABANDONED
        for msgid in [m for m, body in self._growing.items() if body.used < limit]:
            self._forget(msgid)

    def close(self) -> None:
        """Forget all bodies that are not finished."""
        for msgid in list(self._growing):
            self._forget(msgid)

    async def _sync(self, function: Callable[..., None], *args: object) -> None:
        """Run in a thread, to its end whoever waits. An error other than a lack of room means that the disk fails."""
        try:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, function, *args))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._on_fatal(error)
            raise _failure(error) from error


def _failure(error: OSError) -> TempFail:
    text = f"queue: body: {error.strerror}"
    return NoSpace(text) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else TempFail(text)


def _close_after(descriptor: int, written: "asyncio.Future[None]") -> None:
    """The write that nobody waited for has ended, however it did."""
    if not written.cancelled():
        written.exception()
    os.close(descriptor)


def _create(path: Path) -> int:
    # O_TRUNC: an orphan of an earlier use of the id has no claim on it.
    return os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sync_and_close(descriptor: int, folder: Path) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
