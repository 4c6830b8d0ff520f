"""One role process as the parent sees it: its channel, whether it is ready, what it was asked."""

import asyncio
import subprocess
import time

from pillarbox.daemon.processes.channel import Channel, Message
from pillarbox.errors import TempFail


class Child:
    """To be told of what its channel brings (`answered`) and of its end (`has_ended`) by who watches it."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", channel: Channel) -> None:
        self.name = name
        self.process = process
        self.channel = channel
        self.started = time.monotonic()
        self.ready = asyncio.Event()
        self.drained = asyncio.Event()
        self.ended = asyncio.Event()
        self._asked: dict[tuple[str, int], asyncio.Future[str]] = {}

    async def ready_or_ended(self) -> bool:
        """Wait until it is ready, or its process gone; whether it is ready."""
        ready, ended = asyncio.ensure_future(self.ready.wait()), asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        return self.ready.is_set()

    async def ask(self, op: str, descriptors: dict[str, int] | None = None, *, number: int = 0) -> str:
        """Send this and wait for the answer, however long it takes; TempFail when the process ends before."""
        if self.ended.is_set():
            raise TempFail(f"{self.name} is being restarted")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[op, number] = answer
        try:
            self.channel.send(op, descriptors, number=number)
            return await answer
        finally:
            self._asked.pop((op, number), None)

    def answered(self, message: Message) -> None:
        """What it says to a question; nobody may wait for it any more."""
        answer = self._asked.get((message.op.removeprefix("answer "), message.number))
        if answer is not None and not answer.done():
            answer.set_result(message.text)

    def has_ended(self) -> None:
        """Its process is gone."""
        self.channel.close()
        self.ended.set()
        self.drained.set()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(TempFail(f"{self.name} died"))
