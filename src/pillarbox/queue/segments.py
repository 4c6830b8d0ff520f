"""Bodies of middling size, appended one behind the other to segment files, and synced once a group.

A row is written twice (WAL, then database), a file of its own costs two syncs; appended to a segment a body is written
once, and one fdatasync before the COMMIT is for all bodies of the group. A row says where it lies (segment, offset).
Segments are never written again where they were: one that is full and that no message refers to is removed, and what
is dead in an old one is given back to the file system as holes.

Everything but `read` happens in the writer's thread, so that no segment goes away under a commit that is under way.
"""

import contextlib
import ctypes
import errno
import os
import sqlite3
from pathlib import Path
from typing import NoReturn

from pillarbox.errors import NoSpace, TempFail

SEGMENT_BYTES = 16 << 20  # a segment that is longer is full
_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_HOLE_MIN = 64 * 1024  # bytes: smaller gaps are not worth a hole


class Segments:
    """The segments of a spool, in `folder`. Each process begins one of its own, so none is shared by two lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._next = max(self._existing(), default=0) + 1
        self._current = 0  # 0: none is open
        self._descriptor = -1
        self._length = 0
        self._dirty = False
        self._shrunk: set[int] = set()
        self._untidy = False

    def append(self, body: bytes) -> tuple[int, int]:
        """Write a body; returns its segment and offset. TempFail where there is no room; an OSError is the disk's."""
        if self._current == 0 or self._length >= SEGMENT_BYTES:
            self._begin()
        at, view = self._length, memoryview(body)
        # What a failed write leaves behind is dead, not in the way of the next.
        self._length += len(body)
        self._dirty = True
        written = 0
        while written < len(body):
            try:
                written += os.pwrite(self._descriptor, view[written:], at + written)
            except OSError as error:
                _raise(error)
        return self._current, at

    def sync(self) -> None:
        """Before the COMMIT: what was appended is on disk."""
        if self._dirty:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                _raise(error)
            self._dirty = False

    def read(self, segment: int, at: int, count: int) -> bytes:
        """Bytes of a segment, in any thread. TempFail where they cannot be read."""
        try:
            descriptor = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, count, at)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TempFail(f"queue: segment {segment:08x}: {error.strerror}") from error
        if len(data) != count:
            raise TempFail(f"queue: segment {segment:08x}: {len(data)} bytes at {at} instead of {count}")
        return data

    def shrunk(self, segment: int) -> None:
        """A message of this segment was deleted (if the group commits)."""
        self._shrunk.add(segment)

    def rolled_back(self) -> None:
        """The group, or a part of it, was not committed. What is empty all the same is found by `tidy`."""
        self._shrunk.clear()

    def reap(self, db: sqlite3.Connection) -> None:
        """After the COMMIT, and never before: remove the segments that became empty."""
        if self._untidy:
            self._untidy = False
            self._tidy(db)
        if self._shrunk:
            for segment in self._shrunk:
                if segment != self._current and not _is_used(db, segment):
                    self._remove(segment)
            self._shrunk.clear()

    def tidy_soon(self, db: sqlite3.Connection) -> None:
        """With the group that this is part of, remove what nothing refers to, and punch holes where all is dead.

        Not at once: what the group has deleted so far comes back if it is not committed.
        """
        self._untidy = True

    def _tidy(self, db: sqlite3.Connection) -> None:
        with contextlib.suppress(OSError):
            for segment in self._existing():
                if segment == self._current:
                    continue
                if _is_used(db, segment):
                    self._punch(db, segment)
                else:
                    self._remove(segment)

    def close(self) -> None:
        """Begin no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._current, self._descriptor = 0, -1

    def _begin(self) -> None:
        self.sync()
        number = self._next
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self._path(number), flags, 0o600)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            _raise(error)
        self.close()
        self._next += 1
        self._current, self._descriptor, self._length = number, descriptor, 0

    def _punch(self, db: sqlite3.Connection, segment: int) -> None:
        """Give back what is dead. File systems that cannot keep it until the segment is empty."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path(segment), os.O_RDWR | os.O_CLOEXEC)
            try:
                end = 0
                rows = db.execute("SELECT at, size FROM message WHERE segment = ? ORDER BY at", (segment,))
                for at, size in (*rows, (os.fstat(descriptor).st_size, 0)):
                    if at - end >= _HOLE_MIN:
                        _punch_hole(descriptor, end, at - end)
                    end = at + size
            finally:
                os.close(descriptor)

    def _remove(self, segment: int) -> None:
        with contextlib.suppress(OSError):  # one that stays is found by the next `tidy`
            os.unlink(self._path(segment))

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:08x}"

    def _existing(self) -> list[int]:
        found = []
        for name in os.listdir(self._folder):
            with contextlib.suppress(ValueError):
                found.append(int(name, 16))
        return found


def _is_used(db: sqlite3.Connection, segment: int) -> bool:
    return bool(db.execute("SELECT EXISTS (SELECT 1 FROM message WHERE segment = ?)", (segment,)).fetchone()[0])


def _punch_hole(descriptor: int, at: int, size: int) -> None:
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, _PUNCH_HOLE, at, size) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _raise(error: OSError) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise NoSpace(f"queue: body: {error.strerror}") from error
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise TempFail(f"queue: body: {error.strerror}") from error
    raise error
