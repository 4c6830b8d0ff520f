"""One message on its way through the handlers: lines in, lines out, as they come.

A stage takes some lines and gives what is ready. The functions are coroutines, which wait for nothing as long as no
handler does. Of a stage whose handler failed, what it holds and all that comes passes unchanged.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pillarbox.sdk.filter.decisions import Decision
from pillarbox.sdk.filter.hooks import Handler, Handlers, WholeMessage
from pillarbox.sdk.filter.message import Headers, Message
from pillarbox.sdk.filter.session import Session

HEADERS_LIMIT = 1 << 20  # bytes of a header section; a larger one passes unchanged
_PORTION = 1 << 16  # bytes, about, that are taken at a time of lines that a function makes as they are asked for


class Room:
    """Bytes that all messages together may hold."""

    def __init__(self, size: int) -> None:
        self._free = size

    def take(self, size: int) -> bool:
        """Reserve; False: there is not so much left."""
        if size > self._free:
            return False
        self._free -= size
        return True

    def give(self, size: int) -> None:
        """Return what was reserved."""
        self._free += size


@dataclass(frozen=True, slots=True)
class Place:
    """What the stages of a message share. `decide`: at commit; `failed`: a handler raised."""

    session: Session[Any]
    room: Room
    deadline: float
    decide: Callable[[Decision], None]
    failed: Callable[[Exception], None]


class Stage(Protocol):
    """Part of the way."""

    async def feed(self, lines: list[str]) -> list[str]:
        """Some lines of the message, without dots and ends; what is ready of it."""
        ...

    async def end(self) -> Iterable[list[str]]:
        """No more will come; the rest, some lines at a time."""
        ...

    def close(self) -> None:
        """The message is over, or the session: let go of what is held."""
        ...


def build_stages(handlers: Handlers, place: Place) -> list[Stage]:
    """The stages of one message: its lines, then its header section, then the whole of it."""
    stages: list[Stage] = []
    if handlers.lines or handlers.ends:
        stages.append(LineStage(handlers.lines, handlers.ends, place))
    stages += [HeaderStage(handler, place) for handler in handlers.headers]
    stages += [MessageStage(whole, place) for whole in handlers.messages]
    return stages


async def call(handler: Handler, deadline: float, *args: object) -> Any:
    """Call a function; of an asynchronous generator, what it yields. Raises TimeoutError after `deadline` seconds."""
    result = handler.function(*args)
    if not handler.asynchronous:
        return result
    async with asyncio.timeout(deadline):
        if isinstance(result, AsyncIterator):
            return [each async for each in result]
        return await result


class LineStage:
    """Line by line; what one function makes of a line is given to the next."""

    def __init__(self, lines: list[Handler], ends: list[Handler], place: Place) -> None:
        self._lines = lines
        self._ends = ends
        self._place = place
        self._broken = False

    async def feed(self, lines: list[str]) -> list[str]:
        """See Stage."""
        if self._broken or not self._lines:
            return lines
        done: list[str] = []
        rest = iter(lines)
        line = ""
        try:
            if len(self._lines) == 1 and not self._lines[0].asynchronous:
                function, session = self._lines[0].function, self._place.session
                for line in rest:
                    result = function(session, line)
                    if result.__class__ is str:
                        done.append(result)
                    else:
                        done += self._made(line, result)
            else:
                for line in rest:
                    done += await self._through(line)
        except Exception as error:  # noqa: BLE001 - the author's code: the message goes on, and is decided at commit
            self._fail(error)
            return [*done, line, *rest]
        return done

    async def _through(self, line: str) -> list[str]:
        lines = [line]
        for handler in self._lines:
            made: list[str] = []
            for each in lines:
                made += self._made(each, await call(handler, self._place.deadline, self._place.session, each))
            lines = made
        return lines

    async def end(self) -> Iterable[list[str]]:
        """See Stage."""
        results: list[Any] = []
        if self._broken:
            return []
        try:
            for handler in self._ends:
                results.append(await call(handler, self._place.deadline, self._place.session))
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
        return self._rest(results)

    def _rest(self, results: list[Any]) -> Iterator[list[str]]:
        """What an iterator gives is not taken all at once: it may be a message that is nowhere in memory as a whole."""
        try:
            for result in results:
                for portion in _portions(result) if isinstance(result, Iterator) else [result]:
                    yield self._made(None, portion)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def close(self) -> None:
        """See Stage."""

    def _fail(self, error: Exception) -> None:
        self._broken = True
        self._place.failed(error)

    def _made(self, line: str | None, result: Any) -> list[str]:
        """Lines as a function returned them. Raises TypeError."""
        if result is None or isinstance(result, Decision):
            if result is not None:
                self._place.decide(result)
            return [] if line is None else [line]
        if isinstance(result, str):
            return [result]
        lines = list(result)
        for each in lines:
            if not isinstance(each, str):
                raise TypeError(f"a line is text, not {type(each).__name__}")
        return lines


class _Held:
    """Lines that a stage keeps until they are whole: at most `limit` bytes, and what there is room for."""

    def __init__(self, limit: int, room: Room) -> None:
        self.lines: list[str] = []
        self.passing = False  # nothing is kept any more
        self._limit = limit
        self._room = room
        self._size = 0

    def keep(self, lines: list[str]) -> bool:
        """Keep them, too; False: that is more than may be."""
        size = sum(map(len, lines)) + 2 * len(lines)
        self.lines += lines
        if self._size + size > self._limit or not self._room.take(size):
            return False
        self._size += size
        return True

    def let_go(self) -> list[str]:
        """All of them; what comes from now on passes."""
        held, self.lines = self.lines, []
        self.passing = True
        self.close()
        return held

    def close(self) -> None:
        """The room is others'."""
        self._room.give(self._size)
        self._size = 0


