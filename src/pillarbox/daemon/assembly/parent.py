"""What the parent does itself: deliveries as their users, lookup's questions, mail left offline."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import cast

from pillarbox import places
from pillarbox.control.offline import OfflineMail, SendmailChild
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.processes.privileges import program_account
from pillarbox.daemon.programs.filters import FilterPrograms
from pillarbox.daemon.programs.programs import Programs
from pillarbox.daemon.programs.tables import TablePrograms
from pillarbox.daemon.reload.generations import Generations, for_role
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.system.system import ParentSystem
from pillarbox.daemon.wiring import FILTER, LOOKUP, PARENT, QUEUE
from pillarbox.log import Log
from pillarbox.mda.agent import Agent
from pillarbox.mda.process import DeliveryProcess
from pillarbox.roles.parent import Reloaded
from pillarbox.roles.queue import Queue

_OFFLINE_EVERY = 60.0  # seconds


class ParentServices(BaseRole):
    """What the parent does itself: deliveries as their users, lookup's questions, mail left offline."""

    def __init__(
        self,
        generations: Generations,
        settings: Settings,
        peers: Peers,
        *,
        as_root: bool,
        on_stop: Callable[[], None],
        on_reload: Callable[[], Awaitable[Reloaded]],
        log: Log,
    ) -> None:
        super().__init__(log)
        self._agent = Agent(
            config=for_role(generations.current, PARENT).config,
            queue=cast(Queue, peers.proxy("queue", QUEUE)),
            log=log,
            now=time.time,
            libexec=places.libexec(),
            process=DeliveryProcess(log=log),
        )
        self._offline = OfflineMail(
            directory=places.offline_directory(settings.state),
            submit=SendmailChild(state=settings.state, as_root=as_root),
            log=log,
            now=time.time,
            uid=os.geteuid(),
        )
        self.system = ParentSystem(
            generations=generations,
            state=settings.state,
            as_root=as_root,
            on_stop=on_stop,
            on_reload=on_reload,
            log=log,
            paused=settings.paused,
        )
        account = partial(program_account, log) if as_root else None
        self.programs = TablePrograms(configs=generations.find, programs=Programs(account=account, log=log))
        self.filter_programs = FilterPrograms(
            configs=generations.find, programs=Programs(account=account, log=log, says_end=False), account=account
        )
        self.services |= {
            "agent": self._agent,
            "system": self.system,
            "programs": self.programs,
            "filter_programs": self.filter_programs,
        }

    async def start(self) -> None:
        """Deliver, and take what was left offline."""
        self.run("agent", self._agent.run())
        self.run("offline", self._offline.run(_OFFLINE_EVERY))

    async def prepare(self, generation: Generation, sockets: Mapping[str, socket.socket]) -> None:
        """Deliveries may be ordered by it."""
        self._agent.add_config(generation.config)

    def commit(self, number: int) -> None:
        """Its limits are in force."""
        self._agent.use_config(number)

    def abort(self, number: int) -> None:
        """No delivery will be ordered by it."""
        self._drop(number)

    def forget(self, number: int) -> None:
        """No delivery goes by it, and queue orders none by it any more."""
        self._drop(number)

    def in_use(self) -> set[int]:
        """Deliveries may run that a queue ordered which has died meanwhile."""
        return self._agent.generations()

    def _drop(self, number: int) -> None:
        self._agent.drop_config(number)
        # Lookup ends them as well, unless it died meanwhile.
        self.run(f"end programs of configuration {number}", self.programs.stop_generation(number))

    async def stop_programs(self, role: str) -> None:
        """End the programs that a role has asked for."""
        if role == LOOKUP:
            await self.programs.stop_all()
        elif role == FILTER:
            await self.filter_programs.stop_all()

    async def stop(self) -> None:
        """End, and with us the programs."""
        await super().stop()
        await asyncio.gather(self.programs.stop_all(), self.filter_programs.stop_all())

    async def drain(self) -> None:
        """Wait for the deliveries under way; the caller has a deadline."""
        while True:
            held = await self._agent.in_flight()
            if not held.running and not held.outcomes:
                return
            await asyncio.sleep(0.05)
