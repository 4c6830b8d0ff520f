"""What a filter decided about a session, whether it was well-formed, and what was decided then. Does no I/O."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pillarbox.eventlog.story import Ask
from pillarbox.roles.filters import Decision, Phase, Result

SHOWN = 1 << 16  # bytes of a filtered message that are kept to be shown
REPORTS = 1000  # of the filter's own, of a session

_REPLY = re.compile(r"[45][0-9][0-9](?: .*)?", re.DOTALL)
_PATH = re.compile(r"<[^<>]*>(?: .*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer. `answer`: "reject|550 no", "" where none came that counts; `seconds`: how long it took."""

    ask: Ask
    answer: str
    seconds: float

    @property
    def differs(self) -> bool:
        """Was something else decided at the time, by whatever filters there were?"""
        return self.ask.then is not None and self.ask.then != self.answer


@dataclass(slots=True)
class Filtered:
    """What became of a message. `told`: as the filter gets it, until it is `complete`; `output`: the beginning."""

    told: bytes
    expected: int = field(init=False)  # bytes that the filter was told
    size: int = 0
    same: bool = True
    complete: bool = False
    output: bytes = b""

    def __post_init__(self) -> None:
        self.expected = len(self.told)

    def add(self, data: bytes) -> None:
        """Some more of what the filter makes of it."""
        self.same = self.same and self.told.startswith(data, self.size)
        self.size += len(data)
        self.output += data[: SHOWN - len(self.output)]

    def finish(self) -> None:
        """All of it came back."""
        self.complete, self.told = True, b""

    @property
    def changed(self) -> bool:
        """Is it another message now?"""
        return not self.same or self.size != self.expected


@dataclass(slots=True)
class Verdict:
    """All of it. `ended`: the filter ended the session there."""

    session: int
    time: float
    peer: str = ""
    decided: list[Decided] = field(default_factory=list)
    messages: list[Filtered] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    more_reports: int = 0  # than are kept
    ended: bool = False

    def report(self, text: str) -> None:
        """The filter says something."""
        if len(self.reports) < REPORTS:
            self.reports.append(text)
        else:
            self.more_reports += 1

    @property
    def differences(self) -> Iterator[Decided]:
        """Where something else was decided at the time."""
        return (one for one in self.decided if one.differs)


def fault_of(phase: Phase, result: Result) -> str:
    """Why an answer that keeps to the protocol cannot be carried out; "" where it can."""
    if result.decision in (Decision.REJECT, Decision.DISCONNECT) and not _REPLY.fullmatch(result.param):
        return f"{result.decision} at {phase} wants a reply that begins with 4xx or 5xx, not “{result.param}”"
    if result.decision is Decision.REWRITE:
        if phase in (Phase.MAIL_FROM, Phase.RCPT_TO) and not _PATH.fullmatch(result.param):
            return f"rewrite at {phase} wants <address>, and parameters behind it, not “{result.param}”"
        if not result.param:
            return f"rewrite at {phase} to nothing"
    return ""


def ends_session(phase: Phase, answer: str) -> str | None:
    """The reply that the client is sent away with, None where the session goes on."""
    decision, _, reply = answer.partition("|")
    if decision == Decision.DISCONNECT:
        return reply
    if decision == Decision.REJECT and (phase is Phase.CONNECT or reply.startswith("421")):
        return reply
    return None
