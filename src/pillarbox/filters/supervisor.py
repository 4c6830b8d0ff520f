"""A processor over its lives: started, watched, ended, and started again when it fails.

The program is started by somebody else (`Program`: the parent, as its user), who hands over a socket, by which
`filters/processor` talks to it. Here is what decides: one that ends, talks nonsense, floods or does not answer is ended
with all it started and started again, at once and then after pauses; one that fails five times in a minute is left down
until somebody says `restart`. Meanwhile who tells it something gets a TempFail at once.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from pillarbox.conf.model import Proc
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.filters.processor import ENDED, Link, Patience
from pillarbox.log import Log
from pillarbox.roles.filters import Processor, Status
from pillarbox.sockets import attach

_ENDING = 0.5  # seconds


class Program(Protocol):
    """The program of a processor, as far as somebody else has to see to it."""

    async def start(self) -> socket.socket:
        """Start it anew; its standard input and output. TempFail: it cannot be started."""
        ...

    async def stop(self, grace: float) -> None:
        """End it, if it runs: after so many seconds at the latest, whatever it does."""
        ...

    @property
    def pid(self) -> int:
        """Of the one that was started last; 0: unknown."""
        ...


class State(StrEnum):
    """Where a processor stands."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"  # to be started again
    DOWN = "down"


Connect = Callable[[int, Callable[[Link], None]], Link]  # a link for a life, with whom to tell of registrations


