"""Outcomes on their way to the queue: kept until it acknowledged them, repeated until it does.

Whoever delivers hands outcomes over and goes on. What comes in while a report is under way goes with the next one, so
the more there is to do, the larger the batches.
"""

import asyncio
from collections.abc import Awaitable, Callable

from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.mail.envelope import Outcome
from pillarbox.mta.jobs import Jobs

_BATCH = 500  # outcomes a report
_FIRST_PAUSE = 0.1  # seconds after a report that failed, doubled each time
_LONGEST_PAUSE = 30.0
_CROWDED = 10_000  # unacknowledged outcomes beyond which no new work should be taken


class Reporter:
    """Reports outcomes by `settle`. `outcomes` are those not acknowledged yet, oldest first."""

    def __init__(self, *, settle: Callable[[list[Outcome]], Awaitable[None]], jobs: Jobs, log: Log) -> None:
        self._settle = settle
        self.jobs = jobs
        self._log = log
        self._unsettled: dict[tuple[int, int], Outcome] = {}
        self._reporting = False
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What the queue has not acknowledged."""
        return tuple(self._unsettled.values())

    def report(self, outcomes: list[Outcome]) -> None:
        """Take outcomes over."""
        for outcome in outcomes:
            self._unsettled[outcome.evpid, outcome.attempt] = outcome
        if len(self._unsettled) >= _CROWDED:
            self._room.clear()
        if outcomes:
            self._empty.clear()
        if outcomes and not self._reporting:
            self._reporting = True
            self.jobs.start(self._run())

    async def room(self) -> None:
        """Wait while too much is unacknowledged: a queue that does not answer must not cost memory without bound."""
        await self._room.wait()

    async def drained(self) -> None:
        """Wait until everything is acknowledged."""
        await self._empty.wait()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._unsettled:
                batch = [outcome for outcome, _ in zip(self._unsettled.values(), range(_BATCH), strict=False)]
                try:
                    await self._settle(batch)
                except PillarboxError as error:
                    self._log.warn(f"mta: outcomes not taken by the queue, repeating in {pause:g}s: {error}")
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    continue
                pause = _FIRST_PAUSE
                for outcome in batch:
                    self._unsettled.pop((outcome.evpid, outcome.attempt), None)
                if len(self._unsettled) < _CROWDED:
                    self._room.set()
            self._empty.set()
        finally:
            self._reporting = False
