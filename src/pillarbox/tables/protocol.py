"""smtpd-tables(7), protocol 0.1: the lines exchanged with a table program. No I/O, no clock: bytes in, answers out.

The program is told about us (`handshake`), says which services it knows, and then answers questions in any order, each
by its id. What does not fit raises `Nonsense`, and whoever talks to it (`tables/program`) ends the conversation.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from pillarbox import REFERENCE_VERSION
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.tables.services import Service

VERSION = "0.1"
MAX_KEY = 1023  # bytes, as the reference
MAX_LINE = 1 << 20  # bytes of an answer: a mailing list may be long
MAX_REGISTRATIONS = 100  # lines of a handshake


class Op(StrEnum):
    """What a program may be asked to do."""

    UPDATE = "update"
    CHECK = "check"
    LOOKUP = "lookup"
    FETCH = "fetch"


class Nonsense(PillarboxError):
    """The program does not speak the protocol; the text says what it did."""


class Answer(NamedTuple):
    """One answer. `found` None: the program reports an error, `text` says which; else `text` is the value found."""

    id: str
    found: bool | None
    text: str


_RESULTS = {
    Op.UPDATE: (b"update-result",),
    Op.CHECK: (b"check-result",),
    Op.LOOKUP: (b"lookup-result",),
    Op.FETCH: (b"fetch-result", b"lookup-result"),  # smtpd-tables(7) shows the second in its example
}


# All that is shown of a line that does not fit: what follows may be a value, and a value may be a password's hash.
_FIRST_WORDS = frozenset((b"register", *(word for words in _RESULTS.values() for word in words)))


class TableProtocol:
    """One conversation. `services` is None until the program has registered."""

    def __init__(self, *, table: str) -> None:
        self._table = table
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer that hold no end of line
        self._registered: list[Service] = []
        self._asked: dict[str, Op] = {}
        self.services: frozenset[Service] | None = None

    def handshake(self) -> bytes:
        """What the program is told first."""
        return (
            f"config|smtpd-version|{REFERENCE_VERSION}\n"
            f"config|protocol|{VERSION}\n"
            f"config|tablename|{self._table}\n"
            "config|ready\n"
        ).encode("utf-8", "surrogateescape")

    def request(self, op: Op, service: Service | None, key: str | None, *, id_: str, now: float) -> bytes:
        """A question, to be answered under `id_`, which must be new. TempFail: the key cannot be asked for."""
        fields = ["table", VERSION, f"{now:.6f}", self._table, op, *([service] if service else []), id_]
        line = "|".join(fields if key is None else [*fields, _checked(key)])
        self._asked[id_] = op
        return line.encode("utf-8", "surrogateescape") + b"\n"

    def receive(self, data: bytes) -> Iterator[Answer]:
        """The answers in what the program wrote. Raises Nonsense; what came before it was yielded."""
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            self._scanned = 0
            if self.services is None:
                self._register(line)
            else:
                yield self._parse_answer(line)
        self._scanned = len(self._buffer)
        if self._scanned > MAX_LINE:
            raise Nonsense(f"wrote a line of more than {MAX_LINE} bytes")

    def _register(self, line: bytes) -> None:
        word, bar, name = line.partition(b"|")
        if word != b"register" or not bar:
            raise Nonsense(f"registers with a line that is none: {_shown(line)}")
        if name == b"ready":
            if not self._registered:
                raise Nonsense("registers no service")
            self.services = frozenset(self._registered)
            return
        try:
            self._registered.append(Service(name.decode("latin-1")))
        except ValueError:
            raise Nonsense(f"registers an unknown service: {_shown_name(name)}") from None
        if len(self._registered) > MAX_REGISTRATIONS:
            raise Nonsense("does not come to an end with registering services")

    def _parse_answer(self, line: bytes) -> Answer:
        word, _, rest = line.partition(b"|")
        raw_id, bar, result = rest.partition(b"|")
        id_ = raw_id.decode("latin-1")
        op = self._asked.pop(id_, None)
        if op is None or not bar or word not in _RESULTS[op]:
            raise Nonsense(f"answers what was not asked: {_shown(line)}")
        outcome, bar, value = result.partition(b"|")
        text = value.decode("utf-8", "surrogateescape")
        if outcome == b"error":
            return Answer(id_, None, text or "the program reports an error")
        if op is Op.UPDATE and outcome == b"ok":
            return Answer(id_, True, "")
        if op is not Op.UPDATE and outcome == b"not-found":
            return Answer(id_, False, "")
        if op is Op.CHECK and outcome == b"found":
            return Answer(id_, True, "")
        if op in (Op.LOOKUP, Op.FETCH) and outcome == b"found":
            return Answer(id_, True, text) if text else Answer(id_, None, "the program found an empty value")
        raise Nonsense(f"gives an answer that is none: {_shown(line)}")


def _checked(key: str) -> str:
    """A key that fits into a line. It may hold a password: no error shows it. COMPAT: a longer one is temporary."""
    if len(key.encode("utf-8", "surrogateescape")) > MAX_KEY:
        raise TempFail(f"a key has more than {MAX_KEY} bytes")
    if any(c in key for c in "\n\r\0"):
        raise TempFail("a key has more than one line")
    return key


def _shown(line: bytes) -> str:
    """As much of a line as the log may show."""
    word, bar, _ = line.partition(b"|")
    if word not in _FIRST_WORDS:
        return f"a line of {len(line)} bytes that begins with no word of the protocol"
    return f'"{word.decode("latin-1")}{"|…" if bar else ""}"'


def _shown_name(name: bytes) -> str:
    """What a program calls a service, before it has been asked anything."""
    text = name.decode("utf-8", "replace")
    return f'"{text[:80]}"' + ("" if len(text) <= 80 else " …")
