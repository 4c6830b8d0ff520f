"""The files that a recorder writes: compressed, rotated by size and time, each append readable at once.

A file is begun when there is something to write, and never opened again: what a crash leaves behind stays as it is,
and `reading` takes of it what is whole. Two recorders may write into one folder, as they do during a reload.
"""

import contextlib
import importlib
import os
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pillarbox.errors import PillarboxError

SUFFIXES = {"gzip": ".log.gz", "zstd": ".log.zst", "none": ".log"}
PERIODS = {"hour": 3600, "day": 86400, "never": 0}

NAME = re.compile(r"events-(\d{8}T\d{6}\.\d{6})Z\.log(\.gz|\.zst)?")  # names sort as files follow each other
_STAMP = "%Y%m%dT%H%M%S.%f"


class Stream(Protocol):
    """Compresses what is one file."""

    def append(self, data: bytes) -> bytes:
        """What to write, so that all of `data` can be read from it."""

    def finish(self) -> bytes:
        """The end of the file."""


class _Plain:
    def append(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Gzip:
    def __init__(self) -> None:
        # Level 3 is twice as fast as 6, for a tenth more bytes: the processor is the mail server's, too.
        self._object = zlib.compressobj(3, zlib.DEFLATED, 31)

    def append(self, data: bytes) -> bytes:
        return self._object.compress(data) + self._object.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._object.flush(zlib.Z_FINISH)


class _Zstd:
    def __init__(self, module: Any) -> None:
        self._object = module.ZstdCompressor(level=1)

    def append(self, data: bytes) -> bytes:
        return bytes(self._object.compress(data, mode=self._object.FLUSH_BLOCK))

    def finish(self) -> bytes:
        return bytes(self._object.flush(self._object.FLUSH_FRAME))


def zstd_module() -> Any | None:
    """Python's own since 3.14, or the same for older ones (`backports.zstd`), where it is installed."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def stream_factory(compression: str) -> Callable[[], Stream]:
    """`compression`: a key of SUFFIXES. Raises PillarboxError where this Python has none."""
    if compression == "gzip":
        return _Gzip
    if compression == "none":
        return _Plain
    module = zstd_module()
    if module is None:
        raise PillarboxError("zstd wants Python 3.14, or: pip install 'pillarbox[zstd]'")
    return lambda: _Zstd(module)


class _File:
    """One open file. What could not be appended is as if it had never been tried."""

    def __init__(self, path: str, stream: Stream) -> None:
        self.path = path
        self.size = 0
        self._stream = stream
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def append(self, data: bytes) -> None:
        self._write(self._stream.append(data))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        try:
            self._write(self._stream.finish())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave it without its end, which readers can do without."""
        os.close(self._fd)
        if not self.size:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class LogFiles:
    """The log of one folder. `size`: bytes of a file; `period`: seconds, 0 never; `keep`: files. `now`: epoch."""

    def __init__(
        self,
        folder: str,
        *,
        size: int,
        period: int,
        keep: int,
        suffix: str,
        stream: Callable[[], Stream],
        now: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._size = size
        self._period = period
        self._keep = keep
        self._suffix = suffix
        self._stream = stream
        self._now = now
        self._file: _File | None = None
        self._ends = 0.0  # the present file's period, where there is one
        self.head = b""  # what every file begins with

    def check(self) -> None:
        """Could a file be made now? Raises OSError."""
        os.makedirs(self._folder, 0o750, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(13, os.strerror(13), self._folder)

    def append(self, data: bytes) -> None:
        """Add whole lines, which can be read from now on. Raises OSError: nothing was added."""
        if self._file is not None and (self._file.size >= self._size or self._is_over()):
            self.rotate()
        file = self._file or self._begin()
        try:
            file.append(data if file.size else self.head + data)
        except OSError:
            # The stream is ahead of the file: it cannot be gone on with.
            self._file = None
            file.abandon()
            raise

    def rotate(self) -> None:
        """End the present file, if there is one: the next append begins another."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it lacks its end only
                file.close()

    def tick(self) -> None:
        """Called now and then: a file whose period is over is ended."""
        if self._is_over():
            self.rotate()

    def _is_over(self) -> bool:
        """The period, whichever way the clock was set; a little back is still the same."""
        return bool(self._period) and not self._ends - 2 * self._period <= self._now() < self._ends

    def _begin(self) -> _File:
        os.makedirs(self._folder, 0o750, exist_ok=True)
        now = self._now()
        names = sorted(filter(NAME.fullmatch, os.listdir(self._folder)))
        moment = datetime.fromtimestamp(now, UTC)
        if names and (last := _moment(names[-1])) >= moment:  # the clock went back: the order of names stays
            with contextlib.suppress(OverflowError):  # nothing comes behind the last day of all
                moment = last + timedelta(microseconds=1)
        while True:
            path = os.path.join(self._folder, f"events-{moment.strftime(_STAMP)}Z{self._suffix}")
            try:
                self._file = _File(path, self._stream())
                _sync_folder(self._folder)
                break
            except FileExistsError:
                moment += timedelta(microseconds=1)
        for name in names[: max(0, len(names) + 1 - self._keep)]:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, name))
        self._ends = (now // self._period + 1) * self._period if self._period else 0.0
        return self._file


def _sync_folder(folder: str) -> None:
    """A crash of the machine is not to forget a file's name, either."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _moment(name: str) -> datetime:
    match = NAME.fullmatch(name)
    assert match
    try:
        return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:  # digits that are no date: not ours
        return datetime.min.replace(tzinfo=UTC)
