"""The lines of smtpd-filters(7), protocol 0.4 to 0.7: what the server writes parsed, answers written. Does no I/O.

`report|VERSION|TIME|SUBSYSTEM|EVENT|SESSION|…` tells of an event, `filter|VERSION|TIME|SUBSYSTEM|PHASE|SESSION|TOKEN|…`
asks for an answer. Only the last field of a line may hold a `|`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import islice

from pillarbox.sdk.filter.decisions import Decision, Verb
from pillarbox.sdk.wire import ProtocolError

VERSION = "0.7"
SMTP_IN, SMTP_OUT, MDA = "smtp-in", "smtp-out", "mda"  # subsystems; `mda` is Pillarbox's own

_LINE_END = re.compile("\r?\n")


class Phase(StrEnum):
    """What a filter can be asked about."""

    CONNECT = "connect"
    HELO = "helo"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL_FROM = "mail-from"
    RCPT_TO = "rcpt-to"
    DATA = "data"
    DATA_LINE = "data-line"
    COMMIT = "commit"
    RSET = "rset"
    QUIT = "quit"
    NOOP = "noop"
    HELP = "help"
    WIZ = "wiz"


# What else a rewrite would do: at commit the reference hangs the session, elsewhere the command becomes a syntax error.
REWRITABLE = {Phase.HELO, Phase.EHLO, Phase.AUTH, Phase.MAIL_FROM, Phase.RCPT_TO, Phase.NOOP, Phase.HELP, Phase.WIZ}
BARE = {Phase.DATA, Phase.COMMIT, Phase.RSET, Phase.QUIT}  # no argument: the handler gets the session alone
ADDRESSES = {Phase.MAIL_FROM, Phase.RCPT_TO}
# Here the reference takes the text of a report for the new argument of the command.
ARGUMENTS = {Phase.HELO, Phase.EHLO, Phase.AUTH, Phase.MAIL_FROM, Phase.RCPT_TO}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a version of the protocol orders its fields."""

    version: str
    token_first: bool = False  # in results: the token, then the session
    address_first: bool = False  # in tx-mail and tx-rcpt: the address, then the result
    username_first: bool = False  # in link-auth: the user's name, then the result
    reports: bool = True  # is "report" a decision? OpenSMTPD 6.8 ends when it gets one


@lru_cache(maxsize=16)
def dialect(version: str) -> Dialect:
    """The order of a version; one newer than we know is taken as the newest of its kind. Raises ProtocolError."""
    major, _, minor = version.partition(".")
    if major != "0" or not (minor.isascii() and minor.isdigit()) or int(minor) < 4:
        raise ProtocolError(f"protocol {version[:20]!r} is not spoken here, only 0.4 to {VERSION}")
    number = int(minor)
    return Dialect(version, number < 5, number < 6, number < 7, number >= 7)


@dataclass(frozen=True, slots=True)
class Question:
    """A request of any phase but data-line. `param` as it came: the address without brackets, and so on."""

    dialect: Dialect
    phase: str
    session: str
    token: str
    param: str


def answer(question: Question, decision: Decision) -> str:
    """The line that answers. Raises ValueError where the phase does not allow the decision."""
    first, second = question.session, question.token
    if question.dialect.token_first:
        first, second = second, first
    start = f"filter-result|{first}|{second}|{decision.verb}"
    if decision.verb is Verb.PROCEED:
        return start
    if decision.verb is Verb.JUNK:
        if question.phase == Phase.COMMIT:
            raise ValueError("it is too late for junk() at commit: decide at data, or add a header")
        return start
    text = decision.text
    if decision.verb is Verb.REWRITE:
        if question.phase not in REWRITABLE:
            raise ValueError(f"nothing can be rewritten at {question.phase}")
        if question.phase in ADDRESSES and not text.startswith("<"):
            text = f"<{text}>"
    return f"{start}|{text}"


def data_prefix(words: Dialect, session: str, token: str) -> str:
    """What each line of a message begins with on its way back."""
    return f"filter-dataline|{token}|{session}|" if words.token_first else f"filter-dataline|{session}|{token}|"


def parse_run(lines: list[str], at: int, start: int, head: str) -> tuple[list[str], bool]:
    """The lines of one message from a place on, dots unstuffed, and whether they end with the message.

    `head`: what is before the text in the first of them. The time in it differs from line to line; what is behind that,
    from `start` on, does not, nor does the length of the time for the next 250 years.
    """
    mark, width = head[start:], len(head)
    found: list[str] = []
    for line in islice(lines, at, None):
        if line[start:width] != mark:
            break
        text = line[width:]
        if text[:1] != ".":
            found.append(text)
        elif text != ".":
            found.append(text[1:])
        else:
            return found, True
    return found, False


def data_lines(prefix: str, lines: list[str]) -> str:
    """Some lines of a message on their way back, dots stuffed. One that holds line breaks becomes several."""
    joint = f"\n{prefix}"
    text = prefix + joint.join(lines)
    if f"{prefix}." not in text and text.count("\n") < len(lines) and "\0" not in text:
        return text
    parts = [part for line in lines for part in _LINE_END.split(line.replace("\0", ""))]
    return prefix + joint.join(f".{part}" if part.startswith(".") else part for part in parts)


def report_line(now: float, subsystem: str, session: str, text: str) -> str:
    """A report of our own about a session."""
    return f"report|{now:.6f}|{subsystem}|{session}|{text}"


def register(phases: Iterable[str], events: Iterable[tuple[str, str]]) -> list[str]:
    """The lines that end the handshake. `events`: (subsystem, event)."""
    return [
        *(f"register|report|{subsystem}|{event}" for subsystem, event in events),
        *(f"register|filter|{SMTP_IN}|{phase}" for phase in phases),
        "register|ready",
    ]
