"""A role's end of a reload: carries out what the parent says about configurations, one thing after the other."""

import asyncio
import socket

import msgspec

from pillarbox.daemon.processes.channel import Channel, Message, read_memory
from pillarbox.daemon.role import Role, try_prepare
from pillarbox.daemon.settings import Generation
from pillarbox.log import Log

CHANGES = ("prepare", "commit", "abort", "retire", "forget", "using")


class Changes:
    """`add` what the channel brings; `run` must be running, and ends with an exception where the role must end."""

    def __init__(self, name: str, role: Role, channel: Channel, log: Log) -> None:
        self._name = name
        self._role = role
        self._channel = channel
        self._log = log
        self._orders: asyncio.Queue[tuple[Message, list[int]]] = asyncio.Queue()

    def add(self, message: Message, descriptors: list[int]) -> None:
        """One more of `CHANGES`."""
        self._orders.put_nowait((message, descriptors))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            message, descriptors = await self._orders.get()
            answer = await self._carry_out(message, descriptors)
            if message.op != "using":
                what = f"{self._name}: {message.op} {message.number}"
                self._log.debug(f"reload: {what}: {answer}" if answer else f"reload: {what}")
            if answer is not None:
                self._channel.send(f"answer {message.op}", number=message.number, text=answer)

    async def _carry_out(self, message: Message, descriptors: list[int]) -> str | None:
        match message.op:
            case "prepare":
                generation = msgspec.msgpack.decode(read_memory(descriptors[0]), type=Generation)
                names = [name.removeprefix("listen ") for name in message.names[1:]]
                sockets = {name: socket.socket(fileno=fd) for name, fd in zip(names, descriptors[1:], strict=True)}
                return await try_prepare(self._role, generation, sockets, self._log)
            case "commit":
                self._role.commit(message.number)
                return ""
            case "using":
                return " ".join(map(str, self._role.in_use()))
            case "abort":
                self._role.abort(message.number)
            case "retire":
                self._role.retire(message.number)
            case "forget":
                self._role.forget(message.number)
        return None
