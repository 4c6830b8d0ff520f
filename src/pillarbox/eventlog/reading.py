"""Event logs as events: files, folders and rotated sets, compressed or not, whole or damaged, finished or growing."""

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import NAME, zstd_module
from pillarbox.eventlog.lines import CONFIG, NOTE, BadLine, parse_note, parse_report, printable
from pillarbox.roles.filters import Report

STDIN = "-"
POLL = 0.25  # seconds between looks at files that may have grown

_CHUNK = 1 << 15
_ENOUGH = 1 << 20  # bytes of lines that are looked at at once
_MAX_LINE = 1 << 21  # more than a recorder lets through

Warn = Callable[[str], None]


class _Gone(PillarboxError):
    """There is no such file (any more)."""


class _Decoder(Protocol):
    step: int  # bytes that it is given at once

    def decode(self, data: bytes) -> bytes:
        """What these bytes add. Raises _Damaged."""

    def whole(self) -> bool:
        """May the file end here?"""


class _Damaged(Exception):
    """What comes cannot be read."""

    def __init__(self, whole: bytes) -> None:
        super().__init__()
        self.whole = whole  # what could be read before


class _Plain:
    step = _CHUNK

    def decode(self, data: bytes) -> bytes:
        return data

    def whole(self) -> bool:
        return True


class _Members:
    """Compressed streams one behind the other: `fresh` makes what reads one of them.

    It is given small steps: one that fails gives nothing, not even what was whole in it, and all may grow a lot.
    """

    def __init__(self, fresh: Callable[[], Any], errors: type[Exception], *, step: int) -> None:
        self._fresh = fresh
        self._errors = errors
        self._object = fresh()
        self.step = step

    def decode(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        while data:
            try:
                if self._object.eof:
                    self._object = self._fresh()
                pieces.append(self._object.decompress(data))
            except self._errors:
                raise _Damaged(b"".join(pieces)) from None
            data = self._object.unused_data
        return b"".join(pieces)

    def whole(self) -> bool:
        return bool(self._object.eof)


def _decoder(start: bytes) -> _Decoder:
    """By the first bytes of a file, not by its name. Raises PillarboxError."""
    if start.startswith(b"\x1f\x8b"):
        return _Members(lambda: zlib.decompressobj(31), zlib.error, step=512)  # of which come 512 KB at most
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        module = zstd_module()
        if module is None:
            raise PillarboxError("zstd wants Python 3.14 or backports.zstd; or: zstd -dc FILE | smtpd-events … -")
        return _Members(module.ZstdDecompressor, module.ZstdError, step=128)  # 4 MB
    return _Plain()


class LogFile:
    """One file, read on from where it was left; `path` may be "-". Raises PillarboxError where it cannot be."""

    def __init__(self, path: str, *, warn: Warn) -> None:
        self.path = path
        self._warn = warn
        self._decoder: _Decoder | None = None
        self._data = b""  # that was read and not decoded
        self._rest = b""  # of a line whose end was not read
        self._skipping = False  # up to a line's end
        self._damaged = False
        self._recorded = False  # by a program, which ends its lines
        self._number = 0
        self._bad = 0  # lines
        self._first_bad = ""
        try:
            self._fd = os.dup(0) if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _Gone(f"{path}: {error.strerror}") from None
        except OSError as error:
            raise PillarboxError(f"{path}: {error.strerror}") from None

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._fd)

    def read(self) -> list[str] | None:
        """Some more whole lines; None: that is all there is now."""
        if not self._data and not self._damaged:
            try:
                self._data = os.read(self._fd, _CHUNK)
            except OSError as error:
                raise PillarboxError(f"{self.path}: {error.strerror}") from None
        if not self._data:
            return None
        text = self._skipped(self._rest + self._decode())
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        if len(self._rest) > _MAX_LINE:
            self._skip(text.count(b"\n"))
        return text[:end].decode(errors="surrogateescape").split("\n")[:-1] if end else []

    def _decode(self) -> bytes:
        """What comes of some of the data."""
        if self._decoder is None:
            try:
                self._decoder = _decoder(self._data)
            except PillarboxError as error:
                raise PillarboxError(f"{self.path}: {error}") from None
        pieces: list[bytes] = []
        size = 0
        while self._data and size < _ENOUGH:
            step, self._data = self._data[: self._decoder.step], self._data[self._decoder.step :]
            try:
                pieces.append(self._decoder.decode(step))
            except _Damaged as damaged:
                self._damaged, self._data = True, b""
                self._warn(f"{self.path}: damaged; what is behind that is left out")
                pieces.append(damaged.whole)
            size += len(pieces[-1])
        return b"".join(pieces)

    def _skip(self, before: int) -> None:
        """Leave out the line that has begun, behind so many others: no event is that long."""
        if not self._number + before:
            raise PillarboxError(f"{self.path}: not an event log: a line of more than {_MAX_LINE} bytes")
        self._skipping, self._rest = True, b""
        self._name_bad(self._number + before + 1, f"a line of more than {_MAX_LINE} bytes")

    def _skipped(self, text: bytes) -> bytes:
        """The text behind the end of a line that is left out, the end included: lines are counted by it."""
        if self._skipping:
            text = text[text.find(b"\n") :] if b"\n" in text else b""
            self._skipping = not text
        return text

    def reports(self) -> Iterator[Report]:
        """The events up to the present end."""
        while (lines := self.read()) is not None:
            yield from self._parse(lines)

    def _parse(self, lines: list[str]) -> Iterator[Report]:
        for line in lines:
            self._number += 1
            try:
                yield parse_report(line)
            except BadLine as error:
                if line.startswith(CONFIG):
                    self._recorded = True
                else:
                    self._other(line, str(error))

    def _other(self, line: str, error: str) -> None:
        """A line that is no event: the recorder's note, or one that is told at the end."""
        if line.startswith(NOTE):
            with contextlib.suppress(BadLine):
                _, count, reason = parse_note(line)
                self._warn(f"{self.path}:{self._number}: {count} events are missing: {printable(reason)}")
                return
        if line:
            self._name_bad(self._number, error)

    def _name_bad(self, number: int, error: str) -> None:
        """The first one is named at the end, the others are counted."""
        self._first_bad = self._first_bad or f"{self.path}:{number}: {error}"
        self._bad += 1

    def finish(self) -> Iterator[Report]:
        """The event of a last line without its end, where it is one; then what is to be said of this file."""
        if self._rest:
            try:
                # Of a recorder's line that has no end the rest is missing; people may leave out the end.
                torn = self._recorded and isinstance(self._decoder, _Plain)
                if torn or self._decoder is None or not self._decoder.whole():
                    raise BadLine("a piece")
                yield parse_report(self._rest.decode(errors="surrogateescape"))
            except BadLine:
                self._warn(f"{self.path}: ends in the middle of a line; {len(self._rest)} bytes are left out")
        if self._bad:
            more = f" (and {self._bad - 1} more lines)" if self._bad > 1 else ""
            self._warn(f"{printable(self._first_bad)}{more}")