class HeaderStage:
    """Holds the header section back until it is whole; the body passes."""

    def __init__(self, handler: Handler, place: Place) -> None:
        self._handler = handler
        self._place = place
        self._held = _Held(HEADERS_LIMIT, place.room)

    async def feed(self, lines: list[str]) -> list[str]:
        """See Stage."""
        if self._held.passing:
            return lines
        end = lines.index("") if "" in lines else len(lines)
        if not self._held.keep(lines[:end]):
            return [*self._held.let_go(), *lines[end:]]
        return [*await self._finish(), *lines[end:]] if end < len(lines) else []

    async def end(self) -> Iterable[list[str]]:
        """See Stage."""
        return [] if self._held.passing else [await self._finish()]

    def close(self) -> None:
        """See Stage."""
        self._held.close()

    async def _finish(self) -> list[str]:
        held = self._held.let_go()
        headers = Headers(held)
        try:
            decision = await call(self._handler, self._place.deadline, self._place.session, headers)
            if decision is not None:
                self._place.decide(_decision(decision))
            return headers.lines()
        except Exception as error:  # noqa: BLE001 - the author's code: the message goes on, and is decided at commit
            self._place.failed(error)
            return held


class MessageStage:
    """Holds the message back until it is whole, unless it gets too large."""

    def __init__(self, whole: WholeMessage, place: Place) -> None:
        self._whole = whole
        self._place = place
        self._held = _Held(whole.limit, place.room)

    async def feed(self, lines: list[str]) -> list[str]:
        """See Stage."""
        if self._held.passing:
            return lines
        if self._held.keep(lines):
            return []
        if self._whole.above is not None:
            self._place.decide(self._whole.above)
        return self._held.let_go()

    async def end(self) -> Iterable[list[str]]:
        """See Stage."""
        if self._held.passing:
            return []
        lines = self._held.lines
        message = Message(lines)
        try:
            result = await call(self._whole.handler, self._place.deadline, self._place.session, message)
            if isinstance(result, Decision):
                self._place.decide(result)
            elif result is not None:
                message.replace(result)
            lines = message.lines()
        except Exception as error:  # noqa: BLE001 - the author's code: the message goes on, and is decided at commit
            self._place.failed(error)
        self._held.let_go()
        return [lines]

    def close(self) -> None:
        """See Stage."""
        self._held.close()


def _portions(lines: Iterator[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for line in lines:
        portion.append(line)
        size += len(line) + 64
        if size > _PORTION:
            yield portion
            portion, size = [], 0
    yield portion


def _decision(given: Any) -> Decision:
    if not isinstance(given, Decision):
        raise TypeError(f"neither a decision nor None: {given!r:.80}")
    return given
