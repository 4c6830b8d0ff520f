"""The processors as one process sees them that tells them something: a dispatcher, or queue.

`Processors` joins the filter role for each configuration, again when that role was restarted, and keeps an `Outbox` a
processor. Sessions get from it their `Path` (`filters/chain` takes them along it) and their `Reports`.
"""

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from pillarbox.conf.model import Config, Relay
from pillarbox.errors import PillarboxError
from pillarbox.filters.outbox import Flow, Outbox
from pillarbox.filters.path import Path
from pillarbox.filters.reports import Reports
from pillarbox.log import Log
from pillarbox.roles.filters import MDA, SMTP_OUT, Answer, Filters, Processor, Said

PATIENCE = 30.0  # seconds for processors to register, before sessions that need them are turned away
AUDIENCE = 10.0  # seconds for those that may listen to what leaves
HOLD_UP = 5.0  # seconds for which answers are not taken while a message has no room for what it got
LAST_WORDS = 1.0  # seconds for processors to be told the rest when the process ends
AGAIN = 0.2  # seconds until the filter role is asked again


class _Generation:
    """A configuration: its processors by name, once the filter role told them, and the paths of its filters."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.boxes: dict[str, Outbox] = {}
        self.paths: dict[str, Path] = {}


class Processors:
    """Implements `roles.filters.Filtered`. `now`: epoch seconds."""

    def __init__(
        self,
        *,
        filters: Filters,
        log: Log,
        now: Callable[[], float],
        random64: Callable[[], int],
        background: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._filters = filters
        self._log = log
        self._now = now
        self._random64 = random64
        self._background = background
        self._generations: dict[int, _Generation] = {}
        self._boxes: dict[int, Outbox] = {}  # by the number that the filter role of today gave them
        self._reports: dict[int, weakref.ReferenceType[Reports]] = {}  # by session
        self._paths: weakref.WeakKeyDictionary[Reports, tuple[Path, str]] = weakref.WeakKeyDictionary()
        self._role = 0  # how often it was started
        self._changed = asyncio.Event()  # set for whoever waits for processors to register, and made anew

    # --- assembled by daemon ----------------------------------------------------------------------------------------

    def add(self, config: Config) -> None:
        """There may be sessions of this configuration from now on."""
        if config.generation in self._generations:
            return
        generation = self._generations[config.generation] = _Generation(config)
        if config.procs:
            self._background(self._join(generation, self._role))

    def forget(self, number: int) -> None:
        """There are no sessions of it any more."""
        self._generations.pop(number, None)
        used = {box for generation in self._generations.values() for box in generation.boxes.values()}
        self._boxes = {n: box for n, box in self._boxes.items() if box in used}

    def attached(self) -> None:
        """There is a filter role, which knows nothing of us."""
        self.lost()
        for generation in self._generations.values():
            if generation.config.procs:
                self._background(self._join(generation, self._role))

    def lost(self) -> None:
        """There is none any more: the numbers and lives that it told mean nothing."""
        self._role += 1
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.change(_ended(box.processor, "the filter role was restarted"))

    async def told(self) -> None:
        """The process ends: wait a moment until processors were told what was said so far."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                for box in list(self._boxes.values()):
                    await box.told()

    async def _join(self, generation: _Generation, role: int) -> None:
        while role == self._role and self._generations.get(generation.config.generation) is generation:
            try:
                found = await self._filters.join(generation.config.generation)
            except PillarboxError as error:
                self._log.debug(f"filters: {error}")
                await asyncio.sleep(AGAIN)
                continue
            if role == self._role:
                self._joined(generation, found)
            return

    def _joined(self, generation: _Generation, found: list[Processor]) -> None:
        for processor in found:
            box = self._boxes.get(processor.number)
            if box is None:
                box = self._boxes[processor.number] = self._box(processor)
            former = generation.boxes.get(processor.name)
            if former is not None:
                box.change(_remembering(box.processor, former.processor))
            generation.boxes[processor.name] = box
            if processor.life >= box.processor.life:  # else `changed` said since what has become of it
                self._change(box, processor)
        self._refresh()

    def _box(self, processor: Processor) -> Outbox:
        return Outbox(
            processor=_ended(processor, ""),
            filters=self._filters,
            log=self._log,
            now=self._now,
            background=self._background,
        )

    # --- roles.filters.Filtered -------------------------------------------------------------------------------------

    def answered(self, number: int, life: int, answers: list[Answer]) -> Coroutine[Any, Any, None]:
        """What a processor answered: taken at once, not when there is time to wait for the call.

        Returns when there is room for more of the messages that are in it.
        """
        box = self._boxes.get(number)
        flows: list[Flow] = []
        if box is not None and box.processor.life == life:
            for answer in answers:
                if isinstance(answer, Said):
                    self._take_said(box.processor.name, answer)
            flows = box.take(answers)
        return self._drained(dict.fromkeys(flows))

    async def _drained(self, flows: Iterable[Flow]) -> None:
        with suppress(TimeoutError):  # a message that is stuck may hold up the others only so far
            async with asyncio.timeout(HOLD_UP):
                for flow in flows:
                    await flow.drained()

    async def changed(self, processors: list[Processor]) -> None:
        """These were started, registered, or ended."""
        for processor in processors:
            box = self._boxes.get(processor.number)
            if box is None:
                box = self._boxes[processor.number] = self._box(processor)
            self._change(box, processor)
        self._refresh()

    def _take_said(self, name: str, said: Said) -> None:
        found = self._reports.get(said.session)
        reports = found() if found is not None else None
        if reports is not None:
            reports.filter_report("proc", name, said.text)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def path(self, generation: int, filter_name: str) -> Path:
        """What sessions of a listener or relay action with this filter ("": none) go through."""
        known = self._generations[generation]
        found = known.paths.get(filter_name)
        if found is None:
            found = known.paths[filter_name] = Path(
                config=known.config, filter_name=filter_name, boxes=known.boxes, random64=self._random64
            )
        return found

    def reports(self, generation: int, subsystem: str, filter_name: str, session: int) -> Reports | None:
        """The reports of a session; None where nobody listens. It is known as long as somebody keeps them."""
        if generation not in self._generations:
            return None
        path = self.path(generation, filter_name)
        if not path.may_listen(subsystem):
            return None
        reports = Reports(subsystem=subsystem, session=session, listeners=path.listeners(subsystem), now=self._now)
        self._paths[reports] = path, subsystem
        self._reports[session] = weakref.ref(reports, lambda _: self._reports.pop(session, None))
        return reports

    async def registered(self, path: Path) -> bool:
        """Wait until the processors of a path have registered, or failed to; False: one that is needed has not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while path.awaited():
                    await self._changed.wait()
        return not path.missing()

    async def audience(self, config: Config) -> None:
        """Wait a while until those have registered that may listen to what leaves, relayed or delivered."""
        names = {"", *(action.filter for action in config.actions.values() if isinstance(action, Relay))}
        paths = [(MDA, self.path(config.generation, "")), *((SMTP_OUT, self.path(config.generation, n)) for n in names)]
        with suppress(TimeoutError):
            async with asyncio.timeout(AUDIENCE):
                while any(path.may_soon_listen(subsystem) for subsystem, path in paths):
                    await self._changed.wait()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _change(self, box: Outbox, processor: Processor) -> None:
        begins = processor.life not in (0, box.processor.life)
        box.change(_remembering(processor, box.processor))
        if begins:
            self._introduce(box)

    def _introduce(self, box: Outbox) -> None:
        """Sessions that were there before a life tell it who they are; what they are about they began without it."""
        name = box.processor.name
        for reports, (path, subsystem) in list(self._paths.items()):
            if name in path.names(subsystem) and path.has(name, box):
                reports.introduce(box.report, path.events(subsystem, name))

    def _refresh(self) -> None:
        for generation in self._generations.values():
            for path in generation.paths.values():
                path.refresh()
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()


def _remembering(processor: Processor, former: Processor) -> Processor:
    """With what it registered before the filter role was restarted: nobody is left out for not being back yet."""
    if processor.known or not former.known:
        return processor
    return msgspec.structs.replace(processor, known=True, failed=False, phases=former.phases, events=former.events)


def _ended(processor: Processor, why: str) -> Processor:
    return Processor(
        number=processor.number,
        name=processor.name,
        known=processor.known,
        failed=processor.failed,
        phases=processor.phases,
        events=processor.events,
        fail_open=processor.fail_open,
        timeout=processor.timeout,
        why=why,
    )
