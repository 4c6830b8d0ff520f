"""Lookup: the ruleset and its tables, credentials, DNS; programs of tables, asked of the parent."""

import socket
import time
from collections.abc import Mapping
from typing import cast

from pillarbox import places
from pillarbox.conf.model import Config
from pillarbox.daemon.assembly.plans import Plans
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.programs.handed import HandedProgram, HandedPrograms
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import DISPATCHER, PARENT
from pillarbox.dns.resolver import Resolver
from pillarbox.log import Log
from pillarbox.roles.parent import Programs, System
from pillarbox.routing.lookup import Lookup


class LookupRole(BaseRole):
    """Implements `daemon.role.Role`: `Lookup`, its tables and the programs that it asks."""

    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        programs = cast(Programs, peers.proxy("programs", PARENT))
        self._programs = HandedPrograms()

        def program_of(generation: int, table: str) -> HandedProgram:
            return self._programs.program(
                lambda token: programs.start_table(generation, table, token),
                lambda grace: programs.stop_table(generation, table),
            )

        self._addresses = frozenset(boot.generation.local_addresses)
        self._prepared: dict[int, tuple[Generation, Resolver]] = {}
        self._lookup = Lookup(
            config=boot.generation.config,
            system=cast(System, peers.proxy("system", PARENT)),
            resolver=_resolver(boot.generation.config),
            seal_key=boot.seal_key,
            log=log,
            now=time.time,
            local_addresses=lambda: self._addresses,
            libexec=places.libexec(),
            plans=Plans(libexec=places.libexec(), now=time.time),
            program_of=program_of,
        )
        for older in boot.older:
            self._lookup.add_config(older.config)
        self.services["lookup"] = self._lookup

    def add_program(self, token: int, connection: socket.socket) -> None:
        """The program of a table that was asked for."""
        self._programs.add(token, connection)

    async def start(self) -> None:
        """Open the tables."""
        self._lookup.open()

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Compile tables and rules beside those in force."""
        self._lookup.add_config(generation.config)
        self._prepared[generation.number] = generation, _resolver(generation.config)

    def commit(self, number: int) -> None:
        """What names no configuration goes by this one."""
        generation, resolver = self._prepared.pop(number)
        # The machine's addresses are what they are, whatever configuration a question goes by.
        self._addresses = frozenset(generation.local_addresses)
        self._lookup.use_config(number, resolver)

    def abort(self, number: int) -> None:
        """Close what was opened for it."""
        self._prepared.pop(number, None)
        self.forget(number)

    def forget(self, number: int) -> None:
        """Close its tables."""
        self.run(f"close configuration {number}", self._lookup.drop_config(number))

    def peer_lost(self, peer: str) -> None:
        """What a dispatcher held of the limits of the whole server is free again."""
        if kind(peer) == DISPATCHER:
            self._lookup.release(peer)

    async def stop(self) -> None:
        """End, and close all tables."""
        await super().stop()
        await self._lookup.close_tables()
        self._lookup.close()


def _resolver(config: Config) -> Resolver:
    """Asks whom the configuration, else resolv.conf, names now."""

    chosen = config.resolver
    return Resolver(
        nameservers=[(chosen.address, chosen.port)] if chosen.address else None,
        now=time.monotonic,
    )
