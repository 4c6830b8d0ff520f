"""Message data as it comes behind DATA and BDAT: what its lines really were, and whether it is acceptable.

RFC 5321 §4.1.1.4: behind DATA the end is `CRLF . CRLF` and nothing else; behind BDAT it is counted. The input is
scanned with `bytes.find`; it does not matter how it was cut into pieces. What comes out has its dots unstuffed
(§4.5.2) and goes to `server/message`; nothing of it is kept here but the few bytes that may belong to the end.
"""

import re
from enum import Enum, auto

import msgspec

LINE_MAX = 65535  # bytes, without the LF, as the reference
_END = b"\r\n.\r\n"
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Problem(Enum):
    """Why the message is refused at its end."""

    BARE_NEWLINE = auto()  # a CR or LF alone: refused, so that no two servers see different messages
    TOO_BIG = auto()
    LINE_TOO_LONG = auto()  # longer than the configuration allows


class Terms(msgspec.Struct, frozen=True):
    """What a message may be like. `max_line`: bytes of a line without its end, 0: anything below `LINE_MAX`.

    `normalize`: a CR or LF alone becomes a line end, but never a part of the message's end.
    """

    max_size: int
    max_line: int = 0
    normalize: bool = False


class LineTooLong(Exception):
    """A line of `LINE_MAX` bytes or more: the connection cannot go on."""


class Piece(msgspec.Struct, frozen=True):
    """Some of the body, and how many line ends are in it. `end` not None: it was the last; what follows is there."""

    data: bytes
    lines: int = 0
    end: int | None = None


class _Reader:
    """What the two ways of sending a message have in common: the policy on line ends, and the size.

    `problem` is set as soon as it is known; nothing is passed on from then. Of several it becomes the one that stands
    first in `Problem`, in whatever order they were seen. `size` counts what came in as the limit does: every line as it
    is sent, with one byte for its end.
    """

    __slots__ = ("_bare", "_carry", "_line", "_shown", "_terms", "problem", "size")

    def __init__(self, terms: Terms, carry: bytes) -> None:
        self.problem: Problem | None = None
        self.size = 0
        self._terms = terms
        self._carry = carry
        self._line = 0  # length of the line that is not complete yet
        self._shown = 0  # likewise, as it is passed on
        self._bare = False  # what was looked at last has a CR or LF alone

    def _grow(self, size: int) -> None:
        self.size += size
        if self.problem is not Problem.BARE_NEWLINE and self.size > self._terms.max_size:
            self.problem = Problem.TOO_BIG

    def _check(self, body: bytes) -> int:
        """Look at the line ends; returns how many there are."""
        self._check_line_length(body)
        without = body.replace(b"\r\n", b"")  # quicker than counting: 40 µs for 64 KB against 80
        self._bare = b"\n" in without or b"\r" in without
        if self._bare and not self._terms.normalize:
            self.problem = Problem.BARE_NEWLINE
        return (len(body) - len(without)) // 2

    def _check_line_length(self, body: bytes) -> None:
        self._line = _last_line(body, self._line, LINE_MAX)

    def _piece(self, body: bytes, lines: int, end: int | None = None) -> Piece:
        """What is passed on of a body that was looked at, with line ends that are."""
        if self._bare and self.problem is None:
            body, more = _BARE.subn(b"\r\n", body)
            lines += more
        if self._terms.max_line and self.problem is None:
            try:
                self._shown = _last_line(body, self._shown, self._terms.max_line + 2)  # the CR, and one too many
            except LineTooLong:
                self.problem = Problem.LINE_TOO_LONG
        return Piece(b"", end=end) if self.problem is not None else Piece(body, lines, end)


class DataReader(_Reader):
    """The reader of one message behind DATA."""

    __slots__ = ("_skip",)

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms, b"\r\n")  # the end of the DATA line counts: a message may be a single dot
        self._skip = 2

    def feed(self, data: bytes, start: int = 0) -> Piece:
        """Take what came, from `start` on; raises `LineTooLong`. What is behind the end is not touched."""
        end = self._find_end(data, start)
        if end is not None:
            body = self._until_dot(data, start, end)
            self._carry = b""
        else:
            block = self._carry + data[start:]
            cut = len(block) - _held_back(block)
            body, self._carry = block[:cut], block[cut:]
        if len(body) <= self._skip:
            if end is None:  # nothing certain yet: the virtual line end stays in front
                self._carry = body + self._carry
            return Piece(b"", end=end)
        lines = self._check(body) - (1 if self._skip else 0)
        self._grow(len(body) - self._skip - lines)
        if self.problem is not None:
            self._skip = 0
            return Piece(b"", end=end)
        body = body.replace(b"\r\n.", b"\r\n")
        if self._skip:
            body = body[2:]
            self._skip = 0
        return self._piece(body, lines, end)

    def _find_end(self, data: bytes, start: int) -> int | None:
        """Where what follows the message begins, None: later."""
        carry = self._carry
        if carry:  # it may have come in part
            found = (carry + data[start : start + len(_END) - 1]).find(_END)
            if found >= 0:
                return start + found + len(_END) - len(carry)
        found = data.find(_END, start)
        return found + len(_END) if found >= 0 else None

    def _until_dot(self, data: bytes, start: int, end: int) -> bytes:
        """What is left of the message, with its last line end."""
        size = end - len(b".\r\n") - start
        return self._carry + data[start : start + size] if size >= 0 else self._carry[:size]


class ChunkReader(_Reader):
    """The reader of one message that comes in chunks (BDAT, RFC 3030). Dots are nothing special in it.

    The pieces of a chunk may be cut anywhere, and so may the chunks: a CR waits for what follows it.
    """

    __slots__ = ()

    def __init__(self, terms: Terms) -> None:
        super().__init__(terms, b"")

    def feed(self, data: bytes, *, end: bool) -> Piece:
        """Take some of a chunk; `end`: the message ends with it, if need be with a line end. Raises `LineTooLong`."""
        block = self._carry + data if self._carry else data
        self._carry = b""
        if end:
            if block[-1:] != b"\n" and (block or self._line):
                block += b"\r\n"
        elif block.endswith(b"\r"):
            block, self._carry = block[:-1], b"\r"
        lines = self._check(block)
        self._grow(len(block) - lines)
        return self._piece(block, lines)


def _last_line(body: bytes, before: int, most: int) -> int:
    """How long the last line of a body is by now, the first having begun `before` bytes in front of it.

    Raises `LineTooLong` where there are `most` bytes without LF.
    """
    at = -before  # where the current line began
    while len(body) - at >= most:
        end = body.rfind(b"\n", max(at, 0), at + most)
        if end < 0:
            raise LineTooLong
        at = end + 1
    last = body.rfind(b"\n")
    return len(body) - (last + 1 if last >= 0 else at)


def _held_back(block: bytes) -> int:
    """How many bytes at the end could still be the beginning of the end, or of a stuffed dot."""
    for size in (4, 3, 2, 1):
        if block.endswith(_END[:size]):
            return size
    return 0
