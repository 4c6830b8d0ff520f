"""Local deliveries as the queue role sees them: who they are for, and how many run at once.

Implements `roles.delivery.Deliverer`. Attempts wait here by user until there is room for another child of the user
(`mda limit max-session-per-user`) and of all (`max-session`), then go to the agent in the parent, several at once
where one child can do them. The outcomes come to `Queue.settle`, which tells them to `settled`.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from pillarbox.conf.model import Config, Local
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Outcome, Result
from pillarbox.mda.jobs import BATCH, BATCH_BYTES, is_batched, log_delivery, method_of
from pillarbox.mda.lmtp import addresses_of, split_destination
from pillarbox.mda.message import Failure
from pillarbox.roles.delivery import Agent, Attempt, LocalDelivery
from pillarbox.roles.lookup import Lookup, User

_LOOKUP_WAIT = 30.0
_ORDER_WAIT = 30.0
_ORDER_PAUSE = 0.1  # seconds before an order is repeated, doubled up to
_ORDER_PAUSE_MAX = 5.0
_BYTES_MAX = 16 * 1024 * 1024  # of bodies held, waiting or being delivered
_ESC_OTHER_ADDRESS = 10  # RFC 3463 X.1.0
_ESC_MAILBOX_MOVED = 16  # RFC 3463 X.1.6
_ESC_OTHER_SYSTEM = 30  # RFC 3463 X.3.0
_Key = tuple[int, int]


@dataclass(slots=True)
class _Recipient:
    """A user with deliveries: `running` counts children, `writing` those that write files."""

    table: str
    name: str
    waiting: deque[tuple[Attempt, Local]] = field(default_factory=deque)
    running: int = 0
    writing: int = 0
    queued: bool = False


@dataclass(slots=True)
class _Running:
    """What one child was given and has not reported yet."""

    recipient: _Recipient
    writes: bool
    left: set[_Key]
    generation: int


class Deliveries:
    """`settle`: as `Queue.settle`; `ready(destination)`: there is room again. `run()` has to be running."""

    def __init__(
        self,
        *,
        config: Config,
        lookup: Lookup,
        agent: Agent,
        settle: Callable[[list[Outcome]], Awaitable[None]],
        ready: Callable[[str], None],
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._agent = agent
        self._settle = settle
        self._ready = ready
        self._log = log
        self._now = now
        self._held_max = _held_max(config)
        self._recipients: dict[tuple[str, str], _Recipient] = {}
        self._runnable: deque[_Recipient] = deque()
        self._children = 0
        self._held: dict[str, int] = {}  # destination → attempts
        self._full: set[str] = set()
        self._bytes = 0
        self._seen = False
        self._attempts: dict[_Key, tuple[Attempt, _Running | None]] = {}
        self._work: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()

    def configure(self, config: Config) -> None:
        """Use this configuration for all that no child was given yet."""
        self._config = config
        self._held_max = _held_max(config)
        waiting: list[Attempt] = []
        for key, recipient in list(self._recipients.items()):
            waiting += [attempt for attempt, _ in recipient.waiting]
            recipient.waiting.clear()
            recipient.queued = False
            if not recipient.running:
                del self._recipients[key]
        self._runnable.clear()
        for attempt in waiting:
            self._choose(attempt)
        self._start()
        full, self._full = self._full, set()
        for destination in full:
            self._ready(destination)

    def generations(self) -> set[int]:
        """The configurations that orders under way go by."""
        return {running.generation for _, running in self._attempts.values() if running is not None}

    def room(self, destination: str) -> int:
        """How many more attempts are taken for it now."""
        free = self._held_max - self._held.get(destination, 0) if self._bytes < _BYTES_MAX else 0
        if free <= 0:
            self._full.add(destination)
            return 0
        return free

    def deliver(self, attempts: list[Attempt]) -> None:
        """Take attempts; each ends in one outcome."""
        self._seen = True
        for attempt in attempts:
            self._take(attempt)
        self._start()

    def settled(self, outcomes: list[Outcome]) -> None:
        """Told by the queue of every outcome that it made durable; those of others are none of our business."""
        for outcome in outcomes:
            attempt, running = self._attempts.pop((outcome.evpid, outcome.attempt), (None, None))
            if attempt is None:
                continue
            self._release(attempt)
            if running is not None:
                running.left.discard((outcome.evpid, outcome.attempt))
                if not running.left:
                    self._child_ended(running)
        self._start()

    def stats(self) -> dict[str, int]:
        """Gauges under the reference's names; nothing before the first delivery."""
        if not self._seen:
            return {}
        running = sum(running is not None for _, running in self._attempts.values())
        return {
            "mda.envelope": len(self._attempts),
            "mda.pending": len(self._attempts) - running,
            "mda.running": self._children,
            "mda.user": len(self._recipients),
        }

    async def run(self) -> None:
        """Look users up and give orders, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                work = await self._work.get()
                group.create_task(_awaited(work))

    def _take(self, attempt: Attempt) -> None:
        self._attempts[attempt.envelope.evpid, attempt.attempt] = attempt, None
        self._held[attempt.destination] = self._held.get(attempt.destination, 0) + 1
        self._bytes += len(attempt.body)
        self._choose(attempt)

    def _choose(self, attempt: Attempt) -> None:
        """Whose it is, and what is done with it, as the configuration says now."""
        envelope = attempt.envelope
        action = self._config.actions.get(envelope.dispatcher)
        if not isinstance(action, Local):
            # Gone from the configuration; it may come back before the message expires.
            reason = f"Unknown action: {envelope.dispatcher}"
            self._fail([attempt], Result.TEMPFAIL, reason, _ESC_OTHER_SYSTEM)
            return
        name = envelope.mda_user or envelope.dest_user
        key = action.userbase, name
        recipient = self._recipients.get(key)
        if recipient is None:
            recipient = self._recipients[key] = _Recipient(action.userbase, name)
        recipient.waiting.append((attempt, action))
        self._queue_up(recipient)

    def _release(self, attempt: Attempt) -> None:
        self._bytes -= len(attempt.body)
        destination = attempt.destination
        self._held[destination] -= 1
        if not self._held[destination]:
            del self._held[destination]
        if self._full and self._bytes < _BYTES_MAX:
            woken = {d for d in self._full if self._held.get(d, 0) <= self._held_max - BATCH // 2}
            self._full -= woken
            for destination in woken:
                self._ready(destination)

    def _child_ended(self, running: _Running) -> None:
        recipient = running.recipient
        self._children -= 1
        recipient.running -= 1
        recipient.writing -= running.writes
        if recipient.waiting:
            self._queue_up(recipient)
        elif not recipient.running:
            self._recipients.pop((recipient.table, recipient.name), None)

    def _queue_up(self, recipient: _Recipient) -> None:
        if not recipient.queued:
            recipient.queued = True
            self._runnable.append(recipient)

    def _start(self) -> None:
        """Start children while there is room, a child a user in turn."""
        while self._runnable and self._children < self._config.mda.max_session:
            recipient = self._runnable.popleft()
            recipient.queued = False
            if not recipient.waiting or not self._may_start(recipient):
                continue
            batch, writes = self._next_batch(recipient)
            keys = {(a.envelope.evpid, a.attempt) for a, _ in batch}
            running = _Running(recipient, writes, keys, self._config.generation)
            for attempt, _ in batch:
                self._attempts[attempt.envelope.evpid, attempt.attempt] = attempt, running
            self._children += 1
            recipient.running += 1
            recipient.writing += writes
            self._work.put_nowait(partial(self._order, recipient, batch, running.generation))
            if recipient.waiting:
                self._queue_up(recipient)

    def _may_start(self, recipient: _Recipient) -> bool:
        """Room for another child of this user? One that writes files is joined by a second only for a full batch:
        what arrives meanwhile shares the next one's syncs, and two would wait for the same disk or lock.
        """
        if recipient.running >= self._config.mda.max_session_per_user:
            return False
        attempt, action = recipient.waiting[0]
        if not self._writes(attempt, action) or not recipient.writing:
            return True
        return len(recipient.waiting) >= BATCH and self._method(attempt, action) == "maildir"

    def _next_batch(self, recipient: _Recipient) -> tuple[list[tuple[Attempt, Local]], bool]:
        """What the next child does: one message, or several small ones into files."""
        batch = [recipient.waiting.popleft()]
        writes = self._writes(*batch[0])
        size = len(batch[0][0].body)
        while writes and recipient.waiting and len(batch) < BATCH:
            attempt, action = recipient.waiting[0]
            size += len(attempt.body)
            if size > BATCH_BYTES or not self._writes(attempt, action) or action.user != batch[0][1].user:
                break
            batch.append(recipient.waiting.popleft())
        return batch, writes

    def _method(self, attempt: Attempt, action: Local) -> str:
        return method_of(action, attempt.envelope.mda_exec, self._config.mda_wrappers.get(action.wrapper, ""))

    def _writes(self, attempt: Attempt, action: Local) -> bool:
        streamed = attempt.size > 0 and not attempt.body
        return is_batched(self._method(attempt, action)) and not streamed

    async def _order(self, recipient: _Recipient, batch: list[tuple[Attempt, Local]], generation: int) -> None:
        """Look the user up and hand the batch to the agent; what prevents it becomes the outcome."""
        attempts = [attempt for attempt, _ in batch]
        try:
            async with asyncio.timeout(_LOOKUP_WAIT):
                user = await self._lookup.user(generation, recipient.table, recipient.name)
        except (TempFail, PermFail, TimeoutError):
            self._fail(attempts, Result.TEMPFAIL, "Temporary failure in user lookup", _ESC_OTHER_ADDRESS)
            return
        if user is None:
            self._fail(attempts, Result.PERMFAIL, "Permanent failure in user lookup", _ESC_MAILBOX_MOVED)
            return
        await self._give([_local(attempt, generation, user, await self._resolve(action)) for attempt, action in batch])

    async def _give(self, orders: list[LocalDelivery]) -> None:
        """Give the agent its orders, again and again until it takes them.

        One that got no answer may have been heard: to call it a failure would be to deliver twice. The agent knows by
        its attempt what it was told before, and what it has done is not an attempt of ours any more.
        """
        pause = _ORDER_PAUSE
        while orders := [o for o in orders if (o.envelope.evpid, o.attempt) in self._attempts]:
            try:
                async with asyncio.timeout(_ORDER_WAIT):
                    await self._agent.deliver(orders)
            except (TempFail, PermFail, TimeoutError) as error:
                self._log.debug(f"mda: {len(orders)} orders not taken, repeating in {pause:g}s: {error}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _ORDER_PAUSE_MAX)
            else:
                return

    async def _resolve(self, action: Local) -> str:
        """The addresses of an LMTP server, comma-separated; "" where none are needed or none were found."""
        if action.method != "lmtp" or action.target.startswith("/") or "%" in action.target:
            return ""
        try:
            host, _ = split_destination(action.target)
            if addresses_of(host):
                return ""
            async with asyncio.timeout(_LOOKUP_WAIT):
                found = await self._lookup.exchangers(host, mx=False, family="")
        except (Failure, TempFail, PermFail, TimeoutError):
            return ""  # the child says that there is no address; it is temporary
        return ",".join(host.address for host in found)

    def _fail(self, attempts: list[Attempt], result: Result, reason: str, code: int) -> None:
        session = secrets.randbits(64)
        outcomes = []
        for attempt in attempts:
            envelope = attempt.envelope
            outcomes.append(
                Outcome(
                    evpid=envelope.evpid,
                    attempt=attempt.attempt,
                    result=result,
                    errorline=reason,
                    esc_class=4 if result is Result.TEMPFAIL else 5,
                    esc_code=code,
                    session=session,
                )
            )
            name = envelope.mda_user or envelope.dest_user
            log_delivery(self._log, session, envelope, user=name, result=result, stat=reason, now=self._now())
        self._work.put_nowait(lambda: self._report(outcomes))

    async def _report(self, outcomes: list[Outcome]) -> None:
        """Settle what never reached the agent, again and again until it is on disk."""
        pause = 0.1
        while True:
            try:
                await self._settle(outcomes)
            except TempFail:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
            else:
                return


def _held_max(config: Config) -> int:
    """Attempts of one destination that are taken at a time."""
    return config.mda.task_hiwat + 2 * BATCH


def _local(attempt: Attempt, generation: int, user: User, addresses: str) -> LocalDelivery:
    return LocalDelivery(
        envelope=attempt.envelope,
        attempt=attempt.attempt,
        generation=generation,
        user=user.name,
        uid=user.uid,
        gid=user.gid,
        home=user.home,
        size=attempt.size,
        body=attempt.body,
        resolved_lmtp=addresses,
    )


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()
