"""Logins that are being looked at: a few of one source at a time, the others wait for their turn.

A check takes a processor for a while. Whoever tries many at once waits for himself, and neither fills what is there
for all nor fails oftener than the limit allows; nobody's right password is refused for coming with others.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pillarbox.errors import TempFail
from pillarbox.routing.failures import Failures, Scope, scopes

AT_ONCE = 4  # of a source
AT_ONCE_OF_SITE = 16  # of an IPv6 /48
WAITING_MAX = 100  # of a source
DEADLINE = 20.0  # seconds; who asks waits a minute, and the check comes after it


class Turns:
    """Gives turns to sources that `failures` does not refuse."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._running: Counter[str] = Counter()  # by name of scope
        self._waiting: Counter[str] = Counter()  # by name of source
        self._turned_away: dict[str, list[asyncio.Future[None]]] = {}  # by name of the widest scope, in order

    @asynccontextmanager
    async def turn(self, address: str, limit: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it. TempFail where the source has failed too often, or has too many waiting."""
        around = scopes(address)
        await self._begin(address, around, limit)
        try:
            yield
        finally:
            self._end(around)

    async def _begin(self, address: str, around: tuple[Scope, ...], limit: int) -> None:
        source = around[0].name
        if self._waiting[source] >= WAITING_MAX:
            raise TempFail(f"too many logins at once from {source}")
        self._waiting[source] += 1
        try:
            async with asyncio.timeout(DEADLINE):
                while not self._has_room(around, self._failures.left(address, limit)):
                    await self._something_ends(around[-1].name)
        except TimeoutError:
            raise TempFail(f"logins from {source} take too long") from None
        finally:
            _subtract(self._waiting, source)
        for scope in around:
            self._running[scope.name] += 1

    def _has_room(self, around: tuple[Scope, ...], left: list[int]) -> bool:
        # All that run may fail: no more of them than may fail.
        most = [min(AT_ONCE, left[0]), *(min(AT_ONCE_OF_SITE, more) for more in left[1:])]
        return all(self._running[scope.name] < at_once for scope, at_once in zip(around, most, strict=True))

    async def _something_ends(self, name: str) -> None:
        ended = asyncio.get_running_loop().create_future()
        self._turned_away.setdefault(name, []).append(ended)
        await ended

    def _end(self, around: tuple[Scope, ...]) -> None:
        for scope in around:
            _subtract(self._running, scope.name)
        for waiting in self._turned_away.pop(around[-1].name, ()):
            if not waiting.done():
                waiting.set_result(None)


def _subtract(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
