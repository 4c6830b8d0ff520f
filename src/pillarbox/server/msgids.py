"""Message ids in stock: taken from the queue in blocks and in the background, so that MAIL costs no round trip."""

import asyncio
from collections.abc import Callable, Coroutine

from pillarbox.errors import TempFail
from pillarbox.roles.queue import Queue

BLOCK = 256
LOW_WATER = 128


class MessageIds:
    """The stock of one dispatcher. `background` runs a coroutine that nobody waits for and reports its failure."""

    def __init__(self, *, queue: Queue, background: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._queue = queue
        self._background = background
        self._stock: list[int] = []
        self._refill: asyncio.Future[None] | None = None

    def take(self) -> int | None:
        """A fresh id; None: the stock is empty, `wait` first."""
        if len(self._stock) <= LOW_WATER:
            self._order()
        return self._stock.pop() if self._stock else None

    async def wait(self) -> int:
        """A fresh id, once there is one. Raises TempFail."""
        while (msgid := self.take()) is None:
            assert self._refill is not None
            await asyncio.shield(self._refill)
        return msgid

    def _order(self) -> None:
        if self._refill is None:
            self._refill = asyncio.get_running_loop().create_future()
            self._background(self._fill(self._refill))

    async def _fill(self, done: asyncio.Future[None]) -> None:
        failure = TempFail("no message ids to be had")
        try:
            ids = await self._queue.reserve(BLOCK)
            self._stock[:0] = reversed(ids)  # to be taken from the end, in their order
            if ids:
                done.set_result(None)
        except TempFail as error:
            failure = error
        finally:
            self._refill = None
            if not done.done():
                done.set_exception(failure)
                done.exception()  # nobody may be waiting; who waits gets it all the same
