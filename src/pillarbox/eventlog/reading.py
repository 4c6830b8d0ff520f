"""Event logs as events: files, folders and rotated sets, compressed or not, whole or damaged, finished or growing."""

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import zstd_module
from pillarbox.eventlog.lines import CONFIG, NOTE, BadLine, parse_note, parse_report, printable
from pillarbox.roles.filters import Report

STDIN = "-"
POLL = 0.25  # seconds between looks at files that may have grown

_CHUNK = 1 << 15  # a compressed one may grow a thousand times
_STEP = 512
_MAX_LINE = 1 << 20

Warn = Callable[[str], None]


class _Decoder(Protocol):
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
    def decode(self, data: bytes) -> bytes:
        return data

    def whole(self) -> bool:
        return True


class _Members:
    """Compressed streams one behind the other: `fresh` makes what reads one of them."""

    def __init__(self, fresh: Callable[[], Any], errors: type[Exception]) -> None:
        self._fresh = fresh
        self._errors = errors
        self._object = fresh()

    def decode(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        # In small steps, because one that fails gives nothing, not even what was whole in it.
        for start in range(0, len(data), _STEP):
            step = data[start : start + _STEP]
            while step:
                try:
                    if self._object.eof:
                        self._object = self._fresh()
                    pieces.append(self._object.decompress(step))
                except self._errors:
                    raise _Damaged(b"".join(pieces)) from None
                step = self._object.unused_data
        return b"".join(pieces)

    def whole(self) -> bool:
        return bool(self._object.eof)


def _decoder(start: bytes) -> _Decoder:
    """By the first bytes of a file, not by its name. Raises PillarboxError."""
    if start.startswith(b"\x1f\x8b"):
        return _Members(lambda: zlib.decompressobj(31), zlib.error)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        module = zstd_module()
        if module is None:
            raise PillarboxError("zstd wants Python 3.14 or backports.zstd; or: zstd -dc FILE | smtpd-events … -")
        return _Members(module.ZstdDecompressor, module.ZstdError)
    return _Plain()


class LogFile:
    """One file, read on from where it was left; `path` may be "-". Raises PillarboxError where it cannot be."""

    def __init__(self, path: str, *, warn: Warn) -> None:
        self.path = path
        self._warn = warn
        self._decoder: _Decoder | None = None
        self._rest = b""
        self._damaged = False
        self._number = 0
        self._bad: list[str] = []
        try:
            self._fd = os.dup(0) if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PillarboxError(f"{path}: {error.strerror}") from None

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._fd)

    def read(self) -> list[str] | None:
        """Some more whole lines; None: that is all there is now."""
        if self._damaged:
            return None
        try:
            data = os.read(self._fd, _CHUNK)
        except OSError as error:
            raise PillarboxError(f"{self.path}: {error.strerror}") from None
        if not data:
            return None
        text = self._rest + self._decode(data)
        end = text.rfind(b"\n") + 1
        self._rest = text[end:]
        if len(self._rest) > _MAX_LINE:
            raise PillarboxError(f"{self.path}: not an event log: a line of more than {_MAX_LINE} bytes")
        return text[:end].decode(errors="surrogateescape").split("\n")[:-1] if end else []

    def _decode(self, data: bytes) -> bytes:
        if self._decoder is None:
            try:
                self._decoder = _decoder(data)
            except PillarboxError as error:
                raise PillarboxError(f"{self.path}: {error}") from None
        try:
            return self._decoder.decode(data)
        except _Damaged as damaged:
            self._damaged = True
            self._warn(f"{self.path}: damaged; what is behind that is left out")
            return damaged.whole

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
                if not line.startswith(CONFIG):
                    self._other(line, str(error))

    def _other(self, line: str, error: str) -> None:
        """A line that is no event: the recorder's note, or one that is told at the end."""
        if line.startswith(NOTE):
            with contextlib.suppress(BadLine):
                _, count, reason = parse_note(line)
                self._warn(f"{self.path}:{self._number}: {count} events are missing: {printable(reason)}")
                return
        if line:
            self._bad.append(f"{self.path}:{self._number}: {error}") if not self._bad else self._bad.append("")

    def finish(self) -> Iterator[Report]:
        """The event of a last line without its end, where it is one; then what is to be said of this file."""
        if self._rest:
            try:
                if self._decoder is None or not self._decoder.whole():
                    raise BadLine("a piece")
                yield parse_report(self._rest.decode(errors="surrogateescape"))
            except BadLine:
                self._warn(f"{self.path}: ends in the middle of a line; {len(self._rest)} bytes are left out")
        if self._bad:
            more = f" (and {len(self._bad) - 1} more lines)" if len(self._bad) > 1 else ""
            self._warn(f"{printable(self._bad[0])}{more}")


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
        paths = self._ordered()
        if not paths and not find_logs(self._paths):
            raise PillarboxError(f"{', '.join(self._paths)}: there is no event log here (yet)")
        for path in paths:
            file = LogFile(path, warn=self._warn)
            with contextlib.closing(file):
                yield from self._within(chain(file.reports(), file.finish()))

    def follow(self) -> Iterator[Report]:
        """All of them, then those that are written from now on, also into new files. Never ends by itself."""
        files: dict[str, LogFile] = {}
        while True:
            paths = find_logs(self._paths) if files else self._ordered()
            for path in paths:
                if path not in files:
                    files[path] = LogFile(path, warn=self._warn)
            for path in files.keys() - paths:
                files.pop(path).close()
            for file in files.values():
                yield from self._within(file.reports())
            self._sleep(POLL)

    def _within(self, reports: Iterator[Report]) -> Iterator[Report]:
        if self._since == float("-inf") and self._until == float("inf"):
            return reports
        return (report for report in reports if self._since <= report.time < self._until)

    def _ordered(self) -> list[str]:
        paths = find_logs(self._paths)
        if len(paths) < 2:
            return paths
        starts = {path: self._start(path) for path in paths if path != STDIN}
        order = sorted(starts, key=lambda path: starts[path])
        wanted = [path for path in order if starts[path] < self._until and _changed(path) >= self._since]
        return [*wanted, *(path for path in paths if path == STDIN)]

    def _start(self, path: str) -> float:
        """The time of a file's first event."""
        file = LogFile(path, warn=lambda _: None)
        with contextlib.closing(file):
            first = next(file.reports(), None)
        return first.time if first else float("-inf")


def _changed(path: str) -> float:
    """When it was last written, so that a file whose events are all older need not be read."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return float("inf")
