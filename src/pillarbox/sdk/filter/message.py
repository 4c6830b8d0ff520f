"""A message in a filter's hands: its header fields, its bytes; what is not touched stays as it came, byte by byte."""

import re
from collections.abc import Iterator
from email import message_from_bytes
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP

_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 §2.2: printable, no colon
_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:")
_WIDTH = 78  # RFC 5322 §2.1.1: lines should be no longer
_LINE_END = re.compile("\r?\n")


def build_field(name: str, value: str) -> list[str]:
    """The lines of a header field. Raises ValueError for what would be no field, or more than one.

    A long value is folded at blanks, one that is not ASCII encoded (RFC 2047; bytes that are no UTF-8 become U+FFFD);
    one with line breaks must be folded.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a header field: {name[:80]!r}")
    lines = _LINE_END.split(value)
    if (
        "\0" in value
        or "\r" in "".join(lines)
        or not all(line[:1] in (" ", "\t") and line.strip() for line in lines[1:])
    ):
        raise ValueError(f"{name}: the value holds a NUL or a line break that folds nothing")
    if not value.isascii():
        value = value.encode(errors="surrogateescape").decode(errors="replace")  # what a client said, perhaps
        lines = Header(value, "utf-8", maxlinelen=_WIDTH - 2, header_name=name).encode().split("\n")
    elif len(lines) == 1:
        return _fold(f"{name}: {value}")
    return [f"{name}: {lines[0]}", *lines[1:]]


def _fold(line: str) -> list[str]:
    """Break a line before blanks, never within a word.

    Each line says something: one of blanks alone ends the header section to some readers.
    """
    lines = []
    start = line.find(" ")
    while len(line) > _WIDTH:
        start += len(line[start:]) - len(line[start:].lstrip()) + 1
        at = line.rfind(" ", start, _WIDTH)
        if at < 0:
            at = line.find(" ", max(start, _WIDTH))
        if at < 0 or not line[at:].strip():
            break
        lines.append(line[:at])
        line, start = line[at:], 0
    return [*lines, line]


class Headers:
    """The header section: an ordered list of fields. Names are compared without case."""

    def __init__(self, lines: list[str]) -> None:
        self._fields: list[list[str]] = []
        for line in lines:
            if line[:1] in (" ", "\t") and self._fields:
                self._fields[-1].append(line)
            else:
                self._fields.append([line])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Names and unfolded values, from the top. A line that is no field has no name."""
        return ((_name(field), _value(field)) for field in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: str) -> bool:
        return any(True for _ in self._matching(name))

    def get(self, name: str, default: str = "") -> str:
        """The value of the first field of this name, unfolded; encoded words (RFC 2047) as they are."""
        return next((_value(field) for field in self._matching(name)), default)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of this name."""
        return [_value(field) for field in self._matching(name)]

    def add(self, name: str, value: str, *, first: bool = False) -> None:
        """Add a field below the others, or `first`, above them. Raises ValueError as `build_field` does."""
        self._fields.insert(0 if first else len(self._fields), build_field(name, value))

    def remove(self, name: str) -> int:
        """Remove every field of this name; how many there were."""
        gone = [id(field) for field in self._matching(name)]
        self._fields = [field for field in self._fields if id(field) not in gone]
        return len(gone)

    def replace(self, name: str, value: str) -> None:
        """Give the first field of this name another value and remove the others; add one where there is none."""
        field = build_field(name, value)
        places = [at for at, old in enumerate(self._fields) if _name(old).lower() == name.lower()]
        for at in reversed(places[1:]):
            del self._fields[at]
        if places:
            self._fields[places[0]] = field
        else:
            self._fields.append(field)

    def lines(self) -> list[str]:
        """The section as it is sent, without the empty line behind it."""
        return [line for field in self._fields for line in field]

    def _matching(self, name: str) -> Iterator[list[str]]:
        wanted = name.lower()
        return (field for field in self._fields if _name(field).lower() == wanted)


def _name(field: list[str]) -> str:
    match = _FIELD.match(field[0])
    return match[1] if match else ""


def _value(field: list[str]) -> str:
    start = field[0].partition(":")[2] if _name(field) else field[0]
    return "".join([start, *field[1:]]).strip()


class Message:
    """A whole message. Change its `headers`, or set `raw`; all else stays as it came."""

    def __init__(self, lines: list[str]) -> None:
        self.headers = Headers([])
        self._body: list[str] = []
        self._set(lines)

    def _set(self, lines: list[str]) -> None:
        end = lines.index("") if "" in lines else len(lines)
        self.headers = Headers(lines[:end])
        self._body = lines[end:]

    @property
    def raw(self) -> bytes:
        """All of it, lines ended by CRLF, dots not stuffed. Can be set, with either kind of line end."""
        return "".join(f"{line}\r\n" for line in self.lines()).encode(errors="surrogateescape")

    @raw.setter
    def raw(self, data: bytes) -> None:
        self._set(split(data))

    @property
    def body(self) -> bytes:
        """What is behind the empty line. Can be set, with either kind of line end."""
        return "".join(f"{line}\r\n" for line in self._body[1:]).encode(errors="surrogateescape")

    @body.setter
    def body(self, data: bytes) -> None:
        self._body = ["", *split(data)]

    def parsed(self) -> EmailMessage:
        """As Python's `email` reads it. A change of this copy counts when a handler returns it."""
        parsed = message_from_bytes(self.raw, policy=SMTP)
        assert isinstance(parsed, EmailMessage)  # the policy makes no other
        return parsed

    def replace(self, message: bytes | EmailMessage) -> None:
        """Become another message."""
        self.raw = message if isinstance(message, bytes) else message.as_bytes(policy=SMTP)

    def lines(self) -> list[str]:
        """As it is sent, without line ends; bytes that are no UTF-8 are surrogates."""
        return [*self.headers.lines(), *self._body]


def split(data: bytes) -> list[str]:
    """Lines of bytes, however they end."""
    return split_text(data.decode(errors="surrogateescape")) if data else []


def split_text(text: str) -> list[str]:
    """Lines of text, however they end; the last one needs no end."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]
