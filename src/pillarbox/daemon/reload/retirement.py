"""Configurations that were replaced: kept while a session or a delivery goes by them, for an hour at the most.

The roles are asked now and then what they still use. New uses of an old configuration begin nowhere but in the queue's
relays, which count as one until they are done; so what nobody uses is used by nobody later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.reload.members import Member
from pillarbox.errors import PillarboxError
from pillarbox.log import Log

LIFETIME = 3600.0  # seconds after which its sessions are told to go (421), and outgoing ones end
GRACE = 90.0  # seconds more for their transactions; then questions about it are temporary failures
OLD_MAX = 64  # at once; of more, the oldest has to go before its time
_ANSWER = 10.0  # seconds
_FIRST, _LAST = 0.5, 10.0  # seconds between two rounds, doubled from one to the other


class Retirement:
    """To be told when one is `replaced`. `members()`: the roles that are there, `expected()` when none is missing."""

    def __init__(
        self,
        *,
        generations: Generations,
        members: Callable[[], list[Member]],
        expected: Callable[[], int],
        now: Callable[[], float],
        log: Log,
    ) -> None:
        self._generations = generations
        self._members = members
        self._expected = expected
        self._now = now
        self._log = log
        self._since: dict[int, float] = {}
        self._retired: dict[int, float] = {}
        self._pause = _FIRST
        self._wake = asyncio.Event()

    def replaced(self) -> None:
        """The current configuration is a new one."""
        now = self._now()
        for generation in self._generations.older():
            self._since.setdefault(generation.number, now)
        self._pause = _FIRST
        self._wake.set()

    async def run(self) -> None:
        """Look after them until cancelled."""
        while True:
            if not self._since:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LAST)
            await self.look()

    async def look(self) -> None:
        """One round: forget what nobody uses, and whose time is over."""
        members = self._members()
        used = await _all(m.in_use() for m in members) if len(members) == self._expected() else None
        now = self._now()
        excess = len(self._since) - len(self._retired) - OLD_MAX
        for number in list(self._since):
            retired = self._retired.get(number)
            if used is not None and not any(number in numbers for numbers in used):
                await self._forget(number)
            elif retired is not None and now - retired >= GRACE:
                self._log.warn(f"reload: configuration {number} is still in use and is dropped all the same")
                await self._forget(number)
            elif retired is None and (now - self._since[number] >= LIFETIME or excess > 0):
                excess -= 1
                self._log.info(f"info: the sessions of configuration {number} have to end")
                self._retired[number] = now
                await _all(m.retire(number) for m in members)

    async def _forget(self, number: int) -> None:
        del self._since[number]
        self._retired.pop(number, None)
        self._generations.forget(number)
        await _all(m.forget(number) for m in self._members())
        self._log.debug(f"reload: configuration {number} is forgotten")


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any] | None:
    """What all of them answer; None where one did not."""
    try:
        async with asyncio.timeout(_ANSWER):
            return await asyncio.gather(*calls)
    except (PillarboxError, TimeoutError):
        return None
