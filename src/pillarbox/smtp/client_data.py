"""The client's side of a message behind DATA."""


class DotStuffer:
    """Dot-stuffing of a body that comes in pieces (RFC 5321 §4.5.2), without looking at it line by line."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the last two bytes so far; a body begins at the start of a line

    def feed(self, chunk: bytes) -> bytes:
        """The chunk as it goes on the wire."""
        if not chunk:
            return b""
        stuffed = chunk.replace(b"\r\n.", b"\r\n..") if b"\r\n." in chunk else chunk
        if self._tail == b"\r\n" and chunk[0] == 46:
            stuffed = b"." + stuffed
        elif self._tail[1:] == b"\r" and chunk.startswith(b"\n."):
            stuffed = b"\n.." + stuffed[2:]
        self._tail = (self._tail + chunk[-2:])[-2:]
        return stuffed

    def end(self) -> bytes:
        """The end of data, on a line of its own."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
