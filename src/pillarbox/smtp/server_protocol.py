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

    __slots__ = ("_at", "_buffer", "_chunk", "_chunks", "_data", "_dead", "command_max")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0  # what is before it was looked at: with hundreds of commands in it, it is not cut for each
        self._data: DataReader | None = None
        self._chunk: _Chunk | None = None
        self._chunks: ChunkReader | None = None  # of the message that has begun
        self._dead = False
        self.command_max = COMMAND_MAX

    @property
    def buffered(self) -> int:
        """Bytes that were received and not yet looked at."""
        return len(self._buffer) - self._at

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._dead:
            return
        if self._buffer:
            self._drop_taken()
            data = self._buffer + data
        self._buffer = data

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
        self._buffer, self._at = b"", 0

    def next_event(self) -> Event | None:
        """What happened next; None: more bytes are needed."""
        if self._chunk is not None:
            return self._next_chunk(self._chunk)
        if not self._buffer:
            return None
        return self._next_line() if self._data is None else self._next_body(self._data)

    def _next_line(self) -> Event | None:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", at)
        if end < 0:
            return self._beginning_of_line()
        size = end - at
        if size >= LINE_MAX:
            return self._fault(Fault.LINE_TOO_LONG)
        if not size or buffer[end - 1] != 13:
            return self._fault(Fault.BARE_NEWLINE)
        if size - 1 > self.command_max:
            return self._fault(Fault.COMMAND_TOO_LONG)
        if end + 1 == len(buffer):  # as nearly always
            self._buffer, self._at = b"", 0
        else:
            self._at = end + 1
        return Line(buffer[at : end - 1])

    def _beginning_of_line(self) -> Event | None:
        self._drop_taken()  # a session may wait for minutes with so much of a line
        return self._fault(Fault.LINE_TOO_LONG) if self.buffered >= LINE_MAX else None

    def _next_body(self, reader: DataReader) -> Event | None:
        size = self.buffered
        try:
            piece = reader.feed(self._buffer, self._at)
        except LineTooLong:
            return self._fault(Fault.LINE_TOO_LONG)
        if piece.end is None:
            self.discard()
            return Body(piece.data, piece.lines) if piece.data else Skipped(size)
        self._data = None
        self._take_until(piece.end)
        return EndOfBody(piece.data, piece.lines, reader.problem, reader.size)

    def _next_chunk(self, chunk: _Chunk) -> Event | None:
        end = min(self._at + chunk.left, len(self._buffer))
        taken = self._buffer[self._at : end]
        self._take_until(end)
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

    def _take_until(self, end: int) -> None:
        """What is before this place was looked at."""
        if end == len(self._buffer):
            self.discard()
        else:
            self._at = end

    def _drop_taken(self) -> None:
        if self._at:
            self._buffer, self._at = self._buffer[self._at :], 0

    def _fault(self, fault: Fault) -> Fault:
        self._dead = True
        self.discard()
        self._chunk = self._data = None
        return fault
