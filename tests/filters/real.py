"""A server in this process whose filters are programs: the filter role, and who starts programs, are the real ones."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pillarbox.conf.model import Config, Filter, Listener, Proc
from pillarbox.filters.processor import Patience
from pillarbox.filters.service import FilterService
from pillarbox.roles.filters import Answer, Filtered, Processor, Told
from tests.server.memory import World, world

from .rig import HASTY, Rig

SCRIPTED = Path(__file__).parents[1] / "corpus" / "fixtures" / "filters" / "scripted.py"


class Between:
    """Stands between the filter role and a dispatcher, each of which needs the other to begin with."""

    def __init__(self) -> None:
        self.filtered: Filtered | None = None
        self.role: FilterService | None = None

    async def join(self, generation: int) -> list[Processor]:
        """See `Filters`."""
        assert self.role is not None
        return await self.role.serve("dispatcher.0").join(generation)

    async def tell(self, number: int, life: int, items: list[Told]) -> None:
        """See `Filters`."""
        assert self.role is not None
        await self.role.serve("dispatcher.0").tell(number, life, items)

    async def answered(self, number: int, life: int, answers: list[Answer]) -> None:
        """See `Filtered`."""
        assert self.filtered is not None
        await self.filtered.answered(number, life, answers)

    async def changed(self, processors: list[Processor]) -> None:
        """See `Filtered`."""
        assert self.filtered is not None
        await self.filtered.changed(processors)


class Scripted:
    """A processor that does what a script says (`scripted.py`), and what it read and wrote."""

    def __init__(self, folder: Path, name: str = "f", **script: Any) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.script = folder / f"{name}.json"
        self.write(**script)

    def write(self, **script: Any) -> None:
        """What it does from its next start on."""
        self.script.write_text(json.dumps({"log": str(self.log)} | script))

    @property
    def proc(self) -> Proc:
        """As a configuration has it."""
        return Proc(name=self.name, command=f"{sys.executable} {SCRIPTED} {self.script}", timeout=2)

    def read(self) -> list[str]:
        """The lines that it was told, without version and time."""
        lines = self.log.read_text(encoding="latin-1").splitlines() if self.log.exists() else []
        return ["|".join(line[2:].split("|")[4:]) for line in lines if line.startswith(("< report", "< filter"))]


def configuration(*scripted: Scripted, listener: Listener | None = None, **changes: Any) -> Config:
    """A listener with a chain of them. `changes`: of their `Proc`."""
    procs = {s.name: Proc(**{f: getattr(s.proc, f) for f in s.proc.__struct_fields__} | changes) for s in scripted}
    filters = {name: Filter(name=name, kind="proc-exec", proc=name) for name in procs}
    filters["chain"] = Filter(name="chain", kind="chain", chain=tuple(procs))
    return Config(
        hostname="host.example.org",
        listeners=(listener or Listener(id=1, hostname="mail.example.org", filter="chain"),),
        procs=procs,
        filters=filters,
    )


def run(
    scenario: Callable[[World, Rig], Awaitable[None]],
    config: Config,
    *,
    patience: Patience = HASTY,
    **arguments: Any,
) -> None:
    """Play a scenario against a server with these filters; none is left behind."""

    async def inside() -> None:
        between = Between()
        rig = Rig(config, patience=patience, filtered=between)
        between.role = rig.filters
        running = asyncio.ensure_future(rig.filters.run())
        try:
            await rig.filters.add_config(config)
            rig.filters.use_config(config.generation)
            async with world(config=config, filters=between, **arguments) as w:
                await scenario(w, rig)
        finally:
            await rig.filters.close()
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(inside())
