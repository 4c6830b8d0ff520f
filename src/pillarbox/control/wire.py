"""What crosses the control socket: one request, one answer, each a frame; every answer is bounded.

A frame is eight bytes (`PBC`, the version, the length in network order) and MessagePack. Long listings are asked for
page by page, each page by the last key of the one before it: neither side holds more than a page, and a reader that
pauses (`smtpctl show queue | less`) costs the server nothing. After the answer `Done` to `Submit` the connection
carries an SMTP session as plain bytes instead.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from pillarbox.roles.explain import Explanation, Question
from pillarbox.roles.filters import Status
from pillarbox.roles.queue import QueueRow

MAGIC = b"PBC"
VERSION = 1
HEADER = 8
REQUEST_MAX = 16 * 1024
ANSWER_MAX = 4 * 1024 * 1024

# A page ends at this many rows or bytes, whichever is first.
PAGE_ROWS = 1000
PAGE_BYTES = 512 * 1024
PAGE_FILTERS = 100

# Why a `Submit` failed: the client leaves by these.
SMTP_PAUSED = "server disallowed submission request"
TOO_BUSY = "server too busy"


class Bad(Exception):
    """The other side sent something that is no frame of ours; its text is for a person."""


class ShowQueue(msgspec.Struct, frozen=True, tag="queue", array_like=True):
    """Envelopes with evpid > `after`, of one message if `msgid` → `Rows`."""

    after: int = 0
    msgid: int = 0


class ShowEnvelope(msgspec.Struct, frozen=True, tag="envelope", array_like=True):
    """One envelope → `Rows` of one or none."""

    evpid: int


class ReadMessage(msgspec.Struct, frozen=True, tag="message", array_like=True):
    """A piece of a body, CRLF lines → `Piece`, empty at the end."""

    msgid: int
    offset: int = 0


class ShowMta(msgspec.Struct, frozen=True, tag="mta", array_like=True):
    """What the relays know, from line `after` on → `Lines`, empty at the end.

    `what`: hosts, hoststats, relays, routes, paused.
    """

    what: str
    after: int = 0


class ShowStats(msgspec.Struct, frozen=True, tag="stats", array_like=True):
    """Counters and gauges → `Numbers`."""


class ShowStatus(msgspec.Struct, frozen=True, tag="status", array_like=True):
    """What is paused → `Lines` out of mda, mta, smtp."""


class ShowConfig(msgspec.Struct, frozen=True, tag="config", array_like=True):
    """The configuration as text, from `offset` on → `Text`, empty at the end.

    `generation`: which one has begun to be read, -1 with the first request; `Failed` where it is another by now.
    """

    generation: int = -1
    offset: int = 0


class ShowFilters(msgspec.Struct, frozen=True, tag="filters", array_like=True):
    """The processors of filters, from number `after` on → `FilterRows`, empty at the end."""

    after: int = 0


class Change(msgspec.Struct, frozen=True, tag="change", array_like=True):
    """`verb` (schedule, remove, pause, resume, discover) applied to an evpid, a msgid, or 0 = all → `Count`."""

    verb: str
    which: int


class Pause(msgspec.Struct, frozen=True, tag="pause", array_like=True):
    """Pause or resume mda, mta or smtp → `Done`, or `Failed` where it was so already."""

    kind: str
    paused: bool


class PauseRoute(msgspec.Struct, frozen=True, tag="pause-route", array_like=True):
    """`pause|resume mta from SOURCE for DEST` → `Done`."""

    source: str
    dest: str
    paused: bool


class ResumeRoute(msgspec.Struct, frozen=True, tag="resume-route", array_like=True):
    """`resume route N` → `Done`."""

    route: int


class LogLevel(msgspec.Struct, frozen=True, tag="log", array_like=True):
    """`log verbose|brief` → `Done`."""

    verbose: bool


class Trace(msgspec.Struct, frozen=True, tag="trace", array_like=True):
    """`trace|untrace`, and with `profile` `profile|unprofile`, of a subsystem → `Done`."""

    subsystem: str
    on: bool
    profile: bool = False


class UpdateTable(msgspec.Struct, frozen=True, tag="table", array_like=True):
    """Read a table again → `Done`."""

    name: str


class RestartFilter(msgspec.Struct, frozen=True, tag="restart-filter", array_like=True):
    """End a processor and start it again → `Done`."""

    name: str


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """End the server → `Done`."""


class Explain(msgspec.Struct, frozen=True, tag="explain", array_like=True):
    """What would become of a recipient, and why → `Explained`."""

    question: Question


class Reload(msgspec.Struct, frozen=True, tag="reload", array_like=True):
    """Read the configuration again → `Reloaded`."""


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    """Begin an SMTP session of the local user → `Done`, then plain bytes."""


class Rows(msgspec.Struct, frozen=True, tag="rows", array_like=True):
    """A page of the queue; an empty one is the end."""

    rows: list[QueueRow]


class FilterRows(msgspec.Struct, frozen=True, tag="filter-rows", array_like=True):
    """A page of processors."""

    rows: list[Status]


class Piece(msgspec.Struct, frozen=True, tag="piece", array_like=True):
    """A piece of a body."""

    data: bytes


class Text(msgspec.Struct, frozen=True, tag="text", array_like=True):
    """A piece of the configuration of this generation."""

    generation: int
    text: str


class Lines(msgspec.Struct, frozen=True, tag="lines", array_like=True):
    """A page of text."""

    lines: list[str]


class Numbers(msgspec.Struct, frozen=True, tag="numbers", array_like=True):
    """Counters by name."""

    values: dict[str, int]


class Count(msgspec.Struct, frozen=True, tag="count", array_like=True):
    """How many a `Change` changed."""

    count: int


class Explained(msgspec.Struct, frozen=True, tag="explained", array_like=True):
    """The answer to a question; at most `routing.explain.SIZE_MAX` bytes and a little."""

    explanation: Explanation


class Done(msgspec.Struct, frozen=True, tag="done", array_like=True):
    """It is done."""


class Failed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """It is not done; `text`, if any, says why."""

    text: str = ""


class Reloaded(msgspec.Struct, frozen=True, tag="reloaded", array_like=True):
    """What became of it: `problems`, and nothing has changed; or perhaps something to know."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Missing(msgspec.Struct, frozen=True, tag="missing", array_like=True):
    """There is no such message or envelope."""


