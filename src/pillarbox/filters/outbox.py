"""What one processor is told by this process, in order, and what it owes to sessions.

Items of one turn of the loop go in one `Filters.tell`; events alone wait a moment for others, since a call costs as
much as ten of them. Memory is bounded: above `ROOM` sessions wait before they ask or go on with a message, and events
for a processor that does nothing but listen are dropped; above `MOST` all events are. A life of the processor that ends
takes with it what was meant for it: questions fail at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Protocol

from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Filters, Lines, Output, Processor, Question, Report, Result, Told

ROOM = 1024 * 1024  # bytes not told yet
MOST = 16 * ROOM  # above which no event is kept
LINES_MOST = 128 * ROOM  # above which no message is
BATCH = 256 * 1024  # bytes of one `tell`
IN_FLIGHT = 2
GRACE = 1.0  # seconds at most, behind the deadline of the filter role
MOMENT = 0.005  # seconds for which events wait for each other
_ITEM = 100  # bytes of an item beside its text

Key = tuple[int, int]  # session, token


class Unanswered(Exception):
    """A processor does not answer: it is down, ended, or missed its deadline. The text is for the log."""


class Flow(Protocol):
    """Who takes the lines that a processor makes of a message."""

    def put(self, data: bytes, *, last: bool) -> None:
        """Whole lines."""
        ...

    def fail(self, reason: str) -> None:
        """There will be no more of them."""
        ...

    async def drained(self) -> None:
        """Returns when there is room for more."""
        ...


class Outbox:
    """One processor. `background` runs what nobody waits for."""

    def __init__(
        self,
        *,
        processor: Processor,
        filters: Filters,
        log: Log,
        now: Callable[[], float],
        background: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self.processor = processor
        self._filters = filters
        self._log = log
        self._now = now
        self._background = background
        self._loop = asyncio.get_running_loop()
        self._items: deque[Told] = deque()
        self._size = 0  # bytes of what is not told yet, or on its way
        self._in_flight = 0
        self._scheduled: asyncio.Handle | None = None
        self._urgent = False  # it is for this turn of the loop
        self._waiting: dict[Key, asyncio.Future[Result]] = {}
        self._flows: dict[Key, Flow] = {}
        self._dropped = 0  # events
        self._room = asyncio.Event()
        self._room.set()

    @property
    def full(self) -> bool:
        """Do sessions have to wait before they tell it more?"""
        return self._size > ROOM

    @property
    def overflows(self) -> bool:
        """Is it too much even for what cannot wait?"""
        return self._size > LINES_MOST

    @property
    def patience(self) -> float:
        """Seconds that sessions wait: somewhat longer than the filter role, which ends one that answers nobody."""
        return self.processor.timeout + min(GRACE, self.processor.timeout / 10)

    async def room(self) -> None:
        """Wait until there is room, or another life."""
        await self._room.wait()

    # --- what sessions say ------------------------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """An event that it registered. A listener in the sense of `Reports`."""
        if self.processor.life and self._size <= ROOM:
            self._add(report, len(report.text), urgent=False)
        elif not self.processor.life:
            if not report.event.startswith("link-"):  # a session introduces itself to the next life
                self._dropped += 1
        elif self._size > MOST or not self.processor.phases:
            self._drop(1)
        else:
            self._add(report, len(report.text), urgent=False)

    async def ask(self, phase: str, session: int, token: int, param: str) -> Result:
        """The answer to a question. Raises Unanswered: it may still come, so the token must not serve again."""
        life = self.require_life()
        key = (session, token)
        try:
            async with asyncio.timeout(self.patience):
                await self.room()
                self._require(life)
                answer: asyncio.Future[Result] = self._loop.create_future()
                self._waiting[key] = answer
                self._add(Question(phase, session, token, self._now(), param), len(param))
                return await answer
        except TimeoutError:
            raise Unanswered(f"no answer within {self.processor.timeout:g} s") from None
        finally:
            self._waiting.pop(key, None)

    def open_flow(self, session: int, token: int, flow: Flow) -> None:
        """A message begins. Raises Unanswered, also where the last one of this session has not ended there yet."""
        self.require_life()
        if (session, token) in self._flows:
            raise Unanswered("it has not ended the message before")
        self._flows[session, token] = flow

    def forget_flow(self, session: int, token: int) -> None:
        """The session is over, and what may still come of its messages means nothing."""
        self._flows.pop((session, token), None)

    def lines(self, session: int, token: int, data: bytes, *, last: bool) -> None:
        """Some of a message whose flow was opened in this life."""
        self._add(Lines(session, token, self._now(), data, last), len(data))

    def require_life(self) -> int:
        """The life that runs. Raises Unanswered."""
        if not self.processor.life:
            raise Unanswered(f"it does not run: {self.processor.why}" if self.processor.why else "it does not run")
        return self.processor.life

    def _require(self, life: int) -> None:
        if self.processor.life != life:
            raise Unanswered(self.processor.why or "it ended")

    # --- what the processor does ------------------------------------------------------------------------------------

    def change(self, processor: Processor) -> None:
        """It was started, registered, or ended."""
        before, self.processor = self.processor, processor
        if processor.life != before.life:
            self._end_life(processor.why or "it ended")

    def take(self, answers: Sequence[Answer]) -> list[Flow]:
        """Pass on what it answered; returns the flows that got something."""
        flows = []
        for answer in answers:
            if isinstance(answer, Result):
                self._take_result(answer)
            elif isinstance(answer, Output):
                flow = self._flows.get((answer.session, answer.token))
                if flow is not None:
                    if answer.last:
                        del self._flows[answer.session, answer.token]
                    flow.put(answer.data, last=answer.last)
                    flows.append(flow)
        return flows

    def _take_result(self, result: Result) -> None:
        answer = self._waiting.get((result.session, result.token))
        if answer is not None and not answer.done():
            answer.set_result(result)

    def _end_life(self, why: str) -> None:
        waiting, flows = list(self._waiting.values()), list(self._flows.values())
        self._dropped += sum(isinstance(item, Report) and not item.event.startswith("link-") for item in self._items)
        self._items.clear()
        self._flows.clear()
        self._size = self._in_flight = 0
        self._room.set()
        for answer in waiting:
            _fail(answer, why)
        for flow in flows:
            flow.fail(why)
        if self.processor.life and self._dropped:
            self._say_dropped("while it did not run")

    # --- telling ----------------------------------------------------------------------------------------------------

    def _add(self, item: Told, size: int, *, urgent: bool = True) -> None:
        self._items.append(item)
        self._size += size + _ITEM
        if self._size > ROOM:
            self._room.clear()
        urgent = urgent or self._size > BATCH
        if self._scheduled is None or (urgent and not self._urgent):
            self._schedule(urgent=urgent)

    def _schedule(self, *, urgent: bool = True) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._urgent = urgent
        self._scheduled = self._loop.call_soon(self._flush) if urgent else self._loop.call_later(MOMENT, self._flush)

    async def told(self) -> None:
        """Return when it was told everything there is."""
        while self._items or self._in_flight:  # noqa: ASYNC110 - at the end of a process, once
            await asyncio.sleep(MOMENT)

    def _flush(self) -> None:
        self._scheduled = None
        while self._items and self._in_flight < IN_FLIGHT:
            batch, size = [], 0
            while self._items and size < BATCH:
                item = self._items.popleft()
                batch.append(item)
                size += _ITEM + len(_content(item))
            self._in_flight += 1
            # Said now, and waited for by a task: that begins a turn of the loop later.
            said = self._filters.tell(self.processor.number, self.processor.life, batch)
            self._background(self._await_told(said, self.processor.life, batch, size))

    async def _await_told(self, said: Awaitable[None], life: int, batch: list[Told], size: int) -> None:
        try:
            await said
        except PillarboxError as error:
            if self.processor.life == life:
                self._lose(batch, str(error))
        if self.processor.life != life:
            return
        self._in_flight -= 1
        self._size -= size
        if self._size <= ROOM and not self._room.is_set():
            self._room.set()
            if self._dropped:
                self._say_dropped("because it does not read")
        if self._items:
            self._schedule()

    def _lose(self, batch: list[Told], why: str) -> None:
        """These may not have reached it: whoever waits for an answer to them waits in vain."""
        for item in batch:
            if isinstance(item, Report):
                self._dropped += 1
            elif isinstance(item, Question):
                answer = self._waiting.get((item.session, item.token))
                if answer is not None:
                    _fail(answer, why)
            else:
                flow = self._flows.get((item.session, item.token))
                if flow is not None:
                    flow.fail(why)

    def _drop(self, count: int) -> None:
        if not self._dropped:
            self._log.warn(f"processor {self.processor.name}: it does not read, events for it are dropped")
        self._dropped += count

    def _say_dropped(self, why: str) -> None:
        self._log.warn(f"processor {self.processor.name}: {self._dropped} events were dropped {why}")
        self._dropped = 0


def _fail(answer: "asyncio.Future[Result]", why: str) -> None:
    if not answer.done():
        answer.set_exception(Unanswered(why))


def _content(item: Told) -> str | bytes:
    if isinstance(item, Report):
        return item.text
    return item.param if isinstance(item, Question) else item.data
