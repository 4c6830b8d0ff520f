"""What the server tells of a session, typed; docs/filters.md says when each comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pillarbox.sdk.filter.protocol import Dialect
from pillarbox.sdk.wire import ProtocolError


@dataclass(frozen=True, slots=True)
class Event:
    """`time`: epoch seconds; `session`: its id; `subsystem`: `smtp-in`, `smtp-out`, or whoever else reports."""

    name: ClassVar[str] = ""
    time: float
    subsystem: str
    session: str


@dataclass(frozen=True, slots=True)
class LinkConnect(Event):
    """A connection. `fcrdns`: pass, fail or error; `src`, `dest`: `address:port` or `unix:/path`."""

    name: ClassVar[str] = "link-connect"
    rdns: str
    fcrdns: str
    src: str
    dest: str


@dataclass(frozen=True, slots=True)
class LinkGreeting(Event):
    """The banner was sent."""

    name: ClassVar[str] = "link-greeting"
    hostname: str


@dataclass(frozen=True, slots=True)
class LinkIdentify(Event):
    """HELO or EHLO was accepted; `method` says which."""

    name: ClassVar[str] = "link-identify"
    method: str
    identity: str


@dataclass(frozen=True, slots=True)
class LinkTLS(Event):
    """TLS stands. `description`: `version:cipher:bits`."""

    name: ClassVar[str] = "link-tls"
    description: str


@dataclass(frozen=True, slots=True)
class LinkAuth(Event):
    """A login. `result`: pass, fail or error."""

    name: ClassVar[str] = "link-auth"
    result: str
    username: str


@dataclass(frozen=True, slots=True)
class LinkDisconnect(Event):
    """The session is over."""

    name: ClassVar[str] = "link-disconnect"


@dataclass(frozen=True, slots=True)
class TxReset(Event):
    """The transaction is over, however it ended. `msgid` may be empty."""

    name: ClassVar[str] = "tx-reset"
    msgid: str = ""


@dataclass(frozen=True, slots=True)
class TxBegin(Event):
    """A transaction begins."""

    name: ClassVar[str] = "tx-begin"
    msgid: str


@dataclass(frozen=True, slots=True)
class TxMail(Event):
    """MAIL was answered. `result`: ok, permfail or tempfail; the address without brackets and parameters."""

    name: ClassVar[str] = "tx-mail"
    msgid: str
    result: str
    address: str


@dataclass(frozen=True, slots=True)
class TxRcpt(Event):
    """RCPT was answered. `result`: ok, permfail or tempfail."""

    name: ClassVar[str] = "tx-rcpt"
    msgid: str
    result: str
    address: str


@dataclass(frozen=True, slots=True)
class TxEnvelope(Event):
    """An envelope was made: one for each destination that a recipient expands to."""

    name: ClassVar[str] = "tx-envelope"
    msgid: str
    evpid: str


@dataclass(frozen=True, slots=True)
class TxData(Event):
    """DATA was answered. `result`: ok, permfail or tempfail."""

    name: ClassVar[str] = "tx-data"
    msgid: str
    result: str


@dataclass(frozen=True, slots=True)
class TxCommit(Event):
    """The message was accepted; bytes."""

    name: ClassVar[str] = "tx-commit"
    msgid: str
    size: int


@dataclass(frozen=True, slots=True)
class TxRollback(Event):
    """The message was not accepted."""

    name: ClassVar[str] = "tx-rollback"
    msgid: str


@dataclass(frozen=True, slots=True)
class ProtocolClient(Event):
    """A line of the client."""

    name: ClassVar[str] = "protocol-client"
    line: str


@dataclass(frozen=True, slots=True)
class ProtocolServer(Event):
    """A line of the server; each line of a reply is an event."""

    name: ClassVar[str] = "protocol-server"
    line: str


@dataclass(frozen=True, slots=True)
class FilterReport(Event):
    """A filter reported. `kind`: builtin or proc; `filter`: its name."""

    name: ClassVar[str] = "filter-report"
    kind: str
    filter: str
    message: str


@dataclass(frozen=True, slots=True)
class FilterResponse(Event):
    """The filters decided. `phase` is `connected` for connect and `tls` for starttls."""

    name: ClassVar[str] = "filter-response"
    phase: str
    response: str
    param: str = ""


@dataclass(frozen=True, slots=True)
class Timeout(Event):
    """The session took too long."""

    name: ClassVar[str] = "timeout"


@dataclass(frozen=True, slots=True)
class Delivery(Event):
    """Pillarbox's own, of `mda`: an attempt of local delivery ended. `result`: ok, permfail or tempfail.

    `method`: maildir, mbox, lmtp and so on; `delay`: seconds since the message came; `text`: what the mailer said.
    """

    name: ClassVar[str] = "delivery"
    msgid: str
    evpid: str
    result: str
    method: str
    user: str
    delay: int
    text: str


@dataclass(frozen=True, slots=True)
class Other(Event):
    """An event that has no class here. `event`: its name; `fields`: everything behind the session, as written."""

    event: str
    fields: str


# (class, number of fields at least and at most); of the last one, a `|` is a part.
_SHAPES: dict[str, tuple[Callable[..., Event], int, int]] = {
    "link-connect": (LinkConnect, 4, 4),
    "link-greeting": (LinkGreeting, 1, 1),
    "link-identify": (LinkIdentify, 2, 2),
    "link-tls": (LinkTLS, 1, 1),
    "link-auth": (LinkAuth, 2, 2),
    "link-disconnect": (LinkDisconnect, 0, 0),
    "tx-reset": (TxReset, 0, 1),
    "tx-begin": (TxBegin, 1, 1),
    "tx-mail": (TxMail, 3, 3),
    "tx-rcpt": (TxRcpt, 3, 3),
    "tx-envelope": (TxEnvelope, 2, 2),
    "tx-data": (TxData, 2, 2),
    "tx-commit": (TxCommit, 2, 2),
    "tx-rollback": (TxRollback, 1, 1),
    "protocol-client": (ProtocolClient, 1, 1),
    "protocol-server": (ProtocolServer, 1, 1),
    "filter-report": (FilterReport, 3, 3),
    "filter-response": (FilterResponse, 2, 3),
    "timeout": (Timeout, 0, 0),
    "delivery": (Delivery, 7, 7),
}
NAMES = tuple(_SHAPES)
_NUMBERS = {"tx-commit": 1, "delivery": 5}  # the field that is one


def parse_event(  # noqa: PLR0917 - the fields of the line, in their order
    words: Dialect, time: str, subsystem: str, name: str, session: str, text: str | None
) -> Event:
    """`text`: the fields of the event; None: the line ended before them. Raises ProtocolError."""
    shape = _SHAPES.get(name)
    try:
        when = float(time)
    except ValueError:
        raise ProtocolError(f"no time: {time[:40]!r}") from None
    if shape is None:
        return Other(when, subsystem, session, name, text or "")
    made, least, most = shape
    if text is None or not most:
        fields: list[str] = []
    elif words.address_first and name in ("tx-mail", "tx-rcpt"):
        fields = _result_behind(text, 3)
    elif words.username_first and name == "link-auth":
        fields = _result_behind(text, 2)
    else:
        fields = text.split("|", most - 1)
    if len(fields) < least:
        raise ProtocolError(f"{name} with too few fields: {text!r:.80}")
    if name in _NUMBERS:
        return made(when, subsystem, session, *_with_number(fields, _NUMBERS[name]))
    return made(when, subsystem, session, *fields)


def _with_number(fields: Sequence[str], at: int) -> list[str | int]:
    try:
        return [*fields[:at], int(fields[at]), *fields[at + 1 :]]
    except ValueError:
        raise ProtocolError(f"no number: {fields[at][:40]!r}") from None


def _result_behind(text: str, count: int) -> list[str]:
    """Fields of older versions: the last is the result, and the address or name before it may hold a `|`."""
    front, _, result = text.rpartition("|")
    fields = front.split("|", count - 2)
    return [*fields[:-1], result, fields[-1]] if len(fields) == count - 1 else []
