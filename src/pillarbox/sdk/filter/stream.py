"""One message on its way through the handlers: lines in, lines out, as they come.

A stage takes some lines and gives what is ready. The functions are coroutines, which wait for nothing as long as no
handler does. Of a stage whose handler failed, what it holds and all that comes passes unchanged.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from types import CoroutineType
from typing import Any, Protocol

from pillarbox.sdk.filter.decisions import Decision, Verb
from pillarbox.sdk.filter.hooks import Handler, Handlers, WholeMessage
from pillarbox.sdk.filter.message import Headers, Message, split_text
from pillarbox.sdk.filter.session import Session

HEADERS_LIMIT = 1 << 20  # bytes of a header section; about a larger one is decided as if a handler had failed
_PORTION = 1 << 16  # bytes, about, that are taken at a time of lines that a function makes as they are asked for
_CANCELLED = "it was cancelled, and not by us"
_NO_ROOM = "messages that are held take all the memory that they may"


def footprint(lines: list[str]) -> int:
    """Bytes of memory that lines take: of short ones, many times what they say."""
    return sum(map(sys.getsizeof, lines)) + 8 * len(lines)


def size_of(lines: list[str]) -> int:
    """Bytes of a part of a message, as it is sent."""
    text = "".join(lines)
    data = text if text.isascii() else text.encode(errors="replace")  # "?" for a byte that is no text: one byte, too
    return len(data) + 2 * len(lines)


class Room:
    """Bytes of memory that all messages together may hold."""

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
    """What the stages of a message share.

    `until`: handlers have time, now; `decide`: at commit; `failed`: a handler raised; `unseen`: why none will see it.
    """

    session: Session[Any]
    room: Room
    until: Callable[[], float]
    decide: Callable[[Decision], None]
    failed: Callable[[Exception], None]
    unseen: Callable[[str], None]


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


async def call(handler: Handler, until: float, *args: object) -> Any:
    """Call a function; of an asynchronous generator, what it yields.

    Raises TimeoutError at `until` (of time.monotonic), RuntimeError where the function lets itself be cancelled.
    """
    try:
        result = handler.function(*args)
        if handler.asynchronous:
            result = await _awaited(result, until)
    except asyncio.CancelledError as error:
        task = asyncio.current_task() if handler.asynchronous else None
        if task is not None and task.cancelling():
            raise  # the program ends
        # Of something that the function waited for: whoever asked must still have an answer.
        raise RuntimeError(_CANCELLED) from error
    _check_result(result)
    return result


async def _awaited(result: Any, until: float) -> Any:
    async with asyncio.timeout(max(0, until - time.monotonic())):
        if isinstance(result, AsyncIterator):
            return [each async for each in result]
        # A plain function around an asynchronous one may have awaited it.
        return await result if isinstance(result, Awaitable) else result


def _check_result(result: Any) -> None:
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError(f"a coroutine was returned, which nobody awaits ({result.__qualname__}): make it `async def`")


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
                try:
                    for line in rest:
                        result = function(session, line)
                        if result.__class__ is str and "\n" not in result:
                            done.append(result)
                        else:
                            done += self._made(line, result)
                except asyncio.CancelledError as error:
                    raise RuntimeError(_CANCELLED) from error
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
                made += self._made(each, await call(handler, self._place.until(), self._place.session, each))
            lines = made
        return lines

    async def end(self) -> Iterable[list[str]]:
        """See Stage."""
        results: list[Any] = []
        if self._broken:
            return []
        try:
            for handler in self._ends:
                results.append(await call(handler, self._place.until(), self._place.session))
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
                if result.verb is Verb.JUNK:
                    raise ValueError("it is too late for junk() when lines have passed: decide at headers or message")
                self._place.decide(result)
            return [] if line is None else [line]
        if isinstance(result, str):
            return split_text(result)
        _check_result(result)
        lines: list[str] = []
        for each in result:
            if not isinstance(each, str):
                raise TypeError(f"a line is text, not {type(each).__name__}")
            lines += split_text(each)
        return lines


class _Held:
    """Lines that a stage keeps until they are whole: at most `limit` bytes, and what there is room for.

    `large`: there were more than `limit`.
    """

    def __init__(self, limit: int, room: Room) -> None:
        self.lines: list[str] = []
        self.passing = False  # nothing is kept any more
        self.large = False
        self._free = limit
        self._room = room
        self._taken = 0

    def keep(self, lines: list[str]) -> bool:
        """Keep them, too; False: that is more than may be."""
        self.lines += lines
        self._free -= size_of(lines)
        self.large = self._free < 0
        memory = footprint(lines)
        if self.large or not self._room.take(memory):
            return False
        self._taken += memory
        return True

    def let_go(self) -> list[str]:
        """All of them; what comes from now on passes."""
        held, self.lines = self.lines, []
        self.passing = True
        self.close()
        return held

    def close(self) -> None:
        """The room is others'."""
        self._room.give(self._taken)
        self._taken = 0


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
            large = f"its header section has more than {HEADERS_LIMIT} bytes"
            self._place.unseen(large if self._held.large else _NO_ROOM)
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
            decision = await call(self._handler, self._place.until(), self._place.session, headers)
            lines = headers.lines()
            return lines if decision is None or decision is headers else _decide(self._place, decision, lines)
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
        held = self._held.let_go()
        if not self._held.large:
            self._place.unseen(_NO_ROOM)
        elif self._whole.above is not None:
            return _decide(self._place, self._whole.above, held)
        return held

    async def end(self) -> Iterable[list[str]]:
        """See Stage."""
        if self._held.passing:
            return []
        lines = self._held.lines
        message = Message(lines)
        try:
            result = await call(self._whole.handler, self._place.until(), self._place.session, message)
            if result is None or isinstance(result, Message):
                lines = (result or message).lines()
            elif isinstance(result, bytes | EmailMessage):
                message.replace(result)
                lines = message.lines()
            else:
                lines = _decide(self._place, result, message.lines())
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


def _decide(place: Place, decision: Any, lines: list[str]) -> list[str]:
    """Lines of which the top has not passed yet, as the server would have marked them. Raises TypeError."""
    if not isinstance(decision, Decision):
        raise TypeError(f"neither a decision nor None: {decision!r:.80}")
    if decision.verb is Verb.JUNK:  # at commit, when all else is said, it is too late
        return ["X-Spam: Yes", *lines]
    place.decide(decision)
    return lines
