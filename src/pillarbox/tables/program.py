"""A table that is a program (smtpd-tables(7)): asked over its standard input and output, and supervised.

The program is started by somebody else (`Programs`: the parent, as a user without rights), who hands over a socket.
Here is what decides about it: it is started by `open` and ended by `close`, and ended and started again when it dies,
talks nonsense, floods or does not answer. Meanwhile, and past every deadline, a question is a TempFail at once; no
other table ever waits for it, and what it may make us keep is bounded. Who fails again and again is left alone for a
while. Nothing is cached: a program is asked every time, as the reference does.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pillarbox.errors import PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.sockets import attach
from pillarbox.tables.link import Link, Patience
from pillarbox.tables.protocol import Answer, Op
from pillarbox.tables.services import Service

_T = TypeVar("_T")


class Program(Protocol):
    """The program of one table, as far as somebody else has to see to it."""

    async def start(self) -> socket.socket:
        """Start it anew; its standard input and output. TempFail: it cannot be started."""
        ...

    async def stop(self) -> None:
        """End it, if it runs: soon, whatever it does. To be called when its socket is closed."""
        ...


class NoProgram:
    """Implements `Program` where there is nobody to start it: a configuration that is only looked at."""

    async def start(self) -> socket.socket:
        """See `Program`."""
        raise TempFail("only a server starts it")

    async def stop(self) -> None:
        """See `Program`."""


def no_program(generation: int, table: str) -> Program:
    """The program of a table of a generation, where there is nobody to start it."""
    return NoProgram()


class ProgramTable:
    """Implements `Table`. A service is asked for whether or not the program registered it, as the reference does."""

    def __init__(
        self,
        *,
        name: str,
        program: Program,
        log: Log,
        now: Callable[[], float] = time.time,
        patience: Patience | None = None,
    ) -> None:
        self.name = name
        self._program = program
        self._log = log
        self._now = now
        self._patience = patience or Patience()
        # Whom to ask: pending while the program starts, an error while it is down. Set by `open`.
        self._running: asyncio.Future[Link] | None = None
        self._wanted = asyncio.Event()  # set: do not wait any longer before starting it again
        self._failures = 0  # one after the other
        self._task: asyncio.Task[None] | None = None

    # -- life

    def open(self) -> None:
        """See `Table`: start the program, and again whenever it ends."""
        self._set_starting()
        self._task = asyncio.get_running_loop().create_task(self._supervise(), name=f"table {self.name}")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """See `Table`: end the program; questions under way are TempFails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
            await self._stop()  # not by the task: within one that was cancelled, Python 3.11 knows no timeouts

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.exception(f"table {self.name}: no longer supervised", error)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._set_starting()
                self._wanted.clear()
                started = loop.time()
                reason = await self._run()
                self._failures = 1 if loop.time() - started >= self._patience.steady else self._failures + 1
                self._set_down(reason)
                await self._stop()
                await self._pause(reason)
        finally:
            self._set_down("it was closed")

    async def _run(self) -> str:
        """Start the program and talk to it until that ends; returns why it did."""
        try:
            async with asyncio.timeout(self._patience.start):
                connection = await self._program.start()
        except TimeoutError:
            return f"was not started within {self._patience.start:g} s"
        except PillarboxError as error:
            return f"was not started: {error}"
        link = Link(table=self.name, patience=self._patience, now=self._now, on_registered=self._set_ready)
        try:
            connection.setblocking(False)
            await attach(lambda: link, connection)
            # Not the future itself: when this task is cancelled, the link has yet to be ended.
            return await asyncio.shield(link.over)
        except OSError as error:
            connection.close()
            return f"cannot be talked to: {error.strerror}"
        finally:
            link.end("was closed")

    async def _pause(self, reason: str) -> None:
        """Wait before the next start: longer each time, and long for one that fails again and again."""
        failures, pauses = self._failures, self._patience.pauses
        if failures <= len(pauses):
            pause = pauses[failures - 1]
            when = f" in {pause:g} s" if pause else ""
            self._log.warn(f"table {self.name}: {reason}; starting it again{when}")
        else:
            pause = self._patience.down
            self._log.warn(f"table {self.name}: {reason}; failed {failures} times in a row: left alone for {pause:g} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wanted.wait()

    async def _stop(self) -> None:
        try:
            await self._program.stop()
        except PillarboxError as error:  # who would end it is gone itself, and ends it before starting it again
            self._log.debug(f"table {self.name}: {error}")

    def _set_starting(self) -> None:
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_future()

    def _set_ready(self, link: Link) -> None:
        if self._failures:
            self._log.info(f"info: table {self.name}: runs again")
        assert self._running is not None  # it was started
        self._running.set_result(link)

    def _set_down(self, reason: str) -> None:
        self._set_starting()
        assert self._running is not None
        self._running.set_exception(TempFail(f"table {self.name} does not answer: {reason}"))
        self._running.exception()  # seen: perhaps nobody asks

    # -- questions

    async def match(self, service: Service, key: str) -> bool:
        """See `Table`; AUTH is asked with `user:password`."""
        return (await self._ask(Op.CHECK, service, key)).found is True

    async def lookup(self, service: Service, key: str) -> str | None:
        """See `Table`."""
        answer = await self._ask(Op.LOOKUP, service, key)
        return answer.text if answer.found else None

    async def fetch(self, service: Service) -> str | None:
        """See `Table`; the program keeps count of whose turn it is."""
        answer = await self._ask(Op.FETCH, service, None)
        return answer.text if answer.found else None

    async def update(self) -> None:
        """See `Table`: have the program read again what it reads; one that is down is started, which does the same."""
        running = self._running
        if self._task is not None and running is not None and running.done() and running.exception() is not None:
            self._set_starting()
            self._wanted.set()
            await self._link()
            return
        await self._ask(Op.UPDATE, None, None)

    async def registers(self, service: Service) -> bool:
        """Whether the program said that it knows a service."""
        return service in (await self._link()).services

    async def _ask(self, op: Op, service: Service | None, key: str | None) -> Answer:
        # A password keeps its case; the reference lowers it with the rest of the key.
        if key is not None and service is not Service.AUTH:
            key = key.lower()
        link = await self._link()
        answer = await self._within(link.ask(op, service, key))
        if answer.found is None:
            raise TempFail(f"table {self.name}: {answer.text}")
        return answer

    async def _link(self) -> Link:
        """The link to the program: waits while it starts, not while it is down."""
        if self._running is None:
            raise TempFail(f"table {self.name} is not open")
        if self._running.done():
            return self._running.result()
        return await self._within(asyncio.shield(self._running))

    async def _within(self, work: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._patience.answer):
                return await work
        except TimeoutError:
            raise TempFail(f"table {self.name} did not answer within {self._patience.answer:g} s") from None
