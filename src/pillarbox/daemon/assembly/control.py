"""Control: the socket of `smtpctl`, `mailq` and `sendmail`, and whom their questions are put to."""

import os
import socket
import time
from collections.abc import Mapping
from typing import cast

from pillarbox.control.commands import Commands
from pillarbox.control.server import Control, local_name
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Boot, Generation
from pillarbox.daemon.wiring import DISPATCHER, FILTER, LOOKUP, PARENT, QUEUE
from pillarbox.log import Log
from pillarbox.roles.dispatcher import Incoming
from pillarbox.roles.filters import Filters
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.parent import System
from pillarbox.roles.queue import Queue


class ControlRole(BaseRole):
    """Implements `daemon.role.Role`: who asks over the control socket, and what is asked of the others for them."""

    def __init__(self, boot: Boot, peers: Peers, log: Log) -> None:
        super().__init__(log)
        dispatchers = cast(list[Incoming], peers.proxies("incoming", DISPATCHER))
        self._listening: list[socket.socket] = []
        self._has_processors = {g.number: bool(g.config.procs) for g in (boot.generation, *boot.older)}
        self._control = Control(
            commands=Commands(
                queue=cast(Queue, peers.proxy("queue", QUEUE)),
                dispatchers=dispatchers,
                lookup=cast(Lookup, peers.proxy("lookup", LOOKUP)),
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
        """The control socket."""
        self._listening.append(listening)

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Whether there is anything to ask filter about."""
        self._has_processors[generation.number] = bool(generation.config.procs)

    def abort(self, number: int) -> None:
        """As if it had never been there."""
        self.forget(number)

    def forget(self, number: int) -> None:
        """Its processors are gone."""
        self._has_processors.pop(number, None)

    async def start(self) -> None:
        """Accept."""
        for listening in self._listening:
            await self._control.start(listening)

    async def stop(self) -> None:
        """End the connections that there are."""
        await super().stop()
        await self._control.close()
