"""A filter role in memory, whose processors a test plays itself: what it was told, and what it answers."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pillarbox.errors import TempFail
from pillarbox.filters.processors import Processors
from pillarbox.log import Log
from pillarbox.roles.filters import (
    Answer,
    Decision,
    Filtered,
    Lines,
    Output,
    Processor,
    Question,
    Report,
    Result,
    Told,
)

if TYPE_CHECKING:
    from .real import Between


@dataclass
class Played:
    """A processor. `answer` gives what it says to a question or to lines: none where it leaves them."""

    processor: Processor
    answer: Callable[[Question | Lines], list[Answer]]
    told: list[Told] = field(default_factory=list)
    reading: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def events(self) -> list[str]:
        """The events that it heard, as `name fields`."""
        return [f"{r.event} {r.text}".strip() for r in self.told if isinstance(r, Report)]

    @property
    def questions(self) -> list[tuple[str, str]]:
        """What it was asked."""
        return [(q.phase, q.param) for q in self.told if isinstance(q, Question)]

    @property
    def message(self) -> bytes:
        """All lines that it got."""
        return b"".join(item.data for item in self.told if isinstance(item, Lines))


def proceed(asked: Question | Lines) -> list[Answer]:
    """Let everything pass."""
    if isinstance(asked, Lines):
        return [Output(asked.session, asked.token, asked.data, asked.last)]
    return [Result(asked.session, asked.token, Decision.PROCEED)]


def decide(phase: str, decision: str, param: str = "") -> Callable[[Question | Lines], list[Answer]]:
    """Decide this in one phase, and let all else pass."""

    def answer(asked: Question | Lines) -> list[Answer]:
        if isinstance(asked, Question) and asked.phase == phase:
            return [Result(asked.session, asked.token, Decision(decision), param)]
        return proceed(asked)

    return answer


class MemoryFilters:
    """Implements `roles.filters.Filters`."""

    def __init__(self) -> None:
        self.played: dict[int, Played] = {}
        self.filtered: Filtered | None = None
        self.down = False
        self.joined: list[int] = []
        self.late: asyncio.Event | None = None  # set: `join` waits for it
        self.tells = 0

    def add(
        self,
        name: str,
        answer: Callable[[Question | Lines], list[Answer]] = proceed,
        *,
        phases: str = "",
        events: str = "",
        **more: object,
    ) -> Played:
        """A processor that registered these (words), and runs."""
        registered = frozenset(e if " " in e else f"smtp-in {e}" for e in events.split())
        number = len(self.played) + 1
        processor = Processor(
            number=number,
            name=name,
            life=1,
            known=True,
            phases=frozenset(phases.split()),
            events=registered,
            **more,  # type: ignore[arg-type]
        )
        played = self.played[number] = Played(processor, answer)
        played.reading.set()
        return played

    async def set(self, played: Played, **changes: object) -> None:
        """It was started, ended, …"""
        old = played.processor
        fields = {name: getattr(old, name) for name in old.__struct_fields__} | changes
        played.processor = Processor(**fields)
        assert self.filtered is not None
        await self.filtered.changed([played.processor])

    async def join(self, generation: int) -> list[Processor]:
        if self.late is not None:
            await self.late.wait()
        if self.down:
            raise TempFail("the filter role is being restarted")
        self.joined.append(generation)
        return [played.processor for played in self.played.values()]

    async def tell(self, number: int, life: int, items: list[Told]) -> None:
        self.tells += 1
        played = self.played[number]
        if self.down or played.processor.life != life:
            raise TempFail("that life is over")
        played.told += items
        await played.reading.wait()
        answers = [a for item in items if not isinstance(item, Report) for a in played.answer(item)]
        if answers:
            asyncio.get_running_loop().call_soon(self._answer, number, life, answers)

    def _answer(self, number: int, life: int, answers: list[Answer]) -> None:
        assert self.filtered is not None
        self._kept = asyncio.ensure_future(self.filtered.answered(number, life, answers))

    async def say(self, played: Played, *answers: Answer) -> None:
        """Something unasked, or late."""
        assert self.filtered is not None
        await self.filtered.answered(played.processor.number, played.processor.life, list(answers))


class Background:
    """Runs what nobody waits for."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def stop(self) -> None:
        """End them."""
        for task in self.tasks:
            task.cancel()


def make_processors(
    filters: "MemoryFilters | Between", log: Log, background: Callable[[Coroutine[None, None, None]], None]
) -> Processors:
    """Those of one dispatcher; tokens count from 1."""
    numbers = iter(range(1, 1 << 32))
    processors = Processors(
        filters=filters,  # type: ignore[arg-type]
        log=log,
        now=lambda: 1000.0,
        random64=lambda: next(numbers),
        background=background,
    )
    filters.filtered = processors
    return processors
