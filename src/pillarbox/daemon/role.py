"""What a role is to the process that runs it."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from pillarbox.log import Log

_FATAL = 70  # EX_SOFTWARE: the role cannot go on; the parent starts it again


class Role(Protocol):
    """One role, built. `services` are what peers may be given to call, by their names in `wiring`."""

    services: dict[str, object]

    def add_socket(self, listener: int, listening: socket.socket) -> None:
        """A listening socket of this role."""
        ...

    def add_program(self, token: int, connection: socket.socket) -> None:
        """The socket of a program that this role asked the parent for."""
        ...

    async def start(self) -> None:
        """The peers are attached: begin."""
        ...

    async def drain(self) -> None:
        """The server ends: begin nothing new, finish what is under way."""
        ...

    async def stop(self) -> None:
        """End."""
        ...

    def peer_lost(self, peer: str) -> None:
        """A peer's process is gone."""
        ...

    def peer_attached(self, peer: str) -> None:
        """A peer's process is (again) there."""
        ...


class BaseRole:
    """What the roles have in common: background work that must not end by itself."""

    def __init__(self, log: Log) -> None:
        self.services: dict[str, object] = {}
        self.log = log
        self._work: list[asyncio.Task[None]] = []

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run work as long as the role lives; its failure ends the role."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._work.append(task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fatal(error)

    def fatal(self, error: BaseException) -> None:
        """The role cannot go on: say why and end the process, so that it starts afresh."""
        self.log.exception("fatal", error)  # noqa: PLE1205 - our own Log
        os._exit(_FATAL)

    def add_socket(self, listener: int, listening: socket.socket) -> None:
        """Roles without sockets get none."""
        raise AssertionError(f"a socket for listener {listener}")

    def add_program(self, token: int, connection: socket.socket) -> None:
        """Roles that start no programs get none."""
        connection.close()

    async def start(self) -> None:
        """Nothing to begin."""

    async def drain(self) -> None:
        """Nothing under way."""

    async def stop(self) -> None:
        """End the background work."""
        for task in self._work:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def peer_lost(self, peer: str) -> None:
        """Calls to it fail; nothing else is kept."""

    def peer_attached(self, peer: str) -> None:
        """Calls to it work again."""
