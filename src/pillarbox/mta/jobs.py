"""Coroutines started from callbacks: they belong to one owner, end with it, and none fails unseen."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pillarbox.log import Log


class Jobs:
    """A task group that outlives a job's fault. What is started before `run` waits for it."""

    def __init__(self, *, log: Log, what: str) -> None:
        self._log = log
        self._what = what
        self._group: asyncio.TaskGroup | None = None
        self._early: list[Coroutine[Any, Any, None]] = []
        self._ended = False

    async def run(self) -> None:
        """Run the jobs until cancelled, which cancels them."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for job in self._early:
                group.create_task(self._guard(job))
            self._early = []
            try:
                await asyncio.Event().wait()
            finally:
                self._ended = True

    def start(self, job: Coroutine[Any, Any, None]) -> None:
        """Begin a job. After the end nothing begins."""
        if self._ended:
            job.close()
        elif self._group is None:
            self._early.append(job)
        else:
            self._group.create_task(self._guard(job))

    def later(self, delay: float, do: Callable[[], None]) -> None:
        """Call this in `delay` seconds, unless the jobs have ended by then."""
        self.start(_after(delay, do))

    async def _guard(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except Exception as error:  # noqa: BLE001 - a bug met by one session must not end the others; logged whole
            self._log.exception(f"{self._what}: unexpected error", error)


async def _after(delay: float, do: Callable[[], None]) -> None:
    await asyncio.sleep(delay)
    do()
