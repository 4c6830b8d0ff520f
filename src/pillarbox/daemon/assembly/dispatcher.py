"""A dispatcher: SMTP sessions in both directions, and what a reload prepares for them."""

import asyncio
import socket
import time
from collections.abc import Mapping
from ssl import SSLContext
from typing import cast

from pillarbox import places
from pillarbox.daemon.assembly.material import ClientMaterial
from pillarbox.daemon.assembly.processors import build_processors
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import FILTER, LOOKUP, QUEUE
from pillarbox.log import Log
from pillarbox.mta.session import OutgoingSessions
from pillarbox.roles.delivery import Relays
from pillarbox.roles.filters import SMTP_OUT
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import Queue
from pillarbox.server.listener import Server
from pillarbox.server.tls import Material, build_contexts


class DispatcherRole(BaseRole):
    """Implements `daemon.role.Role`: sessions of clients, and those that queue orders to other servers."""

    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        lookup = cast(Lookup, peers.proxy("lookup", LOOKUP))
        queue = cast(Queue, peers.proxy("queue", QUEUE))
        self._listening = boot.generation.listening
        self._prepared: dict[int, _NewDoors] = {}
        self._material = ClientMaterial([boot.generation, *boot.older])
        self._processors = build_processors(self, peers, log)
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
        """A socket to accept on once the role has started."""
        self._sockets[address] = listening

    async def start(self) -> None:
        """Take orders, and accept unless SMTP is paused."""
        self.run("outgoing", self._outgoing.run())
        if self._paused:
            await self._server.pause(True)
        # Accepted only now that there is somebody to ask; until then clients wait in the backlog.
        for address, listening in self._sockets.items():
            self._server.add_socket(address, self._listening[address], listening)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Make its TLS contexts, keep its new sockets and its keys."""
        # First of all, so that `abort` closes what came along.
        prepared = self._prepared[generation.number] = _NewDoors(generation, dict(sockets))
        prepared.contexts = _contexts(generation)
        self._material.add(generation)
        self._processors.add(generation.config)  # queue may order sessions by it before we go by it

    def commit(self, number: int) -> None:
        """Who comes in from here on meets it."""
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
        """Close its new sockets."""
        prepared = self._prepared.pop(number, None)
        if prepared is not None:
            for listening in prepared.sockets.values():
                listening.close()
        self._material.forget(number)
        self._processors.forget(number)

    def retire(self, number: int) -> None:
        """Sessions that go by it end after their transaction."""
        self._server.retire(number)
        self._outgoing.retire(number)

    def forget(self, number: int) -> None:
        """No session goes by it."""
        self._outgoing.forget(number)
        self._material.forget(number)
        self._processors.forget(number)

    def in_use(self) -> set[int]:
        """Those by which sessions are under way, in either direction."""
        return self._server.generations() | self._outgoing.generations()

    def peer_attached(self, peer: str) -> None:
        """A lookup that has just started counts our sessions; a filter role is joined."""
        if peer == LOOKUP:
            self._server.lookup_attached()
        elif peer == FILTER:
            self._processors.attached()

    def peer_lost(self, peer: str) -> None:
        """Nobody waits for an answer of filters any more."""
        if peer == FILTER:
            self._processors.lost()

    async def drain(self) -> None:
        """Sessions end after their transaction, and processors hear of it."""
        await asyncio.gather(self._server.drain(), self._outgoing.drain())
        await self._processors.told()


class _NewDoors:
    """What a dispatcher has prepared: new sockets, and TLS contexts of listeners by id."""

    def __init__(self, generation: Generation, sockets: dict[str, socket.socket]) -> None:
        self.generation = generation
        self.sockets = sockets
        self.contexts: dict[int, SSLContext] = {}


def _contexts(generation: Generation) -> dict[int, SSLContext]:
    config = generation.config
    materials = {
        name: Material(cert=pair.cert, key=pair.key, dhe=config.pki[name].dhe) for name, pair in generation.pki.items()
    }
    return build_contexts(config, materials, generation.ca)
