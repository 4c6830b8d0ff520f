"""The filter role: the processors of all configurations that are in use, and who talks to them.

A processor that several configurations define alike is one process, so that a reload leaves it running; it is ended
when the last of them is forgotten. Dispatchers are told of every change (`Filtered.changed`).
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pillarbox.conf.model import Config
from pillarbox.errors import TempFail
from pillarbox.filters.asked import Asked
from pillarbox.filters.processor import Link, Patience
from pillarbox.filters.protocol import FilterProtocol
from pillarbox.filters.supervisor import Program, Supervised
from pillarbox.filters.tellers import Teller
from pillarbox.filters.uses import Use, processors_of
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Filtered, Filters, Processor, Status, Told

REGISTERING = 10.0  # seconds that who joins, a start and a reload wait for processors to register
_PREPARED = 10.0  # seconds until a configuration that a peer has already must be here, too
_AGAIN = 0.2  # seconds: see `join`


class FilterService:
    """The role; `serve` gives each peer what it may call.

    `program_of(number, generation, name)`: who starts a processor of a configuration. `filtered`: the dispatchers.
    `now()`: epoch seconds.
    """

    def __init__(
        self,
        *,
        program_of: Callable[[int, int, str], Program],
        filtered: Mapping[str, Filtered],
        log: Log,
        now: Callable[[], float],
        patience: Patience | None = None,
    ) -> None:
        self._program_of = program_of
        self._tellers = {name: Teller(name=name, filtered=peer, log=log) for name, peer in filtered.items()}
        self._log = log
        self._now = now
        self._patience = patience or Patience()
        self._numbers = itertools.count(1)
        # Another number after a start anew of this role: what was told to a life before that reaches none of now.
        self._lives = itertools.count(int(now() * 1000))
        self._running: dict[Use, Supervised] = {}
        self._by_number: dict[int, Supervised] = {}
        self._generations: dict[int, list[Use]] = {}
        self._made: dict[int, dict[str, str]] = {}  # of each generation: which processor a filter is made of
        self._added = asyncio.Condition()
        self._joined: set[str] = set()

    async def run(self) -> None:
        """Pass answers on, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for teller in self._tellers.values():
                group.create_task(teller.run())

    # -- configurations

    async def add_config(self, config: Config) -> None:
        """Start what it needs and does not run; returns when that has registered, or could not, or takes too long."""
        uses = self._generations[config.generation] = processors_of(config)
        self._made[config.generation] = {f.name: f.proc for f in config.filters.values() if f.proc}
        for use in uses:
            if use not in self._running:
                self._running[use] = self._start(use, config.generation)
        async with self._added:
            self._added.notify_all()
        await self._settled(config.generation)

    def use_config(self, number: int) -> None:
        """It is the current one: what is down is tried again."""
        for use in self._generations[number]:
            if self._running[use].down:
                self._running[use].restart()

    async def drop_config(self, number: int) -> None:
        """End the processors that no other configuration has."""
        dropped = self._generations.pop(number, [])
        self._made.pop(number, None)
        kept = set(itertools.chain(*self._generations.values()))
        ended = [self._running.pop(use) for use in dropped if use not in kept and use in self._running]
        for supervised in ended:
            del self._by_number[supervised.number]
        await asyncio.gather(*(supervised.close() for supervised in ended))
        for teller in self._tellers.values():
            for supervised in ended:
                teller.forget(supervised.number)

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(self.drop_config(number) for number in list(self._generations)))

    def _start(self, use: Use, generation: int) -> Supervised:
        number = next(self._numbers)

        def connect(life: int, registered: Callable[[Link], None]) -> Link:
            return self._connect(use, number, life, registered)

        supervised = Supervised(
            number=number,
            proc=use.proc,
            program=self._program_of(number, generation, use.proc.name),
            connect=connect,
            lives=lambda: next(self._lives),
            changed=self._changed,
            now=self._now,
            log=self._log,
            patience=self._patience,
        )
        self._by_number[number] = supervised
        supervised.open()
        return supervised

    def _connect(self, use: Use, number: int, life: int, registered: Callable[[Link], None]) -> Link:
        def deliver(teller: str, answer: Answer) -> None:
            if teller in self._tellers:
                self._tellers[teller].answered(number, life, answer, link)

        link = Link(
            name=use.proc.name,
            protocol=FilterProtocol(
                subsystems=use.subsystems,
                admd=use.admd,
                version=use.proc.protocol,
                unasked=use.unasked,
                ready=bool(use.reports) and not use.filters,
            ),
            asked=Asked(max_growth=use.max_size),
            timeout=float(use.proc.timeout),
            start=self._patience.start,
            on_registered=registered,
            deliver=deliver,
            log=self._log,
        )
        return link

    def _changed(self, supervised: Supervised) -> None:
        for name in self._joined:
            self._tellers[name].changed([supervised.processor()])

    async def _settled(self, generation: int) -> None:
        waiting = [self._running[use].settled() for use in self._generations.get(generation, ())]
        try:
            async with asyncio.timeout(REGISTERING):
                await asyncio.gather(*waiting)
        except TimeoutError:
            uses = self._generations.get(generation, ())
            late = ", ".join(use.proc.name for use in uses if not self._running[use].known)
            self._log.warn(f"filter {late}: not registered after {REGISTERING:g} s: not waited for any longer")

    # -- peers

    def teller_lost(self, name: str) -> None:
        """Its process is gone, and all its sessions, which processors hear: they would remember them for ever."""
        self._joined.discard(name)
        if name in self._tellers:
            self._tellers[name].gone()
        for supervised in self._running.values():
            if supervised.link is not None:
                supervised.link.teller_is_gone(name, self._now())

    def serve(self, name: str) -> Filters:
        """What the peer of this name calls."""
        return _Served(self, name)

    async def join(self, teller: str, generation: int) -> list[Processor]:
        """See `Filters`; `teller`: who asks."""
        try:
            async with asyncio.timeout(_PREPARED), self._added:
                await self._added.wait_for(lambda: generation in self._generations)
        except TimeoutError:
            raise TempFail(f"filters of configuration {generation}: there is no such configuration") from None
        await self._settled(generation)
        if teller in self._tellers:
            self._joined.add(teller)
            # What changes while this answer is on its way may overtake it: said once more.
            asyncio.get_running_loop().call_later(_AGAIN, self._say_again, teller, generation)
        return self._processors(generation)

    def _processors(self, generation: int) -> list[Processor]:
        return [self._running[use].processor() for use in self._generations.get(generation, ())]

    def _say_again(self, teller: str, generation: int) -> None:
        processors = self._processors(generation)
        if teller in self._joined and processors:
            self._tellers[teller].changed(processors)

    async def tell(self, teller: str, number: int, life: int, items: list[Told]) -> None:
        """See `Filters`; `teller`: who says it."""
        supervised = self._by_number.get(number)
        if supervised is None:
            raise TempFail("there is no such filter any more")
        await supervised.link_of(life).tell(teller, items)

    async def show(self) -> list[Status]:
        """See `Filters`."""
        return [supervised.status() for supervised in self._running.values()]

    async def restart(self, name: str) -> bool:
        """See `Filters`."""
        names = {name} | {made[name] for made in self._made.values() if name in made}
        found = [s for use, s in self._running.items() if use.proc.name in names]
        for supervised in found:
            supervised.restart()
        return bool(found)

    async def log_level(self, verbose: bool) -> None:
        """See `Filters`."""
        self._log.verbose = verbose


class _Served:
    """Implements `roles.filters.Filters` for one peer: its name comes from the link, never from what it says."""

    def __init__(self, service: FilterService, name: str) -> None:
        self._service = service
        self._name = name
        self.show = service.show
        self.restart = service.restart
        self.log_level = service.log_level

    def join(self, generation: int) -> Coroutine[Any, Any, list[Processor]]:
        """See `Filters`."""
        return self._service.join(self._name, generation)

    def tell(self, number: int, life: int, items: list[Told]) -> Coroutine[Any, Any, None]:
        """See `Filters`."""
        return self._service.tell(self._name, number, life, items)
