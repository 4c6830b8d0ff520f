"""Those who tell processors something, as far as they are told back: answers and changes, many a call.

What one processor has to say is said in order, and waits for nothing that another does: a message for which a session
has no room now holds up no other processor's answers. What was not taken is bounded: a processor whose answers are too
many is not read on until there is room.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Filtered, Output, Processor, Result

FULL = 2 << 20  # bytes of a processor's answers that a teller has not taken, above which it is not read on
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

    __slots__ = ("answers", "life", "size")

    def __init__(self, life: int) -> None:
        self.life = life
        self.answers: list[Answer] = []
        self.size = 0


class _Lane:
    """What one processor has for one teller, in order."""

    def __init__(self, *, teller: str, number: int, filtered: Filtered, log: Log) -> None:
        self._teller = teller
        self._number = number
        self._filtered = filtered
        self._log = log
        self._waiting: deque[_Answers | Processor] = deque()
        self._size = 0
        self._held: set[Source] = set()
        self._wake = asyncio.Event()
        self._closed = False
        self._broken: set[tuple[int, int]] = set()  # messages of which the teller may have missed some

    def answered(self, life: int, answer: Answer, source: Source) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, _Answers) and last.life == life and last.size < _CALL:
            batch = last
        else:
            batch = _Answers(life)
            self._waiting.append(batch)
        batch.answers.append(answer)
        size = _SMALL + len(_content(answer))
        batch.size += size
        self._size += size
        if self._size > FULL:
            self._held.add(source)
            source.hold()
        self._wake.set()

    def changed(self, processor: Processor) -> None:
        if self._waiting and isinstance(self._waiting[-1], Processor):
            self._waiting.pop()  # what it was for a moment that nobody heard of
        self._waiting.append(processor)
        self._wake.set()

    def gone(self) -> None:
        self._waiting.clear()
        self._broken.clear()
        self._taken(self._size)

    def close(self) -> None:
        """Nothing comes any more."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Until closed, and said to the end; or cancelled."""
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._say(self._waiting.popleft())

    async def _say(self, what: "_Answers | Processor") -> None:
        try:
            if isinstance(what, _Answers):
                answers = [answer for answer in what.answers if not self._is_broken(answer)]
                if answers:
                    await self._filtered.answered(self._number, what.life, _joined(answers))
            else:
                await self._filtered.changed([what])
        except PillarboxError as error:  # it is gone, and its sessions are; or it gives up by its own deadlines
            self._log.debug(f"filter: {self._teller}: {error}")
            if isinstance(what, _Answers):
                self._lose(what.answers)
        if isinstance(what, _Answers):
            self._taken(what.size)

    def _lose(self, answers: Sequence[Answer]) -> None:
        """A message with a hole must never come to its end: the rest of it is kept back, until its session gives up."""
        for answer in answers:
            if isinstance(answer, Output):
                key = answer.session, answer.token
                (self._broken.discard if answer.last else self._broken.add)(key)

    def _is_broken(self, answer: Answer) -> bool:
        if not isinstance(answer, Output) or (answer.session, answer.token) not in self._broken:
            return False
        if answer.last:
            self._broken.discard((answer.session, answer.token))
        return True

    def _taken(self, size: int) -> None:
        self._size = max(0, self._size - size)
        if self._size <= _ROOM and self._held:
            held, self._held = self._held, set()
            for source in held:
                source.let_go()


class Teller:
    """One dispatcher, or queue. `run` must be running."""

    def __init__(self, *, name: str, filtered: Filtered, log: Log) -> None:
        self.name = name
        self._filtered = filtered
        self._log = log
        self._lanes: dict[int, _Lane] = {}  # by processor
        self._fresh: list[_Lane] = []  # that do not run yet
        self._wake = asyncio.Event()

    def answered(self, number: int, life: int, answer: Answer, source: Source) -> None:
        """Pass this on."""
        self._lane(number).answered(life, answer, source)

    def changed(self, processors: Sequence[Processor]) -> None:
        """Say this, after what each of them said before."""
        for processor in processors:
            self._lane(processor.number).changed(processor)

    def gone(self) -> None:
        """It is not there any more: nothing waits for it."""
        for lane in self._lanes.values():
            lane.gone()

    def forget(self, number: int) -> None:
        """There is no such processor any more."""
        lane = self._lanes.pop(number, None)
        if lane is not None:
            lane.close()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._fresh:
                    group.create_task(self._fresh.pop().run())

    def _lane(self, number: int) -> _Lane:
        lane = self._lanes.get(number)
        if lane is None:
            lane = _Lane(teller=self.name, number=number, filtered=self._filtered, log=self._log)
            self._lanes[number] = lane
            self._fresh.append(lane)
            self._wake.set()
        return lane


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