class Supervised:
    """One processor. `connect`: makes the link of a life. `changed`: told of each change that dispatchers may see.

    `lives()` numbers lives; `now()`: epoch seconds.
    """

    def __init__(
        self,
        *,
        number: int,
        proc: Proc,
        program: Program,
        connect: Connect,
        lives: Callable[[], int],
        changed: Callable[["Supervised"], None],
        now: Callable[[], float],
        log: Log,
        patience: Patience,
    ) -> None:
        self.number = number
        self.proc = proc
        self.life = 0
        self.link: Link | None = None
        self._program = program
        self._connect = connect
        self._lives = lives
        self._changed = changed
        self._now = now
        self._log = log
        self._patience = patience
        self._state = State.STARTING
        self._since = now()
        self._restarts = 0
        self._dropped = 0  # by earlier lives
        self._deaths: list[float] = []  # of the last minute
        self._known = False
        self._phases: frozenset[str] = frozenset()
        self._events: frozenset[str] = frozenset()
        self._why = "it is being started"
        self._again = asyncio.Event()  # do not wait any longer before starting it
        self._wanted = False  # it ends because somebody said `restart`
        self._settled = asyncio.Event()  # it has registered once, or failed
        self._task: asyncio.Task[None] | None = None

    # -- what it is

    def processor(self) -> Processor:
        """As dispatchers see it."""
        return Processor(
            number=self.number,
            name=self.proc.name,
            life=self.life,
            known=self._known,
            failed=self._settled.is_set() and not self._known,
            phases=self._phases,
            events=self._events,
            fail_open=self.proc.fail_open,
            timeout=float(self.proc.timeout),
            why=self._why,
        )

    def status(self) -> Status:
        """As `smtpctl show filters` shows it."""
        link = self.link
        return Status(
            name=self.proc.name,
            command=self.proc.command,
            state=self._state,
            pid=self._program.pid if link is not None else 0,
            since=self._since,
            restarts=self._restarts,
            waiting=0 if link is None else link.waiting,
            dropped=self._dropped + (0 if link is None else link.dropped),
            phases=tuple(sorted(self._phases)),
            events=tuple(sorted(self._events)),
            why=self._why,
        )

    @property
    def known(self) -> bool:
        """Has it ever registered?"""
        return self._known

    @property
    def down(self) -> bool:
        """Is it left alone?"""
        return self._state is State.DOWN

    async def settled(self) -> None:
        """Return when it has registered for the first time, or could not."""
        await self._settled.wait()

    # -- life

    def open(self) -> None:
        """Start it, and again whenever it ends."""
        self._task = asyncio.get_running_loop().create_task(self._supervise(), name=f"filter {self.proc.name}")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End it for good: it gets what was written to it, and may end by itself."""
        if self._task is None:
            return
        self._task.cancel()
        if self.link is not None:
            self.link.end("was ended", politely=True)
        await asyncio.wait({self._task})
        self._task = None
        await self._stop(self._patience.grace)

    def restart(self) -> None:
        """End it, and start it at once; its deaths are forgotten."""
        self._deaths.clear()
        if self.link is None:
            self._again.set()  # where it is being started, that is it
        else:
            self._wanted = True
            self.link.end("is restarted", politely=True)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.exception(f"filter {self.proc.name}: no longer supervised", error)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._set(State.STARTING, "it is being started")
            self._again.clear()
            reason = await self._run()
            wanted, self._wanted = self._wanted, False
            self._settled.set()
            self._set(State.WAITING, reason)
            # One that has ended by itself has a moment to do so, so that the log can say how.
            await self._stop(self._patience.grace if wanted else _ENDING if reason == ENDED else 0.0)
            if wanted:
                self._log.info(f"info: filter {self.proc.name}: restarted")
            else:
                now = loop.time()
                self._deaths = [death for death in self._deaths if now - death < self._patience.within] + [now]
                await self._pause(reason)
            self._restarts += 1

    async def _run(self) -> str:
        """Start the program and talk to it until that ends; returns why it did."""
        try:
            async with asyncio.timeout(self._patience.start):
                connection = await self._program.start()
        except TimeoutError:
            return f"was not started within {self._patience.start:g} s"
        except PillarboxError as error:
            return f"was not started: {error}"
        life = self._lives()
        link = self._connect(life, lambda registered: self._registered(registered, life))
        try:
            connection.setblocking(False)
            await attach(lambda: link, connection)
            self.link = link
            # Not the future itself: when this task is cancelled, the link has yet to be ended.
            return await asyncio.shield(link.over)
        except OSError as error:
            connection.close()
            return f"cannot be talked to: {error.strerror}"
        finally:
            self._dropped += link.dropped
            self.link = None
            link.end("was ended")

    def _registered(self, link: Link, life: int) -> None:
        self._phases, self._events = link.phases, link.events
        self._known = True
        self.life = life
        if self._state is not State.RUNNING and self._deaths:
            self._log.info(f"info: filter {self.proc.name}: runs again")
        self._set(State.RUNNING, "")
        self._settled.set()

    async def _pause(self, reason: str) -> None:
        """Wait before the next start; for ever where it failed too often."""
        deaths, pauses = len(self._deaths), self._patience.pauses
        name = self.proc.name
        if deaths <= len(pauses):
            pause = pauses[deaths - 1]
            self._log.warn(f"filter {name}: {reason}; starting it again" + (f" in {pause:g} s" if pause else ""))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()
            return
        self._log.warn(
            f"filter {name}: {reason}; died {deaths} times in {self._patience.within:g} s and is left down:"
            f' look at what it says above, then "smtpctl restart filter {name}"'
        )
        self._set(State.DOWN, reason)
        await self._again.wait()

    async def _stop(self, grace: float) -> None:
        try:
            await self._program.stop(grace)
        except PillarboxError as error:  # who would end it is gone itself, and ends it before starting it again
            self._log.debug(f"filter {self.proc.name}: {error}")

    def _set(self, state: State, why: str) -> None:
        if state is not State.RUNNING:
            self.life = 0
        if state is not self._state:
            self._since = self._now()
        self._state, self._why = state, why
        self._changed(self)

    def link_of(self, life: int) -> Link:
        """The link of a life; TempFail: it is over."""
        if self.link is None or self.life != life or not life:
            raise TempFail(f"filter {self.proc.name} does not answer" + (f": {self._why}" if self._why else ""))
        return self.link
