"""Filters: what sessions tell the processors of smtpd-filters(7), and what those answer.

`Filters` is implemented by the filter role, which alone talks to processors and knows how their lines are written;
`Filtered` by each dispatcher. Between them a session is its id, and a processor the number that the filter role gave
it; `life` counts the times it was started, so that nothing that was meant for one life reaches another.
"""

from enum import StrEnum
from typing import Protocol

import msgspec


class Phase(StrEnum):
    """What a filter may be asked about."""

    CONNECT = "connect"
    HELO = "helo"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL_FROM = "mail-from"
    RCPT_TO = "rcpt-to"
    DATA = "data"
    DATA_LINE = "data-line"
    RSET = "rset"
    QUIT = "quit"
    NOOP = "noop"
    HELP = "help"
    WIZ = "wiz"
    COMMIT = "commit"


class Decision(StrEnum):
    """What a filter may say to that."""

    PROCEED = "proceed"
    JUNK = "junk"
    REJECT = "reject"
    DISCONNECT = "disconnect"
    REWRITE = "rewrite"
    REPORT = "report"


SMTP_IN, SMTP_OUT, MDA = "smtp-in", "smtp-out", "mda"  # subsystems; `mda` is ours

EVENTS = (
    "link-connect",
    "link-greeting",
    "link-identify",
    "link-tls",
    "link-auth",
    "link-disconnect",
    "tx-reset",
    "tx-begin",
    "tx-mail",
    "tx-rcpt",
    "tx-envelope",
    "tx-data",
    "tx-commit",
    "tx-rollback",
    "protocol-client",
    "protocol-server",
    "filter-report",
    "filter-response",
    "timeout",
)
MDA_EVENTS = ("delivery",)

# Seconds from the end of a message until all that filters make of it has to be there, as long as some of it keeps
# coming. RFC 5321 §4.5.3.2.6: a client waits ten minutes; what would be accepted later would come once more. Within the
# last of them filters are asked about it at commit, and it is stored.
WHOLE_MESSAGE = 540.0


class Report(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """An event. `time`: epoch seconds; `text`: its fields as they are written, joined by "|", in the order of 0.7."""

    subsystem: str
    event: str
    session: int
    time: float
    text: str


class Question(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """A request of any phase but data-line. `param`: its fields as they are written."""

    phase: str
    session: int
    token: int
    time: float
    param: str


class Lines(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """Some of a message: whole lines, ended by CRLF, dots not stuffed; `last` with the end of it."""

    session: int
    token: int
    time: float
    data: bytes
    last: bool = False


Told = Report | Question | Lines


class Result(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """The answer to a question."""

    session: int
    token: int
    decision: Decision
    param: str = ""


class Output(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """Some of the message that a filter makes of the lines it got: as `Lines`."""

    session: int
    token: int
    data: bytes
    last: bool = False


class Said(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A report that a filter makes of its own about a session (`report|…`): it becomes a `filter-report`."""

    session: int
    time: float
    text: str


Answer = Result | Output | Said


class Processor(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A processor as dispatchers see it. `life` 0: it does not run.

    `phases` and `events` ("smtp-in tx-mail") are what it registered, in this life or the last; `known`: did it ever?
    `failed`: it never has, and has ended, so that nobody waits for it. `why`: why it does not run, for the log.
    """

    number: int
    name: str
    life: int = 0
    known: bool = False
    failed: bool = False
    phases: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    fail_open: bool = False
    timeout: float = 60.0  # seconds for an answer
    why: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A line of `smtpctl show filters`."""

    name: str
    command: str
    state: str  # running, starting, waiting (to be started again), down
    pid: int = 0
    since: float = 0.0  # epoch seconds
    restarts: int = 0
    waiting: int = 0  # questions that are not answered
    dropped: int = 0  # events
    phases: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    why: str = ""


class Filters(Protocol):
    """Called by dispatchers, queue (`mda` events) and control: each by an object of its own, which knows who it is."""

    async def join(self, generation: int) -> list[Processor]:
        """The processors of a generation's configuration; they are started if they were not.

        From now on who joined hears of their changes (`Filtered.changed`).
        """
        ...

    async def tell(self, number: int, life: int, items: list[Told]) -> None:
        """Pass on to a processor, in this order. Returns when there is room for more; TempFail: that life is over.

        An event that the processor has not registered is dropped here at the latest. A session uses a token again,
        for the next question or message, only when all of the last answer to it has come; a session is that of the
        first who told something of it, and TempFail to any other. Tell of `link-disconnect`
        whoever was asked or told something of a session, even if it has not registered it: from then on what the
        processor says about that session is ignored.
        """
        ...

    async def show(self) -> list[Status]:
        """`smtpctl show filters`."""
        ...

    async def restart(self, name: str) -> bool:
        """`smtpctl restart filter NAME`, a filter or its processor: end it and start it again, one that is down too.

        False: there is none.
        """
        ...

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...


class Filtered(Protocol):
    """Called by the filter role."""

    async def answered(self, number: int, life: int, answers: list[Answer]) -> None:
        """What a processor answered, for sessions of this dispatcher. Returns when there is room for more."""
        ...

    async def changed(self, processors: list[Processor]) -> None:
        """These were started, registered, or ended: what was asked of an earlier life is not answered any more."""
        ...
