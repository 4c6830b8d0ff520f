"""What each role is made of: its objects, joined to its peers. The same in one process and in several."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pillarbox import places
from pillarbox.conf.model import Config
from pillarbox.daemon.material import ClientMaterial
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.role import BaseRole, Role
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import CONTROL, DISPATCHER, FILTER, LOOKUP, PARENT, QUEUE, PerCaller
from pillarbox.log import Log
from pillarbox.roles.delivery import Agent, Outgoing
from pillarbox.roles.dispatcher import Incoming
from pillarbox.roles.filters import MDA, SMTP_OUT, Filtered, Filters
from pillarbox.roles.lookup import Lookup as LookupRole
from pillarbox.roles.parent import FilterPrograms, Programs, System
from pillarbox.roles.queue import Queue as QueueRole

if TYPE_CHECKING:
    from ssl import SSLContext

    from pillarbox.dns.resolver import Resolver
    from pillarbox.filters.processors import Processors


class _Lookup(BaseRole):
    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        from pillarbox.daemon.handed import HandedProgram, HandedPrograms  # noqa: PLC0415 - each process loads what its role needs
        from pillarbox.daemon.plans import Plans  # noqa: PLC0415
        from pillarbox.routing.lookup import Lookup  # noqa: PLC0415

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
        self._programs.add(token, connection)

    async def start(self) -> None:
        self._lookup.open()

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        self._lookup.add_config(generation.config)
        self._prepared[generation.number] = generation, _resolver(generation.config)

    def commit(self, number: int) -> None:
        generation, resolver = self._prepared.pop(number)
        # The machine's addresses are what they are, whatever configuration a question goes by.
        self._addresses = frozenset(generation.local_addresses)
        self._lookup.use_config(number, resolver)

    def abort(self, number: int) -> None:
        self._prepared.pop(number, None)
        self.forget(number)

    def forget(self, number: int) -> None:
        self.run(f"close configuration {number}", self._lookup.drop_config(number))

    def peer_lost(self, peer: str) -> None:
        if kind(peer) == DISPATCHER:
            self._lookup.release(peer)

    async def stop(self) -> None:
        await super().stop()
        await self._lookup.close_tables()
        self._lookup.close()


def _resolver(config: Config) -> "Resolver":
    """Asks whom the configuration, else resolv.conf, names now."""
    from pillarbox.dns.resolver import Resolver  # noqa: PLC0415 - each process loads what its role needs

    chosen = config.resolver
    return Resolver(
        nameservers=[(chosen.address, chosen.port)] if chosen.address else None,
        now=time.monotonic,
    )


class _Queue(BaseRole):
    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        from pathlib import Path  # noqa: PLC0415 - each process loads what its role needs

        from pillarbox.bounce import Bouncer  # noqa: PLC0415
        from pillarbox.daemon.queueservice import QueueService  # noqa: PLC0415
        from pillarbox.mda.deliveries import Deliveries  # noqa: PLC0415
        from pillarbox.mda.events import DeliveryEvents  # noqa: PLC0415
        from pillarbox.mta.relay import Relays  # noqa: PLC0415
        from pillarbox.queue.sqlite import SqliteStore  # noqa: PLC0415

        config = boot.generation.config
        lookup = cast(LookupRole, peers.proxy("lookup", LOOKUP))
        self._prepared: dict[int, Config] = {}
        self._config = config
        self._restarted = boot.restarted
        self._agent = cast(Agent, peers.proxy("agent", PARENT))
        self._dispatchers = {
            name: cast(Outgoing, peers.proxy("outgoing", name)) for name in peers.ports if kind(name) == DISPATCHER
        }
        self._bouncer = Bouncer(config=config, lookup=lookup, log=log, now=time.time)
        self._processors = processors = _processors(self, peers, log)
        processors.add(config)
        self._events = DeliveryEvents(
            config=config,
            reports_for=lambda generation, session: processors.reports(generation, MDA, "", session),
            now=time.time,
        )
        self._queue = QueueService(
            store=SqliteStore(Path(boot.state, "queue"), monotonic=time.monotonic, on_fatal=self.fatal),
            config=config,
            log=log,
            seal_key=boot.seal_key,
            bouncer=self._bouncer,
            now=time.time,
            monotonic=time.monotonic,
            on_fatal=self.fatal,
            paused=[p for p in boot.paused if p != "smtp"],
            witness=self._events,
        )
        common: dict[str, Any] = {
            "config": config,
            "lookup": lookup,
            "settle": self._queue.settle,
            "ready": self._queue.ready,
            "log": log,
            "now": time.time,
        }
        self._relays = Relays(
            dispatchers=list(self._dispatchers.values()),
            monotonic=time.monotonic,
            lost=self._queue.lost,
            schedule=self._queue.schedule_soon,
            **common,
        )
        self._deliveries = Deliveries(agent=self._agent, **common)
        for source, dest in boot.blocked:
            self._relays.pause_route(source, dest, True)
        self._queue.join(self._relays, self._deliveries)
        self.services |= {"queue": self._queue, "relays": self._relays, "filtered": processors}

    async def start(self) -> None:
        self.run("relays", self._relays.run())
        self.run("deliveries", self._deliveries.run())
        if self._restarted:
            await self._queue.ask_in_flight(list(self._dispatchers.values()), self._agent)
        self.run("start of the queue", self._begin())

    async def _begin(self) -> None:
        """What was queued leaves when those are there who listen to that; new mail is taken meanwhile."""
        await self._processors.audience(self._config)
        await self._queue.start()

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        self._prepared[generation.number] = generation.config
        self._processors.add(generation.config)

    def commit(self, number: int) -> None:
        config = self._prepared.pop(number)
        self._queue.configure(config)
        self._events.configure(config)
        self._bouncer.configure(config)
        self._relays.reconfigure(config)
        self._deliveries.configure(config)

    def abort(self, number: int) -> None:
        self._prepared.pop(number, None)
        self.forget(number)

    def forget(self, number: int) -> None:
        self._processors.forget(number)

    def in_use(self) -> set[int]:
        return self._relays.generations() | self._deliveries.generations()

    async def drain(self) -> None:
        for what in ("mda", "mta"):
            await self._queue.pause(what, True)

    async def stop(self) -> None:
        await super().stop()
        await self._queue.close()

    def peer_lost(self, peer: str) -> None:
        if peer in self._dispatchers:
            self._relays.remove_dispatcher(self._dispatchers[peer])
        elif peer == FILTER:
            self._processors.lost()

    def peer_attached(self, peer: str) -> None:
        if peer in self._dispatchers:
            self._relays.add_dispatcher(self._dispatchers[peer])
        elif peer == FILTER:
            self._processors.attached()


class _Filter(BaseRole):
    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        from pillarbox.daemon.handed import HandedProgram, HandedPrograms  # noqa: PLC0415 - each process loads its own
        from pillarbox.filters.service import FilterService  # noqa: PLC0415

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
        self._programs.add(token, connection)

    async def start(self) -> None:
        self.run("answers", self._filters.run())
        await asyncio.gather(*(self._filters.add_config(config) for config in self._configs))
        self._filters.use_config(self._configs[0].generation)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        await self._filters.add_config(generation.config)

    def commit(self, number: int) -> None:
        self._filters.use_config(number)

    def abort(self, number: int) -> None:
        self.forget(number)

    def forget(self, number: int) -> None:
        self.run(f"end filters of configuration {number}", self._filters.drop_config(number))

    def peer_lost(self, peer: str) -> None:
        self._filters.teller_lost(peer)

    async def stop(self) -> None:
        await self._filters.close()
        await super().stop()


def _processors(role: BaseRole, peers: Peers, log: Log) -> "Processors":
    """What a role tells processors by."""
    from pillarbox.filters.processors import Processors  # noqa: PLC0415 - each process loads what its role needs

    return Processors(
        filters=cast(Filters, peers.proxy("filters", FILTER)),
        log=log,
        now=time.time,
        random64=lambda: secrets.randbits(64) or 1,
        background=lambda work: role.run("filters", work),
    )


class _Dispatcher(BaseRole):
    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        from pillarbox.mta.session import OutgoingSessions  # noqa: PLC0415 - each process loads what its role needs
        from pillarbox.roles.delivery import Relays  # noqa: PLC0415
        from pillarbox.server.listener import Server  # noqa: PLC0415

        lookup = cast(LookupRole, peers.proxy("lookup", LOOKUP))
        queue = cast(QueueRole, peers.proxy("queue", QUEUE))
        self._listening = boot.generation.listening
        self._prepared: dict[int, _NewDoors] = {}
        self._material = ClientMaterial([boot.generation, *boot.older])
        self._processors = _processors(self, peers, log)
        for older in boot.older:
            self._processors.add(older.config)
        self._server = Server(
            config=boot.generation.config,
            lookup=lookup,
            queue=queue,
            log=log,
            now=time.time,
            holder=peers.me,
            tls_contexts=_contexts(boot.generation),
            processors=self._processors,
            control_socket=places.control_socket(boot.state),
            local_addresses=frozenset(boot.generation.local_addresses),
        )
        self._paused = "smtp" in boot.paused
        self._sockets: dict[str, socket.socket] = {}
        self._outgoing = OutgoingSessions(
            lookup=lookup,
            queue=queue,
            relays=cast(Relays, peers.proxy("relays", QUEUE)),
            log=log,
            now=time.time,
            tls_material=self._material,
            reports_for=lambda order: self._processors.reports(order.generation, SMTP_OUT, order.filter, order.session),
        )
        self.services |= {"incoming": self._server, "outgoing": self._outgoing, "filtered": self._processors}

    def add_socket(self, address: str, listening: socket.socket) -> None:
        self._sockets[address] = listening

    async def start(self) -> None:
        self.run("outgoing", self._outgoing.run())
        if self._paused:
            await self._server.pause(True)
        # Accepted only now that there is somebody to ask; until then clients wait in the backlog.
        for address, listening in self._sockets.items():
            self._server.add_socket(address, self._listening[address], listening)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        # First of all, so that `abort` closes what came along.
        prepared = self._prepared[generation.number] = _NewDoors(generation, dict(sockets))
        prepared.contexts = _contexts(generation)
        self._material.add(generation)
        self._processors.add(generation.config)  # queue may order sessions by it before we go by it

    def commit(self, number: int) -> None:
        prepared = self._prepared.pop(number)
        generation = prepared.generation
        self._server.configure(
            generation.config,
            prepared.contexts,
            listening=generation.listening,
            local_addresses=frozenset(generation.local_addresses),
        )
        for address, listening in prepared.sockets.items():
            self._server.add_socket(address, generation.listening[address], listening)

    def abort(self, number: int) -> None:
        prepared = self._prepared.pop(number, None)
        if prepared is not None:
            for listening in prepared.sockets.values():
                listening.close()
        self._material.forget(number)
        self._processors.forget(number)

    def retire(self, number: int) -> None:
        self._server.retire(number)
        self._outgoing.retire(number)

    def forget(self, number: int) -> None:
        self._outgoing.forget(number)
        self._material.forget(number)
        self._processors.forget(number)

    def in_use(self) -> set[int]:
        return self._server.generations() | self._outgoing.generations()

    def peer_attached(self, peer: str) -> None:
        if peer == LOOKUP:
            self._server.lookup_attached()
        elif peer == FILTER:
            self._processors.attached()

    def peer_lost(self, peer: str) -> None:
        if peer == FILTER:
            self._processors.lost()

    async def drain(self) -> None:
        await asyncio.gather(self._server.drain(), self._outgoing.drain())
        await self._processors.told()


class _NewDoors:
    """What a dispatcher has prepared: new sockets, and TLS contexts of listeners by id."""

    def __init__(self, generation: Generation, sockets: dict[str, socket.socket]) -> None:
        self.generation = generation
        self.sockets = sockets
        self.contexts: dict[int, SSLContext] = {}


def _contexts(generation: Generation) -> "dict[int, SSLContext]":
    from pillarbox.server.tls import Material, build_contexts  # noqa: PLC0415 - each process loads what its role needs

    config = generation.config
    materials = {
        name: Material(cert=pair.cert, key=pair.key, dhe=config.pki[name].dhe) for name, pair in generation.pki.items()
    }
    return build_contexts(config, materials, generation.ca)


class _Control(BaseRole):
    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        from pillarbox.control.commands import Commands  # noqa: PLC0415 - each process loads what its role needs
        from pillarbox.control.server import Control, local_name  # noqa: PLC0415

        dispatchers = cast(list[Incoming], peers.proxies("incoming", DISPATCHER))
        self._listening: list[socket.socket] = []
        self._has_processors = {g.number: bool(g.config.procs) for g in (boot.generation, *boot.older)}
        self._control = Control(
            commands=Commands(
                queue=cast(QueueRole, peers.proxy("queue", QUEUE)),
                dispatchers=dispatchers,
                lookup=cast(LookupRole, peers.proxy("lookup", LOOKUP)),
                filters=cast(Filters, peers.proxy("filters", FILTER)),
                has_filters=lambda: any(self._has_processors.values()),
                system=cast(System, peers.proxy("system", PARENT)),
                log=log,
                now=time.monotonic,
            ),
            dispatchers=dispatchers,
            log=log,
            owner=os.stat(boot.state).st_uid,
            user_name=local_name,
        )

    def add_socket(self, address: str, listening: socket.socket) -> None:
        self._listening.append(listening)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        self._has_processors[generation.number] = bool(generation.config.procs)

    def abort(self, number: int) -> None:
        self.forget(number)

    def forget(self, number: int) -> None:
        self._has_processors.pop(number, None)

    async def start(self) -> None:
        for listening in self._listening:
            await self._control.start(listening)

    async def stop(self) -> None:
        await super().stop()
        await self._control.close()


Builder = Callable[[Boot, Peers, Log], Awaitable[Role]]


def _builder(role: Callable[[Boot, Peers, Log], Role]) -> Builder:
    async def build(boot: Boot, peers: Peers, log: Log) -> Role:
        # Within the running loop: some objects keep it.
        return role(boot, peers, log)

    return build


BUILDERS: dict[str, Builder] = {
    LOOKUP: _builder(_Lookup),
    QUEUE: _builder(_Queue),
    DISPATCHER: _builder(_Dispatcher),
    FILTER: _builder(_Filter),
    CONTROL: _builder(_Control),
}
