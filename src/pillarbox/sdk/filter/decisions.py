"""What a filter may decide, each made and checked by a function: a wrong one fails where it is written."""

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_REPLY = 510  # RFC 5321 §4.5.3.1.5: a reply line has at most 512 bytes with its end

_REPLY = re.compile(r"[45][0-9]{2}(?: .*)?")
_BREAKS = re.compile(r"[\r\n\0]")


class Verb(StrEnum):
    """The decisions of smtpd-filters(7)."""

    PROCEED = "proceed"
    JUNK = "junk"
    REJECT = "reject"
    DISCONNECT = "disconnect"
    REWRITE = "rewrite"
    REPORT = "report"


REFUSALS = {Verb.REJECT, Verb.DISCONNECT}


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision, and the text that belongs to it. Raises ValueError where that is not one line."""

    verb: Verb
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "verb", Verb(self.verb))  # "reject" will do
        if self.verb not in (Verb.PROCEED, Verb.JUNK):
            _one_line(self.text)


_PROCEED = Decision(Verb.PROCEED)
_JUNK = Decision(Verb.JUNK)


def proceed() -> Decision:
    """Go on; handlers that come after this one are not asked."""
    return _PROCEED


def junk() -> Decision:
    """Go on, but mark the message, or all messages of the session, with `X-Spam: Yes`. Not possible at commit."""
    return _JUNK


def reject(reply: str) -> Decision:
    """Refuse the command with this reply, as `550 5.7.1 No`. Raises ValueError unless it begins with 4xx or 5xx."""
    return Decision(Verb.REJECT, _reply(reply))


def disconnect(reply: str) -> Decision:
    """Send this reply and hang up. Raises ValueError unless it begins with 4xx or 5xx."""
    return Decision(Verb.DISCONNECT, _reply(reply))


def rewrite(argument: str) -> Decision:
    """Go on with another argument of the command. A bare address gets its brackets; parameters stand behind them."""
    return Decision(Verb.REWRITE, argument)


def report(text: str) -> Decision:
    """Go on, and have the server report this to whoever listens (`filter-report`)."""
    return Decision(Verb.REPORT, text)


def _reply(text: str) -> str:
    if not _REPLY.fullmatch(_one_line(text)):
        raise ValueError(f"a reply begins with 4xx or 5xx and a blank: {text[:80]!r}")
    return text.encode(errors="surrogateescape")[:MAX_REPLY].decode(errors="ignore")


def _one_line(text: str) -> str:
    if not text or _BREAKS.search(text):
        raise ValueError(f"not one line of text: {text[:80]!r}")
    return text
