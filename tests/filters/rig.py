"""The filter role with real processors: started by the parent's own classes, in this process, as whoever we are."""

import asyncio
import io
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pillarbox.conf.model import Config, EventReport, Filter, Listener, Proc, SmtpOptions
from pillarbox.daemon.programs.filters import FilterPrograms
from pillarbox.daemon.programs.handed import HandedProgram, HandedPrograms
from pillarbox.daemon.programs.programs import Programs
from pillarbox.filters.processor import Patience
from pillarbox.filters.service import FilterService
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Filtered, Lines, Output, Processor, Question, Report, Result, Status, Told

SCRIPT = Path(__file__).with_name("misbehaving.py")
HASTY = Patience(start=10.0, pauses=(0.0, 0.05, 0.1, 0.1), within=60.0, grace=2.0)
_counters = itertools.count()


def command(folder: Path, *modes: str) -> str:
    """A processor with a mode for each of its starts."""
    return f"{sys.executable} {SCRIPT} {','.join(modes)} {folder}/starts-{next(_counters)}"


def configuration(
    *procs: Proc, generation: int = 1, reports: tuple[EventReport, ...] = (), max_message_size: int = 35_000_000
) -> Config:
    """One in which a listener is filtered by all of them that are not only reported to."""
    filters = {p.name: Filter(name=p.name, kind="proc", proc=p.name) for p in procs} if not reports else {}
    chain = {"all": Filter(name="all", kind="chain", chain=tuple(filters))} if filters else {}
    return Config(
        hostname="mail.example.org",
        generation=generation,
        procs={p.name: p for p in procs},
        filters=filters | chain,
        listeners=(Listener(id=1, filter="all" if filters else ""),),
        reports=reports,
        smtp=SmtpOptions(max_message_size=max_message_size),
    )


class Dispatcher:
    """Implements `Filtered`: keeps what it is told. While `busy` it takes nothing."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.processors: dict[int, Processor] = {}
        self.busy = asyncio.Event()
        self.busy.set()
        self.arrived = asyncio.Condition()

    async def answered(self, number: int, life: int, answers: list[Answer]) -> None:
        """See `Filtered`."""
        await self.busy.wait()
        self.answers += answers
        async with self.arrived:
            self.arrived.notify_all()

    async def changed(self, processors: list[Processor]) -> None:
        """See `Filtered`."""
        for processor in processors:
            self.processors[processor.number] = processor
        async with self.arrived:
            self.arrived.notify_all()

    async def until(self, true: Callable[[], bool], seconds: float = 15) -> None:
        """Wait for what is told to make this so."""
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(true)

    def message(self, token: int) -> bytes:
        """What was made of a message so far."""
        return b"".join(a.data for a in self.answers if isinstance(a, Output) and a.token == token)


class Rig:
    """The role, with two dispatchers, and what belongs to it. `filtered`: instead of the first of them."""

    def __init__(self, *configs: Config, patience: Patience = HASTY, filtered: Filtered | None = None) -> None:
        self.stream = io.StringIO()
        log = Log(self.stream)
        self.configs = {config.generation: config for config in configs}
        self.programs = FilterPrograms(
            configs=self.configs.get, programs=Programs(account=None, log=log, says_end=False), account=None
        )
        handed = HandedPrograms()
        self.programs.hand = lambda token, connection: handed.add(token, connection.dup())

        def program_of(number: int, generation: int, name: str) -> HandedProgram:
            return handed.program(
                lambda token: self.programs.start_processor(number, generation, name, token),
                lambda grace: self.programs.stop_processor(number, grace),
            )

        self.dispatcher, self.other = Dispatcher(), Dispatcher()
        self.filters = FilterService(
            program_of=program_of,
            filtered={"dispatcher.0": filtered or self.dispatcher, "dispatcher.1": self.other},
            log=log,
            now=time.time,
            patience=patience,
        )
        self._tokens = itertools.count(1)

    @property
    def log(self) -> str:
        """What was logged."""
        return self.stream.getvalue()

    async def says(self, text: str, seconds: float = 15) -> None:
        """Wait until the log says so."""
        async with asyncio.timeout(seconds):
            while text not in self.log:  # noqa: ASYNC110 - the log is no event
                await asyncio.sleep(0.02)

    async def join(self, generation: int = 1) -> Processor:
        """Both dispatchers join; the first processor."""
        await self.filters.serve("dispatcher.1").join(generation)
        processors = await self.filters.serve("dispatcher.0").join(generation)
        for processor in processors:
            self.dispatcher.processors[processor.number] = processor
        return processors[0]

    def now(self, processor: Processor) -> Processor:
        """As it is known by now."""
        return self.dispatcher.processors[processor.number]

    async def tell(self, processor: Processor, *items: Told, teller: str = "dispatcher.0") -> None:
        """See `Filters`."""
        await self.filters.serve(teller).tell(processor.number, processor.life, list(items))

    def question(self, session: int = 1, phase: str = "mail-from", param: str = "a@b") -> Question:
        """A new one."""
        return Question(phase, session, next(self._tokens), 1576146008.006099, param)

    def lines(self, data: bytes, *, session: int = 1, token: int = 0, last: bool = True) -> Lines:
        """Some of a message: of a new one without a token."""
        return Lines(session, token or next(self._tokens), 1576146008.006099, data, last)

    async def answer(self, question: Question | Lines, seconds: float = 15) -> Result:
        """What is answered to it."""

        def found() -> list[Result]:
            return [a for a in self.dispatcher.answers if isinstance(a, Result) and a.token == question.token]

        await self.dispatcher.until(lambda: bool(found()), seconds)
        return found()[0]

    async def ask(self, processor: Processor, session: int = 1, phase: str = "mail-from") -> Result:
        """A question, answered."""
        question = self.question(session, phase)
        await self.tell(processor, question)
        return await self.answer(question)

    async def status(self) -> Status:
        """Of the first processor."""
        return (await self.filters.show())[0]


def event(name: str, session: int = 1, text: str = "") -> Report:
    """An event of smtp-in."""
    return Report("smtp-in", name, session, 1576146008.006099, text)


def play(
    body: Callable[[Rig], Awaitable[None]], *configs: Config, patience: Patience = HASTY, seconds: float = 40
) -> Rig:
    """Run `body(rig)` with the first configuration in use; no processor is left."""

    async def bounded() -> Rig:
        rig = Rig(*configs, patience=patience)
        async with asyncio.timeout(seconds):
            running = asyncio.ensure_future(rig.filters.run())
            try:
                await rig.filters.add_config(configs[0])
                rig.filters.use_config(configs[0].generation)
                await body(rig)
            finally:
                await rig.filters.close()
                running.cancel()
                await asyncio.wait({running})
        assert not rig.programs._programs._running
        return rig

    return asyncio.run(bounded())


def gone(pid: int) -> bool:
    """Is there no such process, but perhaps as a zombie?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
