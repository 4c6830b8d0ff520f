"""What the scheduler holds in memory: envelopes waiting or under way, and the destinations they belong to."""

import asyncio
from collections import deque

from pillarbox.mail.envelope import Envelope
from pillarbox.queue.policy import Facts
from pillarbox.roles.delivery import Attempt

START = (-1, 0)  # before every (next_try, evpid)
ASIDE = -1  # `attempt` of what is neither waiting nor under way: it expires, or its deliverer just died
_LAST = 2**63 - 1  # behind every evpid


class Flight:
    """One envelope in memory. `attempt` 0: waiting for its turn; or ASIDE. `started`: epoch seconds."""

    __slots__ = ("attempt", "body", "destination", "envelope", "facts", "settling", "started", "weight")

    def __init__(self, envelope: Envelope, destination: "Destination", facts: Facts, body: bytes) -> None:
        self.envelope = envelope
        self.destination = destination
        self.facts = facts
        self.body = body
        self.weight = len(body)
        self.attempt = 0
        self.started = 0
        self.settling: asyncio.Future[list[bool]] | None = None  # its outcome is being stored

    def start(self, attempt: int, now: int) -> Attempt:
        """Hand it over: from here on the deliverer has the body."""
        body, self.body = self.body, b""
        self.attempt, self.started = attempt, now
        self.destination.running += 1
        return Attempt(
            envelope=self.envelope,
            attempt=attempt,
            destination=self.destination.key,
            size=self.facts.size,
            body=body,
            eight_bit=self.facts.eight_bit,
            smtputf8=self.facts.smtputf8,
            require_tls=self.facts.require_tls,
        )


class Destination:
    """A destination with something in memory, or due.

    `due`: when there is something on disk for it that is not in memory (epoch; None: nothing, or not known while
    `unknown`). `cursor`: everything on disk up to it is in memory or done with.
    """

    __slots__ = (
        "cursor",
        "due",
        "fetching",
        "idle_since",
        "key",
        "kind",
        "listed",
        "parked",
        "resting",
        "running",
        "skip",
        "unknown",
        "version",
        "waiting",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.kind = key[:3]
        self.waiting: deque[Flight] = deque()
        self.running = 0
        self.due: int | None = None
        self.unknown = True
        self.cursor = START
        self.version = 0  # changes when the cursor is set back
        self.fetching = False
        self.skip: set[int] | None = None  # settled or removed while a page was being read: not to be believed
        self.listed = False  # in the ring
        self.parked = False  # its deliverer has no room
        self.resting = False  # about to be forgotten
        self.idle_since = 0.0

    def note(self, when: int) -> None:
        """Something on disk is due at `when`."""
        if when <= self.cursor[0]:
            self.cursor = (when - 1, _LAST)
            self.version += 1
        if self.due is None or when < self.due:
            self.due = when

    def rewind(self, when: int) -> None:
        """Anything on disk may have changed: read it again from the start, at `when`."""
        self.cursor = START
        self.version += 1
        if self.due is None or when < self.due:
            self.due = when

    @property
    def idle(self) -> bool:
        """Nothing of it is in memory."""
        return not (self.waiting or self.running or self.fetching)
