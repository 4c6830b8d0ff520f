"""The queue role as its peers see it: the queue with its two deliverers, and what becomes of them when a peer dies."""

import asyncio
from typing import Any

from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Outcome
from pillarbox.mda.deliveries import Deliveries
from pillarbox.mta.relay import Relays
from pillarbox.queue.queue import Queue
from pillarbox.roles.delivery import Agent, InFlight, Outgoing


class QueueService(Queue):
    """Implements `roles.queue.Queue`. `join` gives it its deliverers, who are made with its methods."""

    def __init__(self, *, log: Log, **arguments: Any) -> None:
        super().__init__(log=log, **arguments)
        self._relays: Relays
        self._deliveries: Deliveries
        self._hints: set[asyncio.Task[None]] = set()

    def schedule_soon(self, evpid: int) -> None:
        """Try an envelope now, without being waited for (`Relays`: its destination answers again)."""
        task = asyncio.get_running_loop().create_task(self._try_now(evpid))
        self._hints.add(task)
        task.add_done_callback(self._hints.discard)

    async def _try_now(self, evpid: int) -> None:
        try:
            await self.schedule(evpid)
        except TempFail as error:  # only a hint: it will be tried at its time
            self._log.debug(f"queue: {evpid:016x}: {error}")

    def join(self, relays: Relays, deliveries: Deliveries) -> None:
        """Before anything else: who delivers."""
        self._relays, self._deliveries = relays, deliveries
        self.register("mta", relays)
        self.register("mda", deliveries)

    async def settle(self, outcomes: list[Outcome]) -> None:
        """Durable first; then those who count what is under way are told."""
        await super().settle(outcomes)
        self._relays.settled(outcomes)
        self._deliveries.settled(outcomes)

    async def stats(self) -> dict[str, int]:
        """The queue's, the relays' and the local deliveries'."""
        return {**await super().stats(), **self._relays.stats(), **self._deliveries.stats()}

    async def show_mta(self, what: str) -> list[str]:
        """See `roles.queue.Queue`."""
        show = {
            "hosts": self._relays.show_hosts,
            "hoststats": self._relays.show_hoststats,
            "relays": self._relays.show_relays,
            "routes": self._relays.show_routes,
            "paused": self._relays.show_paused,
        }.get(what)
        if show is None:
            raise TempFail(f"nothing to show is called {what}")
        return show()

    async def pause_mta_route(self, source: str, dest: str, paused: bool) -> None:
        """See `roles.queue.Queue`."""
        self._relays.pause_route(source, dest, paused)

    async def resume_route(self, route: int) -> None:
        """See `roles.queue.Queue`."""
        self._relays.resume_route(route)

    async def log_level(self, verbose: bool) -> None:
        """See `roles.queue.Queue`."""
        self._log.verbose = verbose

    async def ask_in_flight(self, dispatchers: list[Outgoing], agent: Agent) -> None:
        """After a restart of this role: what is under way is settled before anything is scheduled."""
        held: list[InFlight] = []
        for dispatcher in dispatchers:
            try:
                answer = await dispatcher.in_flight()
            except TempFail:
                continue  # it is gone, and with it what it held
            self._relays.adopt(dispatcher, answer)
            held.append(answer)
        held.append(await agent.in_flight())
        await self.recover(held)
