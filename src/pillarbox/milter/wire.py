"""The milter protocol, version 6, from the mail server's side: packets, commands, replies. Does no I/O.

A packet is four bytes of length (the letter counts), a letter, and fields that NUL ends. The protocol is defined by
libmilter (mfdef.h, mfapi.h); what each command means is in its xxfi_* and smfi_* manual pages.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag

VERSION = 6
OLDEST = 2  # what milters of before 2003 speak
CHUNK = 65535  # bytes of a body that a packet carries (MILTER_CHUNK_SIZE)
LINE = 1 << 19  # bytes of a line that a milter may make: of one of 1 MB, the server takes a filter for mad

_REPLACE_BODY = b"b"
_LONG = struct.Struct(">I")
_OPTIONS = struct.Struct(">III")


class ProtocolError(Exception):
    """The milter does not speak the protocol. The text is for the log."""


class Command(Enum):
    """What the server says."""

    NEGOTIATE = b"O"
    MACROS = b"D"
    CONNECT = b"C"
    HELO = b"H"
    MAIL = b"M"
    RCPT = b"R"
    DATA = b"T"
    HEADER = b"L"
    END_OF_HEADERS = b"N"
    BODY = b"B"
    END_OF_MESSAGE = b"E"
    ABORT = b"A"
    QUIT = b"Q"


class Answer(Enum):
    """What a milter decides with."""

    CONTINUE = b"c"
    ACCEPT = b"a"
    REJECT = b"r"
    TEMPFAIL = b"t"
    DISCARD = b"d"
    REPLY = b"y"
    SHUTDOWN = b"4"
    CONNECTION_FAILURE = b"f"
    SKIP = b"s"
    PROGRESS = b"p"


class Action(IntFlag):
    """What a milter may do to a message (SMFIF_*)."""

    ADD_HEADERS = 1 << 0
    CHANGE_BODY = 1 << 1
    ADD_RECIPIENT = 1 << 2
    DELETE_RECIPIENT = 1 << 3
    CHANGE_HEADERS = 1 << 4
    QUARANTINE = 1 << 5
    CHANGE_SENDER = 1 << 6
    ADD_RECIPIENT_PARAMETERS = 1 << 7
    CHOOSE_MACROS = 1 << 8


class Step(IntFlag):
    """What a milter does not want to hear, or will not answer, and what it can do (SMFIP_*)."""

    NO_CONNECT = 1 << 0
    NO_HELO = 1 << 1
    NO_MAIL = 1 << 2
    NO_RCPT = 1 << 3
    NO_BODY = 1 << 4
    NO_HEADERS = 1 << 5
    NO_END_OF_HEADERS = 1 << 6
    SILENT_HEADER = 1 << 7
    NO_UNKNOWN = 1 << 8
    NO_DATA = 1 << 9
    SKIP = 1 << 10
    REJECTED_RCPT = 1 << 11
    SILENT_CONNECT = 1 << 12
    SILENT_HELO = 1 << 13
    SILENT_MAIL = 1 << 14
    SILENT_RCPT = 1 << 15
    SILENT_DATA = 1 << 16
    SILENT_UNKNOWN = 1 << 17
    SILENT_END_OF_HEADERS = 1 << 18
    SILENT_BODY = 1 << 19
    LEADING_SPACE = 1 << 20


ACTIONS = Action((1 << 9) - 1)
STEPS = Step((1 << 21) - 1)

# Commands that a milter can refuse to hear, and those whose answer it can withhold.
UNWANTED = {
    Command.CONNECT: Step.NO_CONNECT,
    Command.HELO: Step.NO_HELO,
    Command.MAIL: Step.NO_MAIL,
    Command.RCPT: Step.NO_RCPT,
    Command.DATA: Step.NO_DATA,
    Command.HEADER: Step.NO_HEADERS,
    Command.END_OF_HEADERS: Step.NO_END_OF_HEADERS,
    Command.BODY: Step.NO_BODY,
}
SILENT = {
    Command.CONNECT: Step.SILENT_CONNECT,
    Command.HELO: Step.SILENT_HELO,
    Command.MAIL: Step.SILENT_MAIL,
    Command.RCPT: Step.SILENT_RCPT,
    Command.DATA: Step.SILENT_DATA,
    Command.HEADER: Step.SILENT_HEADER,
    Command.END_OF_HEADERS: Step.SILENT_END_OF_HEADERS,
    Command.BODY: Step.SILENT_BODY,
}
SINCE = {Command.DATA: 4}  # commands that came with a version; a milter of an earlier one does not know them


class Stage(IntEnum):
    """The moments at which macros are sent, by the numbers that a milter names them by (SMFIM_*)."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    END_OF_MESSAGE = 5
    END_OF_HEADERS = 6


