"""The roles as a reload sees them, in this process or in one of their own, each given what is its own."""

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Protocol

import msgspec

from pillarbox.daemon.peers import kind
from pillarbox.daemon.processes.channel import sealed_memory
from pillarbox.daemon.processes.child import Child
from pillarbox.daemon.reload.generations import for_role
from pillarbox.daemon.role import Role, try_prepare
from pillarbox.daemon.settings import Generation
from pillarbox.daemon.wiring import DISPATCHER
from pillarbox.log import Log

Bound = Mapping[str, list[socket.socket]]  # by address, one socket a dispatcher

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Generation).decode


class Member(Protocol):
    """One role. What it is told it does in the order of being told; TempFail where its process is gone."""

    name: str

    @property
    def gone(self) -> bool:
        """Has its process ended? Another one in its place is another member."""
        ...

    async def wait_gone(self) -> None:
        """Return when it has."""
        ...

    async def prepare(self, generation: Generation, fresh: Bound) -> str:
        """See `Role.prepare`. Returns why it cannot, "" where it can."""
        ...

    async def commit(self, number: int) -> None:
        """See `Role.commit`; returns when it has."""
        ...

    async def abort(self, number: int) -> None:
        """See `Role.abort`."""
        ...

    async def retire(self, number: int) -> None:
        """See `Role.retire`."""
        ...

    async def forget(self, number: int) -> None:
        """See `Role.forget`."""
        ...

    async def in_use(self) -> set[int]:
        """See `Role.in_use`."""
        ...

    def end(self) -> None:
        """It does not do what it is told: let it start afresh."""
        ...


class RemoteRole:
    """A role in a process of its own."""

    def __init__(self, child: Child) -> None:
        self.name = child.name
        self._child = child

    @property
    def gone(self) -> bool:
        """See `Member`."""
        return self._child.ended.is_set()

    async def wait_gone(self) -> None:
        """See `Member`."""
        await self._child.ended.wait()

    async def prepare(self, generation: Generation, fresh: Bound) -> str:
        """See `Member`."""
        role, _, index = self.name.partition(".")
        memory = sealed_memory("generation", _encode(for_role(generation, role)))
        descriptors = {"generation": memory}
        if role == DISPATCHER:
            descriptors |= {f"listen {a}": sockets[int(index)].fileno() for a, sockets in fresh.items()}
        try:
            return await self._child.ask("prepare", descriptors, number=generation.number)
        finally:
            os.close(memory)

    async def commit(self, number: int) -> None:
        """See `Member`."""
        await self._child.ask("commit", number=number)

    async def abort(self, number: int) -> None:
        """See `Member`."""
        self._child.channel.send("abort", number=number)

    async def retire(self, number: int) -> None:
        """See `Member`."""
        self._child.channel.send("retire", number=number)

    async def forget(self, number: int) -> None:
        """See `Member`."""
        self._child.channel.send("forget", number=number)

    async def in_use(self) -> set[int]:
        """See `Member`."""
        return {int(word) for word in (await self._child.ask("using")).split()}

    def end(self) -> None:
        """See `Member`."""
        if not self._child.ended.is_set():
            self._child.process.kill()


class LocalRole:
    """A role in this process. It gets copies all the same: of what is its own, and of the sockets."""

    gone = False

    def __init__(self, name: str, role: Role, log: Log) -> None:
        self.name = name
        self._role = role
        self._log = log

    async def wait_gone(self) -> None:
        """Never: whoever waits would be gone too."""
        await asyncio.get_running_loop().create_future()

    async def prepare(self, generation: Generation, fresh: Bound) -> str:
        """See `Member`."""
        mine = _decode(_encode(for_role(generation, kind(self.name))))
        sockets = {a: s[0].dup() for a, s in fresh.items()} if kind(self.name) == DISPATCHER else {}
        return await try_prepare(self._role, mine, sockets, self._log)

    async def commit(self, number: int) -> None:
        """See `Member`."""
        self._role.commit(number)

    async def abort(self, number: int) -> None:
        """See `Member`."""
        self._role.abort(number)

    async def retire(self, number: int) -> None:
        """See `Member`."""
        self._role.retire(number)

    async def forget(self, number: int) -> None:
        """See `Member`."""
        self._role.forget(number)

    async def in_use(self) -> set[int]:
        """See `Member`."""
        return self._role.in_use()

    def end(self) -> None:
        """Nothing: it shares its process with who asks, and has done what it was told before it returned."""
