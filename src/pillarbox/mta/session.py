"""Outgoing sessions of one dispatcher: opened as the queue orders, each a `Delivery`.

Nothing is decided here about where mail goes; see `mta/relay` (in queue) for that, `mta/delivery` for a session's
course, `mta/link` for its connection.
"""

import asyncio
from collections.abc import Callable

from pillarbox.errors import TempFail
from pillarbox.filters.reports import Reports
from pillarbox.log import Log
from pillarbox.mta.client_tls import ClientContexts, TlsMaterial
from pillarbox.mta.delivery import Delivery
from pillarbox.mta.jobs import Jobs
from pillarbox.mta.reporter import Reporter
from pillarbox.roles.delivery import InFlight, Relays, SessionOrder
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import Queue


class OutgoingSessions:
    """Implements `roles.delivery.Outgoing`. `run` must be running; `now` in epoch seconds.

    `reports_for`: where the events of a session go; None where nobody listens to it.
    """

    def __init__(
        self,
        *,
        lookup: Lookup,
        queue: Queue,
        relays: Relays,
        log: Log,
        now: Callable[[], float],
        tls_material: TlsMaterial,
        reports_for: Callable[[SessionOrder], Reports | None],
    ) -> None:
        self._lookup = lookup
        self._queue = queue
        self._relays = relays
        self._log = log
        self._now = now
        self._contexts = ClientContexts(material=tls_material)
        self._reports_for = reports_for
        self._jobs = Jobs(log=log, what="smtp-out")
        self._reporter = Reporter(settle=queue.settle, jobs=self._jobs, log=log)
        self._sessions: dict[int, Delivery] = {}
        self._ended = asyncio.Event()
        self._draining = False

    async def run(self) -> None:
        """Hold the sessions until cancelled."""
        await self._jobs.run()

    async def open_session(self, order: SessionOrder) -> None:
        """See `roles.delivery.Outgoing`. An order that is repeated is one session."""
        if self._draining:
            raise TempFail("the server is ending")
        if order.session in self._sessions:
            return
        self._sessions[order.session] = delivery = Delivery(
            order,
            lookup=self._lookup,
            queue=self._queue,
            relays=self._relays,
            reporter=self._reporter,
            contexts=self._contexts,
            reports=self._reports_for(order),
            log=self._log,
            now=self._now,
        )
        self._jobs.start(self._hold(order.session, delivery))

    async def in_flight(self) -> InFlight:
        """See `roles.delivery.Outgoing`."""
        running = tuple(attempt for delivery in self._sessions.values() for attempt in delivery.running.items())
        return InFlight(running=running, outcomes=self._reporter.outcomes)

    def generations(self) -> set[int]:
        """By which configurations there are sessions."""
        return {delivery.generation for delivery in self._sessions.values()}

    def retire(self, generation: int) -> None:
        """The time of a configuration is over: end its sessions after the transaction under way."""
        for delivery in self._sessions.values():
            if delivery.generation == generation:
                delivery.close()

    def forget(self, generation: int) -> None:
        """No session goes by this configuration any more."""
        self._contexts.forget(generation)

    async def drain(self) -> None:
        """End every session after its transaction, and wait until the queue knows every outcome; set a deadline.

        Sessions that were not greeted yet have nothing to lose and are not waited for.
        """
        self._draining = True
        for delivery in self._sessions.values():
            delivery.close()
        while any(delivery.serving for delivery in self._sessions.values()):
            self._ended.clear()
            await self._ended.wait()
        await self._reporter.drained()

    async def _hold(self, session: int, delivery: Delivery) -> None:
        try:
            await delivery.run()
        finally:
            del self._sessions[session]
            self._ended.set()