@dataclass(frozen=True, slots=True)
class Options:
    """What was agreed on. `macros`: the names that the milter chose for a stage."""

    version: int
    actions: Action
    steps: Step
    macros: Mapping[Stage, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The end of an answer, or PROGRESS. `text`: of REPLY, as it came."""

    answer: Answer
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Put a header below the others."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """Put a header above the one of this number; 0: above all."""

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Change the header of this name and number, the first being 1; an empty value deletes it."""

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """A piece of the new body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """One more recipient."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    """One recipient less."""

    address: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """Another sender."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Keep the message from its recipients."""

    reason: bytes


Change = (
    AddHeader | InsertHeader | ChangeHeader | ReplaceBody | AddRecipient | DeleteRecipient | ChangeSender | Quarantine
)
Reply = Decision | Change


class Packets:
    """Cuts what was read into packets. `limit`: bytes of the longest that is taken.

    Milters put a new body into one packet or into many; it is given on as it comes, as if these were many small ones.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._body = 0  # bytes of a new body that this packet still brings

    @property
    def partial(self) -> bool:
        """Has a packet begun?"""
        return bool(self._rest or self._body)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Each whole packet: its letter, its fields. Raises ProtocolError on a length that cannot be."""
        self._rest += data
        while self._rest:
            if self._body:
                piece = self._take(min(self._body, len(self._rest)))
                self._body -= len(piece)
                yield _REPLACE_BODY, piece
            elif (length := self._length()) is None:
                return
            elif length > 1 and self._rest.startswith(_REPLACE_BODY, _LONG.size):
                self._take(_LONG.size + 1)
                self._body = length - 1
            elif len(self._rest) < _LONG.size + length:
                return
            else:
                packet = self._take(_LONG.size + length)[_LONG.size :]
                yield packet[:1], packet[1:]

    def _length(self) -> int | None:
        """Of the packet that begins here; None: that is still to come, or its letter."""
        if len(self._rest) < _LONG.size:
            return None
        (length,) = _LONG.unpack_from(self._rest)
        letter = bytes(self._rest[_LONG.size : _LONG.size + 1])
        if not 1 <= length <= (self._limit if letter in (b"", _REPLACE_BODY) else min(self._limit, LINE)):
            raise ProtocolError(f"a packet of {length} bytes")
        return int(length) if letter else None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken


def packet(command: Command, payload: bytes = b"") -> bytes:
    """A command as it is written."""
    return _LONG.pack(1 + len(payload)) + command.value + payload


def fields(*values: bytes) -> bytes:
    """Texts as they are written; what is behind a NUL would be another field, so NULs are left out."""
    return b"".join(value.replace(b"\0", b"") + b"\0" for value in values)


def negotiate() -> bytes:
    """The first thing to say: what we offer."""
    return packet(Command.NEGOTIATE, _OPTIONS.pack(VERSION, ACTIONS, STEPS))


def macros(command: Command, values: Mapping[str, str]) -> bytes:
    """Macros for the command that follows."""
    pairs = [text.encode(errors="surrogateescape") for pair in values.items() for text in pair]
    return packet(Command.MACROS, command.value + fields(*pairs))


def connect(name: bytes, family: bytes, port: int, address: bytes) -> bytes:
    """Who the client is. `family`: 4, 6, L (a UNIX socket) or U (not known, and then nothing follows)."""
    payload = fields(name) + family
    if family != b"U":
        payload += struct.pack(">H", port) + fields(address)
    return packet(Command.CONNECT, payload)


def parse_options(letter: bytes, payload: bytes) -> Options:
    """The answer to what we offered. Raises ProtocolError where we cannot agree."""
    if letter != Command.NEGOTIATE.value or len(payload) < _OPTIONS.size:
        raise ProtocolError(f"{letter!r} with {len(payload)} bytes where options were to be agreed on")
    version, actions, steps = _OPTIONS.unpack_from(payload)
    if not OLDEST <= version <= VERSION:
        raise ProtocolError(f"it speaks version {version} of the protocol, and we speak {OLDEST} to {VERSION}")
    if unknown := actions & ~int(ACTIONS):
        raise ProtocolError(f"it wants to do what we did not offer ({unknown:#x})")
    # Steps that we did not offer are not ours to take; others ignore them as well.
    return Options(version, Action(actions), Step(steps & STEPS), _chosen(payload[_OPTIONS.size :]))


def _chosen(payload: bytes) -> dict[Stage, tuple[str, ...]]:
    chosen = {}
    while payload:
        if len(payload) < _LONG.size or (end := payload.find(b"\0", _LONG.size)) < 0:
            raise ProtocolError("a list of macros that is cut off")
        (number,) = _LONG.unpack_from(payload)
        if number < len(Stage):  # there may be more of them one day
            names = payload[_LONG.size : end].decode(errors="surrogateescape")
            chosen[Stage(number)] = tuple(names.replace(",", " ").split())
        payload = payload[end + 1 :]
    return chosen


def parse_reply(letter: bytes, payload: bytes) -> Reply:
    """What a milter said. Raises ProtocolError."""
    if reader := _CHANGES.get(letter):
        return reader(payload)
    try:
        answer = Answer(letter)
    except ValueError:
        raise ProtocolError(f"an answer {letter!r} that there is not") from None
    if answer is Answer.REPLY:
        return Decision(answer, payload.removesuffix(b"\0"))
    if payload:
        raise ProtocolError(f"{answer.name} with {len(payload)} bytes behind it")
    return Decision(answer)


def _texts(payload: bytes, least: int, most: int) -> list[bytes]:
    """The fields of a payload, filled up with empty ones to `most`."""
    texts = payload.removesuffix(b"\0").split(b"\0")
    if not payload.endswith(b"\0") or not least <= len(texts) <= most:
        raise ProtocolError(f"{least} to {most} fields were to come: {payload[:80]!r}")
    return texts + [b""] * (most - len(texts))


def _header(payload: bytes) -> tuple[bytes, bytes]:
    name, value = _texts(payload, 2, 2)
    if not name or any(not 33 <= byte <= 126 or byte == 58 for byte in name):  # RFC 5322 §3.6.8
        raise ProtocolError(f"{name[:80]!r} is no name of a header")
    return name, value


def _numbered(payload: bytes) -> tuple[int, bytes, bytes]:
    if len(payload) < _LONG.size:
        raise ProtocolError("a header without a number")
    (index,) = _LONG.unpack_from(payload)
    if index >= 1 << 31:
        raise ProtocolError(f"a header of the number {index}")
    return (index, *_header(payload[_LONG.size :]))


def _address(payload: bytes) -> bytes:
    return _texts(payload, 1, 1)[0]


_CHANGES: dict[bytes, Callable[[bytes], Change]] = {
    b"h": lambda payload: AddHeader(*_header(payload)),
    b"i": lambda payload: InsertHeader(*_numbered(payload)),
    b"m": lambda payload: ChangeHeader(*_numbered(payload)),
    _REPLACE_BODY: ReplaceBody,
    b"+": lambda payload: AddRecipient(_address(payload)),
    b"2": lambda payload: AddRecipient(*_texts(payload, 1, 2)),
    b"-": lambda payload: DeleteRecipient(_address(payload)),
    b"e": lambda payload: ChangeSender(*_texts(payload, 1, 2)),
    b"q": lambda payload: Quarantine(payload.removesuffix(b"\0")),
}
