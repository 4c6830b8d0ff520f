"""What a role is to the process that runs it.

A reload (`daemon/reload`) is two steps in every role: `prepare` makes all that a new configuration needs and may fail,
`commit` begins to use it and may not. What was prepared already answers questions about it, for peers may be quicker.
"""

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from pillarbox.daemon.settings import Generation
from pillarbox.errors import PillarboxError
from pillarbox.log import Log

_FATAL = 70  # EX_SOFTWARE: the role cannot go on; the parent starts it again


class Role(Protocol):
    """One role, built. `services` are what peers may be given to call, by their names in `wiring`."""

    services: dict[str, object]

    def add_socket(self, address: str, listening: socket.socket) -> None:
        """A listening socket of this role, before it starts."""
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

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Make what the configuration needs. `sockets`: those that are new, by address. Raises PillarboxError."""
        ...

    def commit(self, number: int) -> None:
        """What begins from now on goes by the prepared configuration of this number."""
        ...

    def abort(self, number: int) -> None:
        """It will not be used: undo `prepare`, however far that got."""
        ...

    def retire(self, number: int) -> None:
        """Its time is over: bring what still goes by it to an end."""
        ...

    def forget(self, number: int) -> None:
        """Nothing goes by it any more."""
        ...

    def in_use(self) -> set[int]:
        """The configurations that something under way goes by."""
        ...

    def peer_lost(self, peer: str) -> None:
        """A peer's process is gone."""
        ...

    def peer_attached(self, peer: str) -> None:
        """A peer's process is (again) there."""
        ...


async def try_prepare(role: Role, generation: Generation, sockets: Mapping[str, socket.socket], log: Log) -> str:
    """Why the role cannot go by this configuration; "": it can."""
    try:
        await role.prepare(generation, sockets)
    except PillarboxError as error:
        return str(error)
    except Exception as error:  # the seam to the parent, which leaves all as it is then
        log.exception("reload", error)  # noqa: PLE1205 - our own Log
        return "internal error (see the log)"
    return ""


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
        self._work.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fatal(error)

    def fatal(self, error: BaseException) -> None:
        """The role cannot go on: say why and end the process, so that it starts afresh."""
        self.log.exception("fatal", error)  # noqa: PLE1205 - our own Log
        os._exit(_FATAL)

    def add_socket(self, address: str, listening: socket.socket) -> None:
        """Roles without sockets get none."""
        raise AssertionError(f"a socket for {address}")

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

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Nothing depends on the configuration."""

    def commit(self, number: int) -> None:
        """Nothing to change."""

    def abort(self, number: int) -> None:
        """Nothing to undo."""

    def retire(self, number: int) -> None:
        """Nothing goes by it."""

    def forget(self, number: int) -> None:
        """Nothing was kept."""

    def in_use(self) -> set[int]:
        """None."""
        return set()

    def peer_lost(self, peer: str) -> None:
        """Calls to it fail; nothing else is kept."""

    def peer_attached(self, peer: str) -> None:
        """Calls to it work again."""
