"""What `relay.Relays` keeps in memory: relays with their pending tasks, connectors, and the sessions it ordered."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pillarbox.conf.model import MtaLimits
from pillarbox.mail.envelope import Result
from pillarbox.mta.plan import Plan
from pillarbox.mta.route import Domain, Fault, Route, Source, Usage
from pillarbox.roles.delivery import Attempt, Outgoing, Task

# A transaction has at most this many recipients: every server takes 100 (RFC 5321 §4.5.3.1.8), many take no more.
RECIPIENTS_MAX = 100


class Timer:
    """One thing to do later, in the running loop. `due` in its owner's monotonic seconds, None where nothing waits."""

    __slots__ = ("_handle", "due")

    def __init__(self) -> None:
        self.due: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due: float, now: float, do: Callable[[], None]) -> None:
        """Do this at `due`, instead of what was waiting."""
        self.cancel()
        self.due = due
        self._handle = asyncio.get_running_loop().call_later(max(0.0, due - now), self._fire, do)

    def cancel(self) -> None:
        """Do not."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self.due = None

    def _fire(self, do: Callable[[], None]) -> None:
        self._handle = self.due = None
        do()


@dataclass(slots=True, eq=False)
class Connector(Usage):
    """A relay's use of one source address. `not_before`: it could not be used for reasons of our own until then."""

    source: Source = field(default_factory=Source)
    new: bool = True
    fault: Fault | None = None
    not_before: float = -math.inf
    timer: Timer = field(default_factory=Timer)


class Failure(NamedTuple):
    """Why nothing can be sent by a relay. `code`: as `Envelope.esc_code`."""

    result: Result
    text: str
    code: int = 0


@dataclass(slots=True, eq=False)
class Pending:
    """One transaction to come: recipients of one message, with one sender."""

    sender: str
    attempts: list[Attempt]

    def task(self) -> Task:
        """As a dispatcher gets it."""
        first = self.attempts[0]
        return Task(
            msgid=first.envelope.msgid,
            sender=self.sender,
            envelopes=tuple([a.envelope for a in self.attempts]),
            attempts=tuple([a.attempt for a in self.attempts]),
            size=first.size,
            body=first.body,
            eight_bit=first.eight_bit,
            smtputf8=first.smtputf8,
            require_tls=first.require_tls,
        )


@dataclass(slots=True, eq=False)
class RelayState(Usage):
    """A relay in use. `waits`: names of what it waits for. `held`: destinations told that there is no room."""

    plan: Plan = field(kw_only=True)
    domain: Domain = field(kw_only=True)
    limits: MtaLimits = field(kw_only=True)
    tasks: "OrderedDict[tuple[int, str], Pending]" = field(default_factory=OrderedDict)
    connectors: dict[str, Connector] = field(default_factory=dict)
    ready: int = 0  # sessions that take tasks
    idle: "list[Session]" = field(default_factory=list)
    leaving: int = 0  # sessions that were told to go
    held: dict[str, None] = field(default_factory=dict)
    destinations: dict[str, None] = field(default_factory=dict)
    waits: dict[str, None] = field(default_factory=dict)
    failed: Failure | None = None
    backup_preference: float = math.inf
    next_source: float = -math.inf
    source_loop: int = 0
    timer: Timer = field(default_factory=Timer)
    _closed_tasks: int = 0

    @property
    def busy(self) -> bool:
        """Does anything still need it?"""
        return bool(self.tasks or self.connections or self.waits)

    def add(self, attempt: Attempt, sender: str) -> bool:
        """Take an attempt in; True where that made a new task."""
        key = (attempt.envelope.msgid, sender)
        pending = self.tasks.get(key)
        if pending is not None and len(pending.attempts) < RECIPIENTS_MAX:
            pending.attempts.append(attempt)
            return False
        if pending is not None:  # full: it goes as it is, under a key that nothing is added to
            self.tasks[self._closed_key(pending)] = self.tasks.pop(key)
        self.tasks[key] = Pending(sender, [attempt])
        return True

    def put_back(self, pending: Pending) -> None:
        """A task that nobody began goes first again."""
        key = self._closed_key(pending)
        self.tasks[key] = pending
        self.tasks.move_to_end(key, last=False)

    def next(self) -> Pending:
        """Take the oldest task out."""
        return self.tasks.popitem(last=False)[1]

    def _closed_key(self, pending: Pending) -> tuple[int, str]:
        """A key of its own, so that nothing more is added (no sender has a NUL)."""
        self._closed_tasks += 1
        return pending.attempts[0].envelope.msgid, f"\0{self._closed_tasks}"


@dataclass(slots=True, eq=False)
class Session:
    """A session that a dispatcher holds for us."""

    id: int
    relay: RelayState
    connector: Connector
    route: Route
    dispatcher: Outgoing
    ready: bool = False
    leaving: bool = False
    task: Pending | None = None
    waiter: "asyncio.Future[Pending | None] | None" = None
