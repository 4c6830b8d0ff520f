"""Queue: the store and its scheduler, relay plans, local deliveries, bounces."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pillarbox.bounce import Bouncer
from pillarbox.conf.model import Config
from pillarbox.daemon.assembly.processors import build_processors
from pillarbox.daemon.assembly.queueservice import QueueService
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import DISPATCHER, FILTER, LOOKUP, PARENT
from pillarbox.log import Log
from pillarbox.mda.deliveries import Deliveries
from pillarbox.mda.events import DeliveryEvents
from pillarbox.mta.relay import Relays
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.roles.delivery import Agent, Outgoing
from pillarbox.roles.filters import MDA
from pillarbox.roles.lookup import Lookup


class QueueRole(BaseRole):
    """Implements `daemon.role.Role`: the queue with its store, and its two deliverers."""

    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)

        config = boot.generation.config
        lookup = cast(Lookup, peers.proxy("lookup", LOOKUP))
        self._prepared: dict[int, Config] = {}
        self._config = config
        self._restarted = boot.restarted
        self._agent = cast(Agent, peers.proxy("agent", PARENT))
        self._dispatchers = {
            name: cast(Outgoing, peers.proxy("outgoing", name)) for name in peers.ports if kind(name) == DISPATCHER
        }
        self._bouncer = Bouncer(config=config, lookup=lookup, log=log, now=time.time)
        self._processors = processors = build_processors(self, peers, log)
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
        """Deliver. After a restart, who delivers is asked first what is under way."""
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
        """Deliveries are told to processors by it from its first one on."""
        self._prepared[generation.number] = generation.config
        self._processors.add(generation.config)

    def commit(self, number: int) -> None:
        """Envelopes that nobody has begun find their action anew."""
        config = self._prepared.pop(number)
        self._queue.configure(config)
        self._events.configure(config)
        self._bouncer.configure(config)
        self._relays.reconfigure(config)
        self._deliveries.configure(config)

    def abort(self, number: int) -> None:
        """Nothing was ordered by it."""
        self._prepared.pop(number, None)
        self.forget(number)

    def forget(self, number: int) -> None:
        """No delivery goes by it any more."""
        self._processors.forget(number)

    def in_use(self) -> set[int]:
        """Those by which deliveries are under way."""
        return self._relays.generations() | self._deliveries.generations()

    async def drain(self) -> None:
        """Hand nothing more out, in either direction."""
        for what in ("mda", "mta"):
            await self._queue.pause(what, True)

    async def stop(self) -> None:
        """End; the store writes what it has taken."""
        await super().stop()
        await self._queue.close()

    def peer_lost(self, peer: str) -> None:
        """What a dispatcher had is due again; without filter no processor hears of deliveries."""
        if peer in self._dispatchers:
            self._relays.remove_dispatcher(self._dispatchers[peer])
        elif peer == FILTER:
            self._processors.lost()

    def peer_attached(self, peer: str) -> None:
        """A dispatcher is ordered sessions of again; a filter role that knows nothing of us is joined."""
        if peer in self._dispatchers:
            self._relays.add_dispatcher(self._dispatchers[peer])
        elif peer == FILTER:
            self._processors.attached()