class Denied(msgspec.Struct, frozen=True, tag="denied", array_like=True):
    """Only for root and for the user that the server runs as."""


Request: TypeAlias = (
    ShowQueue
    | ShowEnvelope
    | ReadMessage
    | ShowMta
    | ShowStats
    | ShowStatus
    | ShowConfig
    | ShowFilters
    | Change
    | Pause
    | PauseRoute
    | ResumeRoute
    | LogLevel
    | Trace
    | UpdateTable
    | RestartFilter
    | Explain
    | Stop
    | Reload
    | Submit
)
Answer: TypeAlias = (
    Rows | FilterRows | Piece | Text | Lines | Numbers | Count | Explained | Done | Failed | Reloaded | Missing | Denied
)

_encode = msgspec.msgpack.Encoder().encode
_decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
_decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode


def frame(message: Request | Answer) -> bytes:
    """The bytes of one message."""
    body = _encode(message)
    return MAGIC + bytes((VERSION,)) + len(body).to_bytes(4, "big") + body


def body_length(header: bytes, limit: int) -> int:
    """How many bytes follow this header; raises `Bad`, also where the other side speaks another version."""
    if header[:3] != MAGIC:
        raise Bad("not a control frame")
    if header[3] != VERSION:
        raise Bad("incompatible smtpctl and smtpd")
    length = int.from_bytes(header[4:HEADER], "big")
    if length > limit:
        raise Bad("control frame too large")
    return length


def decode_request(body: bytes) -> Request:
    """What a client asks; raises `Bad`."""
    try:
        return _decode_request(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Bad("incompatible smtpctl and smtpd") from error


def decode_answer(body: bytes) -> Answer:
    """What the server says; raises `Bad`."""
    try:
        return _decode_answer(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Bad("incompatible smtpctl and smtpd") from error
