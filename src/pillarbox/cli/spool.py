"""Bytes that are written once and read again: in memory while they are few, then in a nameless file."""

from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

CHUNK = 64 * 1024
_IN_MEMORY = 256 * 1024


class Spool:
    """Append, then read from anywhere."""

    def __init__(self) -> None:
        self._file: BinaryIO = BytesIO()
        self._on_disk = False
        self.size = 0
        self.last = b""  # octet

    def write(self, data: bytes) -> None:
        """Append. Raises OSError where the disk is full."""
        self.size += len(data)
        self.last = data[-1:] or self.last
        if not self._on_disk and self.size > _IN_MEMORY:
            import tempfile  # noqa: PLC0415 - slow to import, and most messages are small

            memory, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the message
            memory.seek(0)
            self._file.write(memory.read())
            self._on_disk = True
        self._file.write(data)

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Everything from `start` on."""
        self._file.seek(start)
        while data := self._file.read(CHUNK):
            yield data

    def lines(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The lines from `start` to `end`, with their ends; a longer one than a chunk comes in pieces."""
        self._file.seek(start)
        left = (self.size if end is None else end) - start
        while left > 0 and (line := self._file.readline(min(CHUNK, left))):
            left -= len(line)
            yield line
