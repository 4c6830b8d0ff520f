"""Filter: the processors of all configurations, their programs asked of the parent."""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import cast

from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.programs.handed import HandedProgram, HandedPrograms
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import DISPATCHER, PARENT, QUEUE, PerCaller
from pillarbox.filters.service import FilterService
from pillarbox.log import Log
from pillarbox.roles.filters import Filtered
from pillarbox.roles.parent import FilterPrograms


class FilterRole(BaseRole):
    """Implements `daemon.role.Role`: the processors of each configuration that is in use."""

    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        programs = cast(FilterPrograms, peers.proxy("filter_programs", PARENT))
        self._programs = HandedPrograms()

        def program_of(number: int, generation: int, name: str) -> HandedProgram:
            return self._programs.program(
                lambda token: programs.start_processor(number, generation, name, token),
                lambda grace: programs.stop_processor(number, grace),
            )

        self._configs = [boot.generation.config, *(older.config for older in boot.older)]
        self._filters = FilterService(
            program_of=program_of,
            filtered={
                n: cast(Filtered, peers.proxy("filtered", n)) for n in peers.ports if kind(n) in (DISPATCHER, QUEUE)
            },
            log=log,
            now=time.time,
        )
        self.services["filters"] = PerCaller(self._filters.serve)

    def add_program(self, token: int, connection: socket.socket) -> None:
        """The program of a processor that was asked for."""
        self._programs.add(token, connection)

    async def start(self) -> None:
        """Start the processors of all configurations, those that define one alike once."""
        self.run("answers", self._filters.run())
        await asyncio.gather(*(self._filters.add_config(config) for config in self._configs))
        self._filters.use_config(self._configs[0].generation)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Start those that are new."""
        await self._filters.add_config(generation.config)

    def commit(self, number: int) -> None:
        """It is the current one: processors of it that are down are tried again."""
        self._filters.use_config(number)

    def abort(self, number: int) -> None:
        """End those that were started for it."""
        self.forget(number)

    def forget(self, number: int) -> None:
        """End those that no other configuration defines."""
        self.run(f"end filters of configuration {number}", self._filters.drop_config(number))

    def peer_lost(self, peer: str) -> None:
        """What it was not told yet is for nobody."""
        self._filters.teller_lost(peer)

    async def stop(self) -> None:
        """End all processors."""
        await self._filters.close()
        await super().stop()
