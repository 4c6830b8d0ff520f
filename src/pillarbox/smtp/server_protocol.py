"""The server's side of an SMTP connection without I/O: bytes in, events out.

`server/session` feeds what it read and asks for one event at a time, so that a command is answered before the next
one is looked at, however many came at once (RFC 2920). Lines end in CRLF only. Memory is bounded by what is fed
before the events are taken; a line beyond its limit is a `Fault`, after which nothing comes any more.
"""

from enum import Enum, auto

import msgspec

from pillarbox.smtp.data import LINE_MAX, ChunkReader, DataReader, LineTooLong, Problem, Terms

COMMAND_MAX = 2047  # bytes without CRLF, as the reference; RFC 5321 §4.5.3.1.4 asks for 512
AUTH_MAX = 12288  # bytes likewise, where bearer tokens are taken (RFC 4954 §4)


class Line(msgspec.Struct, frozen=True):
    """A command line or an answer within AUTH, without its CRLF."""

    text: bytes


class Body(msgspec.Struct, frozen=True):
    """Some of the message, dots unstuffed, and how many line ends are in it."""

    data: bytes
    lines: int


class Skipped(msgspec.Struct, frozen=True):
    """Bytes that nobody gets: of a chunk that was refused, or of a message that will be."""

    size: int


class EndOfChunk(msgspec.Struct, frozen=True):
    """A chunk is complete that is not the last, or that was refused (then without data)."""

    data: bytes = b""
    lines: int = 0
    problem: Problem | None = None


class EndOfBody(msgspec.Struct, frozen=True):
    """The message is complete, `data` the last of it; with a problem it is to be refused."""

    data: bytes
    lines: int
    problem: Problem | None
    size: int  # as the limit counts it


class Fault(Enum):
    """The connection cannot go on."""

    LINE_TOO_LONG = auto()
    COMMAND_TOO_LONG = auto()
    BARE_NEWLINE = auto()


Event = Line | Body | Skipped | EndOfChunk | EndOfBody | Fault


class _Chunk:
    """The chunk that is being read. Without a reader it is skipped."""

    __slots__ = ("last", "left", "reader")

    def __init__(self, left: int, *, last: bool, reader: ChunkReader | None) -> None:
        self.left, self.last, self.reader = left, last, reader


class ServerProtocol:
    """One connection. `command_max`: the longest line but for messages, without CRLF."""

    __slots__ = ("_buffer", "_chunk", "_chunks", "_data", "_dead", "command_max")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: DataReader | None = None
        self._chunk: _Chunk | None = None
        self._chunks: ChunkReader | None = None  # of the message that has begun
        self._dead = False
        self.command_max = COMMAND_MAX

    @property
    def buffered(self) -> int:
        """Bytes that were received and not yet looked at."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        if not self._dead:
            self._buffer = self._buffer + data if self._buffer else data

    def begin_body(self, terms: Terms) -> None:
        """The client was told to go ahead: what follows is a message on these terms."""
        self._data = DataReader(terms)

    def begin_chunk(self, size: int, *, last: bool, terms: Terms) -> None:
        """So many bytes that follow are the next, or first, chunk of a message on these terms."""
        if self._chunks is None:
            self._chunks = ChunkReader(terms)
        self._chunk = _Chunk(size, last=last, reader=self._chunks)

    def skip_chunk(self, size: int) -> None:
        """So many bytes that follow are a chunk that was refused (RFC 3030 §2: they come all the same)."""
        self._chunk = _Chunk(size, last=False, reader=None)

    def end_chunks(self) -> None:
        """The transaction is over: a chunk that comes belongs to another message."""
        self._chunks = None

    def discard(self) -> None:
        """Forget what is buffered: it came before TLS (RFC 3207 §6)."""
        self._buffer = b""

    def next_event(self) -> Event | None:
        """What happened next; None: more bytes are needed."""
        if self._chunk is not None:
            return self._next_chunk(self._chunk)
        if not self._buffer:
            return None
        return self._next_line() if self._data is None else self._next_body(self._data)

    def _next_line(self) -> Event | None:
        buffer = self._buffer
        end = buffer.find(b"\n")
        if end < 0:
            return self._fault(Fault.LINE_TOO_LONG) if len(buffer) >= LINE_MAX else None
        if end >= LINE_MAX:
            return self._fault(Fault.LINE_TOO_LONG)
        if end == 0 or buffer[end - 1] != 13:
            return self._fault(Fault.BARE_NEWLINE)
        if end - 1 > self.command_max:
            return self._fault(Fault.COMMAND_TOO_LONG)
        self._buffer = buffer[end + 1 :]
        return Line(buffer[: end - 1])

    def _next_body(self, reader: DataReader) -> Event | None:
        buffer, self._buffer = self._buffer, b""
        try:
            piece = reader.feed(buffer)
        except LineTooLong:
            return self._fault(Fault.LINE_TOO_LONG)
        if piece.rest is None:
            return Body(piece.data, piece.lines) if piece.data else Skipped(len(buffer))
        self._data = None
        self._buffer = piece.rest
        return EndOfBody(piece.data, piece.lines, reader.problem, reader.size)

    def _next_chunk(self, chunk: _Chunk) -> Event | None:
        taken = self._buffer[: chunk.left]
        self._buffer = self._buffer[chunk.left :]
        chunk.left -= len(taken)
        complete = not chunk.left
        if complete:
            self._chunk = None
        reader = chunk.reader
        if reader is None:
            return EndOfChunk() if complete else Skipped(len(taken)) if taken else None
        try:
            piece = reader.feed(taken, end=complete and chunk.last)
        except LineTooLong:
            return self._fault(Fault.LINE_TOO_LONG)
        if not complete:
            return Body(piece.data, piece.lines) if piece.data else Skipped(len(taken)) if taken else None
        if not chunk.last:
            return EndOfChunk(piece.data, piece.lines, reader.problem)
        self._chunks = None
        return EndOfBody(piece.data, piece.lines, reader.problem, reader.size)

    def _fault(self, fault: Fault) -> Fault:
        self._dead = True
        self._buffer = b""
        self._chunk = self._data = None
        return fault
