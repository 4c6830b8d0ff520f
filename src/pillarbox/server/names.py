"""Reverse names of clients: asked at accept, waited for only where the name is needed, remembered for a while."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine

from pillarbox.errors import PillarboxError
from pillarbox.roles.lookup import Lookup, ReverseName

TTL = 60.0  # seconds
PATIENCE = 5.0  # seconds that sessions wait; an answer that comes later serves the next ones
DEADLINE = 20.0
KEPT = 4096
_NO_ANSWER = ReverseName(fcrdns="error")


class ReverseNames:
    """The cache of one dispatcher."""

    def __init__(
        self,
        *,
        lookup: Lookup,
        monotonic: Callable[[], float],
        background: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._lookup = lookup
        self._monotonic = monotonic
        self._background = background
        self._names: OrderedDict[str, tuple[float, asyncio.Future[ReverseName]]] = OrderedDict()

    def ask(self, address: str) -> "asyncio.Future[ReverseName]":
        """The name of an address, known already or later. The future never fails: no answer in time is "error"."""
        now = self._monotonic()
        known = self._names.get(address)
        if known is not None and known[0] > now:
            return known[1]
        name: asyncio.Future[ReverseName] = asyncio.get_running_loop().create_future()
        self._names[address] = (now + TTL, name)
        self._names.move_to_end(address)
        if len(self._names) > KEPT:
            self._names.popitem(last=False)
        self._background(self._resolve(address, name))
        return name

    async def _resolve(self, address: str, name: "asyncio.Future[ReverseName]") -> None:
        found = _NO_ANSWER
        patience = asyncio.get_running_loop().call_later(PATIENCE, _settle, name, _NO_ANSWER)
        try:
            async with asyncio.timeout(DEADLINE):
                found = await self._lookup.client_name(address)
        except (PillarboxError, TimeoutError):
            self._names.pop(address, None)
        finally:
            patience.cancel()
            _settle(name, found)
        known = self._names.get(address)
        if found.name and found != name.result() and known is not None and known[1] is name:
            late: asyncio.Future[ReverseName] = asyncio.get_running_loop().create_future()
            late.set_result(found)
            self._names[address] = (known[0], late)


def _settle(name: "asyncio.Future[ReverseName]", found: ReverseName) -> None:
    if not name.done():
        name.set_result(found)
