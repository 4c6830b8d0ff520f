"""Those who tell processors something, as far as they are told back: answers and changes, each in order, many a call.

What they have not taken is bounded: a processor whose answers are too many is not read on until there is room.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Filtered, Output, Processor, Result

FULL = 4 << 20  # bytes of answers that a teller has not taken, above which those that give them are not read on
_ROOM = FULL // 2
_CALL = 1 << 20  # bytes of answers in a call, about
_SMALL = 100  # bytes that an answer costs beside its text


class Source(Protocol):
    """Whence answers come: it can be made to wait."""

    def hold(self) -> None:
        """Give no more answers for now."""
        ...

    def let_go(self) -> None:
        """Go on."""
        ...


class _Answers:
    """Answers of one life, next to each other."""

    __slots__ = ("answers", "life", "number", "size")

    def __init__(self, number: int, life: int) -> None:
        self.number = number
        self.life = life
        self.answers: list[Answer] = []
        self.size = 0


class Teller:
    """One dispatcher. `run` must be running."""

    def __init__(self, *, name: str, filtered: Filtered, log: Log) -> None:
        self.name = name
        self._filtered = filtered
        self._log = log
        self._waiting: deque[_Answers | Sequence[Processor]] = deque()
        self._size = 0
        self._held: set[Source] = set()
        self._wake = asyncio.Event()

    def answered(self, number: int, life: int, answer: Answer, source: Source) -> None:
        """Pass this on."""
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Answers) and (last.number, last.life) == (number, life) and last.size < _CALL:
            batch = last
        else:
            batch = _Answers(number, life)
            self._waiting.append(batch)
        batch.answers.append(answer)
        size = _SMALL + len(_content(answer))
        batch.size += size
        self._size += size
        if self._size > FULL:
            self._held.add(source)
            source.hold()
        self._wake.set()

    def changed(self, processors: Sequence[Processor]) -> None:
        """Say this, after what was said before."""
        self._waiting.append(processors)
        self._wake.set()

    def gone(self) -> None:
        """It is not there any more: nothing waits for it."""
        self._waiting.clear()
        self._taken(self._size)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._say(self._waiting.popleft())

    async def _say(self, what: "_Answers | Sequence[Processor]") -> None:
        try:
            if isinstance(what, _Answers):
                await self._filtered.answered(what.number, what.life, _joined(what.answers))
            else:
                await self._filtered.changed(list(what))
        except PillarboxError as error:  # it is gone, and its sessions are; or it gives up by its own deadlines
            self._log.debug(f"filter: {self.name}: {error}")
        if isinstance(what, _Answers):
            self._taken(what.size)

    def _taken(self, size: int) -> None:
        self._size = max(0, self._size - size)
        if self._size <= _ROOM and self._held:
            held, self._held = self._held, set()
            for source in held:
                source.let_go()


def _content(answer: Answer) -> str | bytes:
    if isinstance(answer, Output):
        return answer.data
    return answer.param if isinstance(answer, Result) else answer.text


def _joined(answers: list[Answer]) -> list[Answer]:
    """The same, what follows each other of one message in one piece: many processors write a line at a time."""
    found: list[Answer] = []
    for (session, token), run in itertools.groupby(answers, _message):
        pieces = list(run)
        if token and len(pieces) > 1:
            outputs = [piece for piece in pieces if isinstance(piece, Output)]
            pieces = [Output(session, token, b"".join(o.data for o in outputs), outputs[-1].last)]
        found += pieces
    return found


def _message(answer: Answer) -> tuple[int, int]:
    """Which message it is some of; token 0: of none."""
    return (answer.session, answer.token) if isinstance(answer, Output) else (answer.session, 0)
