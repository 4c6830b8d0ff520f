"""The lines of smtpd-tables(7), protocol 0.1: requests parsed, answers written. Does no I/O.

A request is `table|0.1|TIME|TABLE|OPERATION|…`; only its last field, the key, may hold a `|`. An answer is
`OPERATION-result|ID|…`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

VERSION = "0.1"
MAX_LINE = 1 << 20  # bytes of a request; what is longer gets an error for an answer
MAX_MESSAGE = 500  # characters of an error's text

_BREAKS = re.compile(r"[\r\n\0]")  # the server reads lines into C strings


class Service(StrEnum):
    """What a table can be asked for; table(5) has the format of each one's keys and values."""

    ALIAS = "alias"
    AUTH = "auth"
    DOMAIN = "domain"
    CREDENTIALS = "credentials"
    NETADDR = "netaddr"
    USERINFO = "userinfo"
    SOURCE = "source"
    MAILADDR = "mailaddr"
    ADDRNAME = "addrname"
    MAILADDRMAP = "mailaddrmap"
    RELAYHOST = "relayhost"
    STRING = "string"
    REGEX = "regex"


class Operation(StrEnum):
    """What the server does with a table."""

    UPDATE = "update"
    CHECK = "check"
    LOOKUP = "lookup"
    FETCH = "fetch"


# A value as it is, or the parts that its service joins (`uid:gid:home`, `alias, alias`); None: not found.
Value = str | Sequence[str | int] | None

_LISTS = {Service.ALIAS, Service.MAILADDRMAP}
_PARTS = {Service.CREDENTIALS: 2, Service.USERINFO: 3}


class TableError(Exception):
    """A question that cannot be answered now. The text is for the server's log; the mail waits, it is not refused."""


class ProtocolError(Exception):
    """The other side does not speak the protocol: there is no going on."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `service` is as it came: one that we do not know gets an answer too. `key` may be empty."""

    operation: Operation
    id: str
    service: str = ""
    key: str = ""
    cut: bool = False


def parse_request(line: str, *, cut: bool = False) -> Request:
    """A line without its end; `cut`: it was longer than MAX_LINE, and this is its start. Raises ProtocolError."""
    fields = line.split("|", 5)
    if len(fields) < 6 or fields[0] != "table":
        raise ProtocolError(f"not a request: {line[:80]!r}")
    if fields[1] != VERSION:
        raise ProtocolError(f"protocol {fields[1]!r} is not spoken here, only {VERSION}")
    try:
        operation = Operation(fields[4])
    except ValueError:
        raise ProtocolError(f"unknown operation {fields[4][:80]!r}") from None
    if operation is Operation.UPDATE:
        return Request(operation, fields[5])
    wanted = 2 if operation is Operation.FETCH else 3
    rest = fields[5].split("|", wanted - 1)
    if len(rest) < wanted:
        raise ProtocolError(f"{operation} with too few fields: {line[:80]!r}")
    return Request(operation, rest[1], rest[0], rest[2] if wanted == 3 else "", cut)


def join_value(service: str, value: str | Sequence[str | int]) -> str:
    """The value as the server reads it. Raises TableError on one that it could not read, TypeError on what is none."""
    text = value if isinstance(value, str) else _joined(service, value)
    if not text:
        raise TableError("the value is empty")  # the reference exits on `found|` with nothing behind it
    if _BREAKS.search(text):
        raise TableError("the value holds a line break or a NUL")
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise TableError("the value holds a surrogate that stands for no byte") from None
    return text


def _joined(service: str, parts: Sequence[str | int]) -> str:
    if isinstance(parts, bytes | bytearray | memoryview):
        raise TypeError("a value is text, not bytes")  # its numbers would be a list, too
    texts = [join_part(part) for part in parts]
    if service in _LISTS:
        return ", ".join(texts)
    wanted = _PARTS.get(Service(service), 1)
    if len(texts) != wanted:
        raise TableError(f"{service} wants {wanted} parts, not {len(texts)}")
    if any(not text or ":" in text for text in texts[:-1]):
        raise TableError(f"{service}: only the last part may be empty or hold a colon")
    return ":".join(texts)


def join_part(part: object) -> str:
    """One part of a value as text. Raises TypeError for what is none."""
    if not isinstance(part, str | int) or isinstance(part, bool):  # NULL would be somebody called None
        raise TypeError(f"a part of a value is text or a number, not {type(part).__name__}")
    return str(part)


def found(request: Request, value: str | None = None) -> str:
    """The answer "found", with the value where the operation has one."""
    return f"{request.operation}-result|{request.id}|found" + ("" if value is None else f"|{value}")


def not_found(request: Request) -> str:
    """The answer "not-found"."""
    return f"{request.operation}-result|{request.id}|not-found"


def updated(request: Request) -> str:
    """The answer to an update that went well."""
    return f"{request.operation}-result|{request.id}|ok"


def failed(request: Request, message: str) -> str:
    """The answer "error", with the reason on one line."""
    text = " ".join(_BREAKS.sub(" ", message).split())[:MAX_MESSAGE].encode(errors="replace").decode()
    return f"{request.operation}-result|{request.id}|error|{text or 'unknown'}"


class Lines:
    """Cuts what was read into lines; one that is too long keeps its start only. Bytes that are no UTF-8 survive."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._cut = False

    def feed(self, data: bytes) -> Iterator[tuple[str, bool]]:
        """Each complete line without its end, and whether it was cut."""
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._add(piece)
            line, cut = self._rest.decode(errors="surrogateescape"), self._cut
            self._rest.clear()
            self._cut = False
            yield line, cut
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        room = self._limit - len(self._rest)
        self._cut = self._cut or len(piece) > room
        self._rest += piece[:room]


class Blocks:
    """Cuts what was read into lines, many at a time. Bytes that are no UTF-8 survive."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self._rest = b""
        self._cut = False

    def feed(self, data: bytes) -> tuple[str | None, list[str]]:
        """The start of a line that was longer than the limit and ended here, if one did; the whole lines behind it."""
        cut = None
        if self._cut:
            end = data.find(b"\n")
            if end < 0:
                return None, []
            cut, self._rest, self._cut, data = _text(self._rest), b"", False, data[end + 1 :]
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            self._cut = len(self._rest) > self.limit
            self._rest = self._rest[: self.limit]
            return cut, []
        lines = _text(self._rest + data[:end]).split("\n")
        self._rest = data[end + 1 :]
        return cut, lines


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def encode(lines: Iterable[str]) -> bytes:
    """Lines as they are written."""
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
