"""Pending bounces become DSNs: a message at a time, when nothing has been added to it for a second.

The bouncer writes the DSN; its commit and the removal of the rows that it answers are one transaction. What a crash
or a TempFail interrupts is begun again from the rows.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from pillarbox.errors import PermFail, PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.queue.store import Store
from pillarbox.roles.bounce import BounceKind, Bouncer, PendingBounce
from pillarbox.roles.queue import NewMessage

QUIET = 1.0  # seconds
PARALLEL = 2  # COMPAT: the reference's number of bounce sessions
DEADLINE = 120.0  # seconds for one DSN
AGAIN = (5.0, 30.0, 120.0, 600.0)  # seconds after the n-th failure
PER_DSN = 100  # recipients
REMEMBERED = 10_000  # messages; more are found on disk again

Numbered = tuple[int, PendingBounce]


class Intake(Protocol):
    """What of the queue is used to submit a DSN."""

    async def reserve(self, count: int) -> list[int]:
        """As `Queue.reserve`."""
        ...

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """As `Queue.append`."""
        ...

    async def discard(self, msgid: int) -> None:
        """As `Queue.discard`."""
        ...

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        """As `Queue.read`."""
        ...

    def accept(self, message: NewMessage, answers_msgid: int, answers: tuple[int, ...]) -> Awaitable[None]:
        """As `Queue.commit`, removing the answered rows in the same transaction."""
        ...


class Bounces:
    """Looks after all pending bounces of the store. Times: `monotonic()` seconds."""

    def __init__(
        self, *, store: Store, intake: Intake, bouncer: Bouncer, log: Log, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._intake = intake
        self._bouncer = bouncer
        self._log = log
        self._monotonic = monotonic
        self._due: dict[int, float] = {}  # msgid → when
        self._failures: dict[int, int] = {}
        self._more = True  # there may be others on disk
        self._alarm = asyncio.Event()

    def add(self, msgid: int) -> None:
        """A pending bounce of this message was stored."""
        if len(self._due) >= REMEMBERED and msgid not in self._due:
            self._more = True
            return
        self._due[msgid] = self._monotonic() + QUIET
        self._alarm.set()

    def wake(self) -> None:
        """Look at the clock now."""
        self._alarm.set()

    async def run(self) -> None:
        """Write DSNs until cancelled."""
        while True:
            self._alarm.clear()
            await self._find_more()
            now = self._monotonic()
            ready = [msgid for msgid, due in self._due.items() if due <= now][:PARALLEL]
            if ready:
                async with asyncio.TaskGroup() as group:
                    for msgid in ready:
                        group.create_task(self._bounce(msgid))
                continue
            wait = min(self._due.values(), default=now + 60.0) - now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, wait)):
                    await self._alarm.wait()

    async def _find_more(self) -> None:
        if self._more and len(self._due) <= REMEMBERED // 2:
            try:
                found = await self._store.bouncing(REMEMBERED)
            except TempFail as error:
                self._log.warn(f"queue: bounces: {error}")
                return
            self._more = len(found) == REMEMBERED
            for msgid in found:
                self._due.setdefault(msgid, self._monotonic())

    async def _bounce(self, msgid: int) -> None:
        """The DSNs of one message."""
        noted = self._due[msgid]
        try:
            async with asyncio.timeout(DEADLINE):
                finished = await self._write_all(msgid)
        except (TempFail, TimeoutError) as error:
            self._put_off(msgid)
            self._log.warn(f"queue: bounce of {msgid:08x}: {error or 'no answer in time'}")
            return
        except Exception as error:  # noqa: BLE001 - one message that nobody foresaw must not end the queue for all
            self._put_off(msgid)
            self._log.exception(f"queue: bounce of {msgid:08x}", error)
            return
        self._failures.pop(msgid, None)
        if self._due.get(msgid) == noted:
            if finished:
                del self._due[msgid]
            else:
                self._due[msgid] = self._monotonic()

    def _put_off(self, msgid: int) -> None:
        failures = self._failures[msgid] = self._failures.get(msgid, 0) + 1
        self._due[msgid] = self._monotonic() + AGAIN[min(failures, len(AGAIN)) - 1]

    async def _write_all(self, msgid: int) -> bool:
        rows = await self._store.bounces(msgid, PER_DSN)
        groups: dict[tuple[BounceKind, int, str], list[Numbered]] = {}
        for number, bounce in rows:
            groups.setdefault((bounce.kind, bounce.delay, bounce.envelope.sender), []).append((number, bounce))
        for group in groups.values():
            await self._write(msgid, group)
        return len(rows) < PER_DSN

    async def _write(self, msgid: int, rows: list[Numbered]) -> None:
        rows = sorted(rows, key=lambda row: row[1].evpid)
        ids = tuple(number for number, _ in rows)
        pending = [bounce for _, bounce in rows]
        (new,) = await self._intake.reserve(1)
        offset = 0

        async def read_body(start: int, count: int) -> bytes:
            return await self._intake.read(msgid, start, count)

        async def write_body(chunk: bytes) -> None:
            nonlocal offset
            await self._intake.append(new, offset, chunk)
            offset += len(chunk)

        committed = False
        try:
            message = await self._bouncer.make(pending[0].kind, pending, read_body, msgid=new, write_body=write_body)
            if message is None:
                await self._store.drop_bounces(msgid, ids)
            else:
                await self._intake.accept(message, msgid, ids)
                committed = True
        except TempFail:
            raise
        except PermFail as error:
            self._log.warn(f"queue: no bounce of {msgid:08x}: {error}")
            await self._store.drop_bounces(msgid, ids)
        except PillarboxError as error:
            raise TempFail(str(error)) from error
        finally:
            if offset and not committed:
                await self._intake.discard(new)
