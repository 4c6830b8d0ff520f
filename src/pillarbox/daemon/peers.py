"""The peers of a role: one `Port` each, to which links are attached as processes come and go."""

import socket
from collections.abc import Callable
from typing import Any

from pillarbox.daemon import ipc, wiring
from pillarbox.log import Log
from pillarbox.sockets import attach


def kind(name: str) -> str:
    """The role of a peer's name: `dispatcher.1` is a dispatcher."""
    return name.partition(".")[0]


class Peers:
    """Ports by peer name. `me` is our own name; `on_lost(peer)` is told when a peer's process is gone.

    `on_faulty(peer)`: it is not gone, but of no more use: it broke the protocol, and has to be started again.
    """

    def __init__(self, me: str, dispatchers: int, log: Log) -> None:
        self.me = me
        self.log = log
        self.on_lost: Callable[[str], None] | None = None
        self.on_attached: Callable[[str], None] | None = None
        self.on_faulty: Callable[[str], None] | None = None
        self._newest: dict[str, socket.socket] = {}
        names: list[str] = []
        for role in wiring.neighbours(kind(me)):
            names += [f"{role}.{i}" for i in range(dispatchers)] if role == wiring.DISPATCHER else [role]
        self.ports = {name: ipc.Port(name) for name in names}

    def proxy(self, service: str, peer: str) -> Any:
        """An object with the methods of a service of a peer."""
        return ipc.proxy(wiring.INTERFACE, service, self.ports[peer])

    def proxies(self, service: str, role: str) -> list[Any]:
        """One such object for each process of a role."""
        return [self.proxy(service, name) for name in self.ports if kind(name) == role]

    async def attach(self, peer: str, connection: socket.socket, services: dict[str, object]) -> None:
        """Use this connection to a peer from now on, and serve it what it may call.

        What is left of a connection to its predecessor ends first, and `on_lost` is told, before `on_attached` is.
        """
        connection.setblocking(False)
        self._newest[peer] = connection
        port = self.ports[peer]

        def lost(link: ipc.Link) -> None:
            if link.faulty and self.on_faulty is not None:
                self.on_faulty(peer)
            if port.link is link:
                port.link = None
                if self.on_lost is not None:
                    self.on_lost(peer)

        def make() -> ipc.Link:
            serve = wiring.allowed(kind(peer), kind(self.me), services, name=peer)
            return ipc.Link(peer=peer, interface=wiring.INTERFACE, serve=serve, log=self.log, lost=lost)

        _, link = await attach(make, connection)
        if self._newest[peer] is not connection:
            link.close()  # the peer was started again meanwhile
            return
        if isinstance(port.link, ipc.Link):
            port.link.close()
        if not link.closed:
            port.link = link
            if self.on_attached is not None:
                self.on_attached(peer)

    def attach_local(self, peer: str, services: dict[str, object]) -> None:
        """Join a peer that lives in this process; `services` are the peer's."""
        serve = wiring.allowed(kind(self.me), kind(peer), services, name=self.me)
        self.ports[peer].link = ipc.LocalLink(peer=peer, serve=serve, log=self.log)
