"""The body of one message on its way in: header first, then bytes, kept or streamed on.

`Incoming` collects what the protocol core passes. It is bounded: the header by `HEADER_MAX`, the rest by
`INLINE_BODY`, beyond which `take_chunk` gives pieces for `Queue.append`. `server/commands/data` commits it.
"""

from collections.abc import Callable

from pillarbox.roles.queue import INLINE_BODY
from pillarbox.server import headers
from pillarbox.smtp import replies
from pillarbox.smtp.replies import Reply

HEADER_MAX = 256 * 1024  # bytes; the reference has no limit for all fields together


class Incoming:
    """A message that is being received. `failure` is the reply that it will get, as soon as that is known."""

    __slots__ = (
        "_additions",
        "_domain",
        "_header",
        "_lines",
        "_masquerade",
        "_parts",
        "_pending",
        "eight_bit",
        "failure",
        "streamed",
        "utf8_header",
    )

    def __init__(
        self, prefix: bytes, *, domain: bytes, masquerade: bytes, additions: Callable[[headers.Header], bytes]
    ) -> None:
        """`prefix`: the trace fields. `additions`: the fields to add behind the client's, given its header."""
        self.failure: Reply | None = None
        self.eight_bit = False
        self.utf8_header = False  # is something in the header that RFC 5322 does not know, and RFC 6532 does?
        self.streamed = 0  # bytes that `take_chunk` gave away
        self._domain, self._masquerade, self._additions = domain, masquerade, additions
        self._header: bytearray | None = bytearray()  # what came of it; None: it is done
        self._parts = [prefix]
        self._pending = len(prefix)
        self._lines = prefix.count(b"\n")

    @property
    def size(self) -> int:
        """Bytes of the message so far, as the queue counts them."""
        return self.streamed + self._pending

    @property
    def stored_size(self) -> int:
        """Bytes with one for each line end: the size that is logged."""
        return self.size - self._lines

    def add(self, data: bytes, lines: int) -> None:
        """Take some of the body, with so many line ends in it."""
        if self.failure is not None:
            return
        self._lines += lines
        if self._header is None:
            self._keep(data)
            return
        block, known = self._header, len(self._header)
        block += data  # in place, and only the new is searched: a header may come in single bytes
        end = 0 if block.startswith(b"\r\n") else block.find(b"\r\n\r\n", max(0, known - 3)) + 2
        if end == 1:
            if len(block) > HEADER_MAX:
                self.fail(replies.HEADER_TOO_BIG)
        elif end > HEADER_MAX:
            self.fail(replies.HEADER_TOO_BIG)
        else:
            self._end_header(bytes(block[:end]), bytes(block[end:]))

    def finish(self) -> None:
        """The message is complete: a header without an empty line behind it is one, too."""
        if self._header is not None and self.failure is None:
            self._end_header(bytes(self._header), b"")

    def fail(self, reply: Reply) -> None:
        """Refuse the message at its end and forget what came."""
        self.failure = reply
        self._parts.clear()
        self._pending = 0

    def wants_streaming(self) -> bool:
        """Is there a chunk for `take_chunk`?"""
        return self._pending > INLINE_BODY

    def take_chunk(self) -> bytes:
        """The next at most INLINE_BODY bytes."""
        data = b"".join(self._parts)
        chunk, rest = data[:INLINE_BODY], data[INLINE_BODY:]
        self._parts = [rest] if rest else []
        self._pending = len(rest)
        self.streamed += len(chunk)
        return chunk

    def _end_header(self, block: bytes, rest: bytes) -> None:
        self._header = None
        try:
            header = headers.process(block, domain=self._domain, masquerade=self._masquerade)
        except headers.Malformed:
            self.fail(replies.MALFORMED)
        except headers.Loop:
            self.fail(replies.LOOP)
        else:
            added = header.block + self._additions(header)
            self.utf8_header = not added.isascii()
            self._lines += added.count(b"\n") - block.count(b"\n")
            self._keep(added + rest)

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._pending += len(data)
        if not self.eight_bit and not data.isascii():
            self.eight_bit = True
