"""A message on its way through the bridge: kept while its lines come, shown to the milter, changed, given back."""

import os
import tempfile
from collections import deque
from collections.abc import Iterator
from io import FileIO
from itertools import islice

from pillarbox.milter.headers import Header, parse_header
from pillarbox.milter.wire import CHUNK, LINE

MEMORY = 256 << 10  # bytes of a message that need no file
JUNK = b"X-Spam: Yes"  # what the server writes above messages that are junk: at commit it is too late to ask for that
HEADER_LIMIT = 4 << 20  # bytes of a header that are taken apart; the rest of a message never is in memory
HEADER_LINES = 20_000
GROWTH = 16 << 20  # bytes by which a new body may be larger than the message; much more, and the server ends the filter
_AT_A_TIME = 4  # lines that go back with each that comes: these come a thousand at a time


class TooBig(Exception):
    """The message, its header, or what a milter makes of it is more than we take. The text is for the log."""


class Spool:
    """Bytes that are written once, and read from the start; beyond MEMORY they are in a file without a name.

    What does not fit is kept in memory all the same: who is told so can give it back whole.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._file: FileIO | None = None
        self._filed = 0  # bytes in the file
        self._rest = bytearray()  # those behind them
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises TooBig, and OSError where the disk is full."""
        self._rest += data
        self.size += len(data)
        if self.size > self._limit:
            raise TooBig(f"more than {self._limit} bytes")
        if len(self._rest) > (MEMORY if self._file is None else CHUNK):
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        while self._rest:
            written = os.pwrite(self._file.fileno(), self._rest, self._filed)
            del self._rest[:written]
            self._filed += written

    def chunks(self, start: int = 0, size: int = CHUNK) -> Iterator[bytes]:
        """All of it from `start`, in pieces. Raises OSError."""
        while start < self.size:
            if start >= self._filed or self._file is None:
                piece = bytes(self._rest[start - self._filed :][:size])
            else:
                piece = os.pread(self._file.fileno(), min(size, self._filed - start), start)
            if not piece:
                raise OSError("a temporary file lost its end")
            start += len(piece)
            yield piece

    def lines(self, start: int = 0) -> Iterator[bytes]:
        """The lines from `start`, without CRLF or LF. Raises OSError."""
        rest = b""
        for piece in self.chunks(start):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest.removesuffix(b"\r")

    def close(self) -> None:
        """Give it up."""
        if self._file is not None:
            self._file.close()


class Message:
    """`limit`: bytes that it may have, as it comes and as a milter makes it."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._spool = Spool(limit=limit)
        self._replaced: Spool | None = None
        self._line = 0  # bytes of the last line of that
        self._body = 0  # where the body begins
        self._separated = False  # does an empty line end the header?
        self._bare = False  # is it a body without a header, and without that line?
        self.junk = False
        self.header = Header([])

    def append(self, line: bytes) -> None:
        """A line without its end, dots not stuffed. Raises TooBig and OSError, and has it all the same."""
        self._spool.write(line + b"\r\n")

    def parse(self, msgid: str) -> None:
        """Find the header, when all lines are there. Raises TooBig, OSError."""
        offset = 0
        sizes: list[int] = []

        def counted() -> Iterator[bytes]:
            nonlocal offset
            for line in self._spool.lines():
                sizes.append(len(line) + 2)
                offset += len(line) + 2
                if offset > HEADER_LIMIT or len(sizes) > HEADER_LINES:
                    raise TooBig(f"a header of more than {HEADER_LIMIT} bytes, or {HEADER_LINES} lines")
                yield line

        self.header, used = parse_header(counted(), msgid)
        self._body = sum(sizes[:used])
        self._separated = sizes[used:] == [2]
        if self._separated:
            self._body += 2
        # A first field is set off from text that never had one; else its first line could belong to the field.
        self._bare = not used and not self._separated and self._spool.size > 0

    def body(self) -> Iterator[bytes]:
        """The body as it came, in pieces for a milter. Raises OSError."""
        return self._spool.chunks(self._body)

    def replace_body(self, data: bytes) -> None:
        """A piece of the body that takes the place of the one that came. Raises TooBig, OSError."""
        if self._replaced is None:
            self._replaced = Spool(limit=min(self._limit, self._spool.size + GROWTH))
        first, *others = map(len, data.split(b"\n"))
        if max(self._line + first, *others, 0) > LINE:
            raise TooBig(f"a line of more than {LINE} bytes, which a milter wrote")
        self._line = others[-1] if others else self._line + first
        self._replaced.write(data)

    def as_received(self) -> Iterator[bytes]:
        """The lines that came. Raises OSError."""
        return self._spool.lines()

    def lines(self) -> Iterator[bytes]:
        """The lines of what it has become, without their ends, dots not stuffed. Raises OSError."""
        fields = self.header.lines()
        if self.junk and JUNK not in fields:  # another field of the name may be the sender's, and say otherwise
            yield JUNK
        yield from fields
        if self._separated or self._replaced is not None or (self._bare and fields):
            yield b""
        if self._replaced is not None:
            yield from self._replaced.lines()
        else:
            yield from self._spool.lines(self._body)

    def close(self) -> None:
        """Give up its files."""
        self._spool.close()
        if self._replaced is not None:
            self._replaced.close()


class Returned:
    """A message that goes back while more of it comes: what was kept goes ahead, some of it with each line."""

    def __init__(self, kept: Iterator[bytes]) -> None:
        self._kept = kept
        self._behind: deque[bytes] = deque()

    def follow(self, line: bytes) -> list[bytes]:
        """A line that comes; the lines that can go."""
        self._behind.append(line)
        lines = list(islice(self._kept, _AT_A_TIME))
        if len(lines) < _AT_A_TIME:
            lines += self._behind
            self._behind.clear()
        return lines

    def rest(self) -> Iterator[bytes]:
        """No more comes: all that is left."""
        yield from self._kept
        yield from self._behind
