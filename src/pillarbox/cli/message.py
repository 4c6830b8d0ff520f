"""The message that `sendmail` was given: read once from stdin, kept on disk, sent as SMTP wants it.

It is kept with LF line ends and otherwise as it came, Bcc included: what is left while the server is down is read by
`sendmail` once more. Memory is that of a chunk and of the address fields, whatever the size.
"""

import binascii
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from pillarbox.cli.addresses import parse_addresses
from pillarbox.cli.spool import CHUNK, Spool

_LONG = 989  # octets of a line, its end not counted, from which a body needs an encoding: the reference's limit
_FIELDS_MAX = 4 << 20  # octets of the fields that are looked into

# What makes the first lines a header, and what the program looks at.
_KNOWN = re.compile(
    rb"(from|to|cc|bcc|subject|date|message-id|mime-version|content-type|content-disposition"
    rb"|content-transfer-encoding|user-agent):",
    re.IGNORECASE,
)
_DROPPED = re.compile(rb"from |return-path: |bcc:", re.IGNORECASE)
_INSPECTED = frozenset(("from", "to", "cc", "bcc", "content-type"))


class FieldTooLarge(ValueError):
    """More addresses in a header than memory is given for."""


class Message:
    """A message, and what of its header decides how it is sent.

    `fields`: the names, in lower case, of the known fields that it has.
    """

    def __init__(self, source: BinaryIO) -> None:
        """Read all of it. Raises OSError and `FieldTooLarge`."""
        self.spool = Spool()
        self.fields: set[str] = set()
        self.long_lines = False
        self.odd_octets = False  # NUL, or CR alone
        self.eight_bit = False
        self._values: dict[str, list[bytearray]] = {}
        self._kept = 0
        self._body = 0
        self._read_header(source)
        if not self.fields:
            self._body = 0
        self._read_body(source)
        self._inspect()

    @property
    def has_header(self) -> bool:
        """Whether it begins with a header: at least one field that mail programs know."""
        return bool(self.fields)

    def addresses(self, *names: str) -> list[str]:
        """The addresses of these fields. Raises `BadAddress`."""
        return [
            address
            for name in names
            for value in self._values.get(name, ())
            for address in parse_addresses(value.decode("utf-8", "surrogateescape"))
        ]

    @property
    def encoded(self) -> bool:
        """Whether the body is sent as quoted-printable, because it could not travel as it is.

        Where it says itself how it is encoded, or has parts that do, it is sent as it is.
        """
        content = next(iter(self._values.get("content-type", ())), b"text/").strip().lower()
        settled = "content-transfer-encoding" in self.fields or not content.startswith(b"text/")
        return (self.long_lines or self.odd_octets) and not settled

    def lines_for_smtp(self, added: Iterable[str]) -> Iterator[bytes]:
        """All of it as after DATA, without the last dot; `added` fields go first."""
        yield "".join(f"{line}\r\n" for line in added).encode("utf-8", "surrogateescape")
        if not self.has_header:
            yield b"\r\n"
        yield from _stuffed(self._header_lines())
        yield from _stuffed(self._quoted_body() if self.encoded else self._plain_body())

    # Reading

    def _read_header(self, source: BinaryIO) -> None:
        """Up to the first empty line, or all where there is none."""
        name, fresh = "", True
        while line := source.readline(CHUNK):
            if line.endswith(b"\r\n"):
                line = line[:-2] + b"\n"
            self.spool.write(line)
            if line == b"\n" and fresh:
                break
            if fresh and line[:1] not in b" \t":
                known = _KNOWN.match(line)
                name = known[1].decode("ascii").lower() if known else ""
                if known:
                    self.fields.add(name)
                    self._values.setdefault(name, []).append(bytearray())
                    self._collect(name, line[known.end() :])
            elif name:
                self._collect(name, line)
            fresh = line.endswith(b"\n")
        self._body = self.spool.size

    def _collect(self, name: str, piece: bytes) -> None:
        """Keep the bodies of fields that are looked into."""
        if name in _INSPECTED:
            self._values[name][-1] += piece
            self._kept += len(piece)
            if self._kept > _FIELDS_MAX:
                raise FieldTooLarge("address exceeds buffer size")

    def _read_body(self, source: BinaryIO) -> None:
        """The rest, ending in a line end."""
        held = b""
        while data := source.read(CHUNK):
            data = held + data
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n")
            self.spool.write(data)
        self.spool.write(held)
        if self.spool.last not in (b"", b"\n"):
            self.spool.write(b"\n")

    def _inspect(self) -> None:
        """What the body needs to travel."""
        unfinished = 0
        for data in self.spool.chunks(self._body):
            parts = data.split(b"\n")
            longest = max(unfinished + len(parts[0]), *map(len, parts[1:]), 0)
            unfinished = len(parts[-1]) + (unfinished if len(parts) == 1 else 0)
            self.long_lines = self.long_lines or longest >= _LONG
            self.odd_octets = self.odd_octets or b"\r" in data or b"\0" in data
        self.eight_bit = any(not data.isascii() for data in self.spool.chunks())

    # Sending

    def _header_lines(self) -> Iterator[bytes]:
        """The header as it is sent: no Bcc, no remains of a mailbox, nothing that is no text."""
        fresh, dropped = True, False
        for line in self.spool.lines(0, self._body):
            if fresh and line[:1] not in b" \t":
                dropped = _DROPPED.match(line) is not None
            fresh = line.endswith(b"\n")
            if not dropped:
                yield line.replace(b"\r", b" ").replace(b"\0", b" ")

    def _plain_body(self) -> Iterator[bytes]:
        for data in self.spool.chunks(self._body):
            yield data.replace(b"\r", b"\n") if self.odd_octets else data

    def _quoted_body(self) -> Iterator[bytes]:
        """RFC 2045 §6.7; pieces of an endless line are joined by soft breaks."""
        for line in self.spool.lines(self._body):
            whole = line.endswith(b"\n")
            yield binascii.b2a_qp(line.removesuffix(b"\n"), istext=False) + (b"\n" if whole else b"=\n")


def _stuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """LF as CRLF, a dot doubled where it begins a line (RFC 5321 §4.5.2)."""
    fresh = True
    for piece in pieces:
        data = piece.replace(b"\n", b"\r\n").replace(b"\r\n.", b"\r\n..")
        if fresh and data.startswith(b"."):
            data = b"." + data
        if data:
            fresh = data.endswith(b"\n")
            yield data