def find_logs(paths: Iterable[str]) -> list[str]:
    """The files of these files and folders. Raises PillarboxError on a folder that cannot be read."""
    found: dict[str, None] = {}
    for path in paths:
        if path != STDIN and os.path.isdir(path):
            found.update(dict.fromkeys(_in_folder(path)))
        else:
            found[path] = None
    return list(found)


def _in_folder(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise PillarboxError(f"{folder}: {error.strerror}") from None


class EventLog:
    """The events of several files, the files in the order of their first events. Times are epoch seconds."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        warn: Warn,
        since: float = float("-inf"),
        until: float = float("inf"),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._paths = list(paths)
        self._warn = warn
        self._since = since
        self._until = until
        self._sleep = sleep

    def reports(self) -> Iterator[Report]:
        """All of them. Raises PillarboxError where there is no file, or one that cannot be read."""
        listed = find_logs(self._paths)
        if not listed:
            raise PillarboxError(f"{', '.join(self._paths)}: there is no event log here (yet)")
        for path in self._ordered(listed):
            file = self._open(path)
            if file is not None:
                with contextlib.closing(file):
                    yield from self._within(chain(file.reports(), file.finish()))

    def follow(self) -> Iterator[Report]:
        """All of them, then those that are written from now on, also into new files. Never ends by itself."""
        files: dict[str, LogFile] = {}
        while True:
            listed = find_logs(self._paths)
            # One that has been left out is looked at again: it may grow.
            wanted = [path for path in listed if path in files or self._since <= _changed(path)]
            for path in wanted if files else self._ordered(wanted):
                if path not in files and (file := self._open(path)) is not None:
                    files[path] = file
            for path in files.keys() - listed:
                files.pop(path).close()
            for file in files.values():
                yield from self._within(file.reports())
            self._sleep(POLL)

    def _open(self, path: str) -> LogFile | None:
        """None: it was in a folder, and is not any more, since recorders delete the oldest."""
        try:
            return LogFile(path, warn=self._warn)
        except _Gone:
            if path in self._paths:
                raise
            return None

    def _within(self, reports: Iterator[Report]) -> Iterator[Report]:
        if self._since == float("-inf") and self._until == float("inf"):
            return reports
        return (report for report in reports if self._since <= report.time < self._until)

    def _ordered(self, paths: list[str]) -> list[str]:
        """The files that may hold what is wanted, in the order of their first events; pipes, read once, come last."""
        if len(paths) < 2:
            return paths
        starts = {path: self._start(path) for path in paths if os.path.isfile(path)}
        order = _in_order(starts)
        wanted = [path for path in order if starts[path] < self._until and _changed(path) >= self._since]
        return [*wanted, *(path for path in paths if path not in starts)]

    def _start(self, path: str) -> float:
        """The time of a file's first event."""
        try:
            file = LogFile(path, warn=lambda _: None)
        except _Gone:
            return float("-inf")
        with contextlib.closing(file):
            first = next(file.reports(), None)
        return first.time if first else float("-inf")


def _in_order(starts: dict[str, float]) -> list[str]:
    """Files by the times of their first events; what a recorder wrote, as it did, though the clock went back."""
    order: dict[str, float] = {}
    latest: dict[str, float] = {}  # of the files of a recorder so far, by folder
    for path in sorted(starts):
        folder, name = os.path.split(path)
        order[path] = starts[path]
        if NAME.fullmatch(name):
            order[path] = latest[folder] = max(starts[path], latest.get(folder, float("-inf")))
    return sorted(starts, key=lambda path: (order[path], path))


def _changed(path: str) -> float:
    """When it was last written, so that a file whose events are all older need not be read."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return float("inf")
