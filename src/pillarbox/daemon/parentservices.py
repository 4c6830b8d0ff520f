"""What the parent does itself: deliveries as their users, lookup's questions, mail left offline."""

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from pillarbox import places
from pillarbox.conf.model import Config
from pillarbox.control.offline import OfflineMail, SendmailChild
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.privileges import program_account
from pillarbox.daemon.programs import Programs
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Settings
from pillarbox.daemon.system import ParentSystem
from pillarbox.daemon.tableprograms import TablePrograms
from pillarbox.daemon.wiring import QUEUE
from pillarbox.log import Log
from pillarbox.mda.agent import Agent
from pillarbox.mda.process import DeliveryProcess
from pillarbox.roles.queue import Queue

_OFFLINE_EVERY = 60.0  # seconds


class ParentServices(BaseRole):
    """What the parent does itself: deliveries as their users, lookup's questions, mail left offline."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        peers: Peers,
        *,
        as_root: bool,
        on_stop: Callable[[], None],
        log: Log,
    ) -> None:
        super().__init__(log)

        self._agent = Agent(
            config=config,
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
            config=config,
            state=settings.state,
            as_root=as_root,
            on_stop=on_stop,
            log=log,
            paused=settings.paused,
        )
        account = partial(program_account, log) if as_root else None
        self.programs = TablePrograms(config=config, programs=Programs(account=account, log=log))
        self.services |= {"agent": self._agent, "system": self.system, "programs": self.programs}

    async def start(self) -> None:
        """Deliver, and take what was left offline."""
        self.run("agent", self._agent.run())
        self.run("offline", self._offline.run(_OFFLINE_EVERY))

    async def stop(self) -> None:
        """End, and with us the programs."""
        await super().stop()
        await self.programs.stop_all()

    async def drain(self) -> None:
        """Wait for the deliveries under way; the caller has a deadline."""
        while True:
            held = await self._agent.in_flight()
            if not held.running and not held.outcomes:
                return
            await asyncio.sleep(0.05)
