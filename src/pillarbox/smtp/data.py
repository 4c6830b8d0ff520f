"""Message data as it comes behind DATA and BDAT: what its lines really were, and whether it is acceptable.

RFC 5321 §4.1.1.4: behind DATA the end is `CRLF . CRLF` and nothing else; behind BDAT it is counted. The input is
scanned with `bytes.find`; it does not matter how it was cut into pieces. What comes out has its dots unstuffed
(§4.5.2) and goes to `server/message`; nothing of it is kept here but the few bytes that may belong to the end.
"""

from enum import Enum, auto

import msgspec

LINE_MAX = 65535  # bytes, without the LF, as the reference
_END = b"\r\n.\r\n"


class Problem(Enum):
    """Why the message is refused at its end."""

    BARE_NEWLINE = auto()  # a CR or LF alone: refused, so that no two servers see different messages
    TOO_BIG = auto()


class LineTooLong(Exception):
    """A line of `LINE_MAX` bytes or more: the connection cannot go on."""


class Piece(msgspec.Struct, frozen=True):
    """Some of the body, and how many line ends are in it. `rest` not None: it was the last, `rest` followed the end."""

    data: bytes
    lines: int = 0
    rest: bytes | None = None


class _Reader:
    """What the two ways of sending a message have in common: the policy on line ends, and the size.

    `problem` is set as soon as it is known; nothing is passed on from then. `size` counts what came in as the limit
    does: every line as it is sent, with one byte for its end.
    """

    __slots__ = ("_carry", "_line", "_max", "problem", "size")

    def __init__(self, max_size: int, carry: bytes) -> None:
        self.problem: Problem | None = None
        self.size = 0
        self._max = max_size
        self._carry = carry
        self._line = 0  # length of the line that is not complete yet

    def _grow(self, size: int) -> None:
        self.size += size
        if self.problem is None and self.size > self._max:
            self.problem = Problem.TOO_BIG

    def _check(self, body: bytes) -> int:
        """Look at the line ends; returns how many there are."""
        self._check_line_length(body)
        without = body.replace(b"\r\n", b"")  # quicker than counting: 40 µs for 64 KB against 80
        if b"\n" in without or b"\r" in without:
            self.problem = self.problem or Problem.BARE_NEWLINE
        return (len(body) - len(without)) // 2

    def _check_line_length(self, body: bytes) -> None:
        at = -self._line  # where the current line began
        while len(body) - at >= LINE_MAX:
            end = body.rfind(b"\n", max(at, 0), at + LINE_MAX)
            if end < 0:
                raise LineTooLong
            at = end + 1
        last = body.rfind(b"\n")
        self._line = len(body) - (last + 1 if last >= 0 else at)


class DataReader(_Reader):
    """The reader of one message behind DATA."""

    __slots__ = ("_skip",)

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size, b"\r\n")  # the end of the DATA line counts: a message may be a single dot
        self._skip = 2

    def feed(self, data: bytes) -> Piece:
        """Take what came; raises `LineTooLong`."""
        block = self._carry + data
        end = block.find(_END)
        if end >= 0:
            body, rest = block[: end + 2], block[end + 5 :]
            self._carry = b""
        else:
            cut = len(block) - _held_back(block)
            body, self._carry, rest = block[:cut], block[cut:], None
        if len(body) <= self._skip:
            if end < 0:  # nothing certain yet: the virtual line end stays in front
                self._carry = body + self._carry
            return Piece(b"", rest=rest)
        lines = self._check(body) - (1 if self._skip else 0)
        self._grow(len(body) - self._skip - lines)
        if self.problem is not None:
            self._skip = 0
            return Piece(b"", rest=rest)
        body = body.replace(b"\r\n.", b"\r\n")
        if self._skip:
            body = body[2:]
            self._skip = 0
        return Piece(body, lines, rest)


class ChunkReader(_Reader):
    """The reader of one message that comes in chunks (BDAT, RFC 3030). Dots are nothing special in it.

    The pieces of a chunk may be cut anywhere, and so may the chunks: a CR waits for what follows it.
    """

    __slots__ = ()

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size, b"")

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
        return Piece(b"") if self.problem is not None else Piece(block, lines)


def _held_back(block: bytes) -> int:
    """How many bytes at the end could still be the beginning of the end, or of a stuffed dot."""
    for size in (4, 3, 2, 1):
        if block.endswith(_END[:size]):
            return size
    return 0
