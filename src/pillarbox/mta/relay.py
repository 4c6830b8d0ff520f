"""Outgoing mail as the queue sees it: relays, their pending tasks, and the sessions that dispatchers hold for them.

The scheduler hands attempts to `deliver`; they gather in relays (one for each action and next hop), as one task for a
message. `mta/route` says where a connection may go; dispatchers are ordered in turn to open it (`mta/session`) and
come for tasks with `next_task`. Their outcomes go to the queue, not here; it tells us by `settled`. What never gets
as far as a session (no MX, no route) ends here.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial

from pillarbox.conf.model import Config
from pillarbox.conf.model import Relay as Action
from pillarbox.errors import PermFail, PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Outcome, Result
from pillarbox.mta.connect import Connecting
from pillarbox.mta.hoststat import HostStats
from pillarbox.mta.jobs import Jobs
from pillarbox.mta.lines import log_delivery
from pillarbox.mta.plan import REQUIRETLS_CODE, Plan, plan_relay, sender_for, smarthost_question
from pillarbox.mta.reporter import Reporter
from pillarbox.mta.route import Fault, bracketed
from pillarbox.mta.show import host_lines, relay_lines, route_lines
from pillarbox.mta.state import Failure, Pending, RelayState, Session, Timer
from pillarbox.roles.delivery import Attempt, InFlight, Outgoing, SessionEvent, Task
from pillarbox.roles.lookup import Lookup

_SWEEP = 5.0  # seconds between looks for what is no longer needed
_DESTINATIONS = 4096  # of one relay, beyond which those without pending tasks are forgotten
_MISSING = 60.0  # seconds after a session's end, after which its dispatcher is asked for outcomes that did not come
_LINGER = 1.0  # seconds that a session beside others waits for a task


class Running:
    """An attempt that a dispatcher has."""

    __slots__ = ("attempt", "dispatcher", "domain")

    def __init__(self, attempt: int, dispatcher: Outgoing, domain: str) -> None:
        self.attempt, self.dispatcher, self.domain = attempt, dispatcher, domain


class Relays:
    """Implements `roles.delivery.Relays` for dispatchers and `roles.delivery.Deliverer` for the scheduler.

    `settle` is the queue's own; `ready(destination)` tells the scheduler that there is room again, `schedule(evpid)`
    that a destination is back, `lost` which (evpid, attempt) died with their dispatcher. `now` in epoch seconds,
    `monotonic` in seconds. `run` must be running.
    """

    def __init__(
        self,
        *,
        config: Config,
        lookup: Lookup,
        dispatchers: Iterable[Outgoing],
        settle: Callable[[list[Outcome]], Awaitable[None]],
        ready: Callable[[str], None],
        log: Log,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        lost: Callable[[list[tuple[int, int]]], None],
        schedule: Callable[[int], None] = lambda evpid: None,
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._ready = ready
        self._lost = lost
        self._log = log
        self._now = now
        self._monotonic = monotonic
        self._jobs = Jobs(log=log, what="mta")
        self._reporter = Reporter(settle=settle, jobs=self._jobs, log=log)
        self._hoststats = HostStats(max_deferred=config.mta_max_deferred, schedule=schedule, now=now)
        self._relays: dict[tuple[object, ...], RelayState] = {}
        self._of_destination: dict[str, RelayState] = {}
        self._unplanned: Counter[str] = Counter()  # attempts whose smarthost is being looked up, by destination
        self._asked_urls: dict[tuple[int, str, str], list[Attempt]] = {}
        self._held_unplanned: dict[str, None] = {}
        self._sessions: dict[int, Session] = {}
        self._running: dict[int, Running] = {}
        self._used = False
        self._connecting = Connecting(
            config=config,
            lookup=lookup,
            dispatchers=list(dispatchers),
            jobs=self._jobs,
            log=log,
            monotonic=monotonic,
            relays=self._relays.values,
            register=self._register,
            broken=self._ended,
            flush=self._flush,
        )

    async def run(self) -> None:
        """Do the work until cancelled."""
        self._jobs.start(self._sweep())
        await self._jobs.run()

    def reconfigure(self, config: Config) -> None:
        """Use this configuration for all that no session has begun; transactions under way end as they began."""
        self._config = self._connecting.config = config
        self._hoststats.max_deferred = config.mta_max_deferred
        for relay in list(self._relays.values()):
            self._serve(relay)

    def generations(self) -> set[int]:
        """The configurations that relays and questions under way go by."""
        return {relay.plan.generation for relay in self._relays.values()} | {key[0] for key in self._asked_urls}

    # The scheduler's side.

    def room(self, destination: str) -> int:
        """How many envelopes may be handed over for this destination now."""
        relay = self._of_destination.get(destination)
        pending = len(relay.tasks) if relay is not None else 0
        limits = relay.limits if relay is not None else self._config.mta
        room = limits.task_hiwat - pending - self._unplanned.get(destination, 0)
        if room <= 0:
            if relay is None:
                self._held_unplanned[destination] = None
            else:
                self._hold(relay, destination)
        return max(0, room)

    def deliver(self, attempts: list[Attempt]) -> None:
        """Take envelopes over; each ends in one outcome."""
        touched: dict[int, RelayState] = {}
        for attempt in attempts:
            relay = self._place(attempt)
            if relay is not None:
                touched[id(relay)] = relay
        for relay in touched.values():
            self._serve(relay)

    def settled(self, outcomes: list[Outcome]) -> None:
        """Told by the queue role which attempts ended, whoever reported them."""
        for outcome in outcomes:
            running = self._running.get(outcome.evpid)
            if running is None or running.attempt != outcome.attempt:
                continue
            del self._running[outcome.evpid]
            self._hoststats.update(running.domain, outcome.reply or outcome.errorline)
            if outcome.result is Result.OK:
                self._hoststats.alive(running.domain)

    # The dispatchers' side.

    async def next_task(self, session: int, wait: float) -> Task | None:
        """See `roles.delivery.Relays`."""
        held = self._sessions.get(session)
        if held is None:
            return None
        relay, held.task = held.relay, None
        if held.leaving:
            held.leaving = False
            relay.leaving -= 1
        self._mark_ready(held)
        if self._outdated(relay):
            wait = 0.0
        pending = self._pop(held) if relay.tasks else await self._await_task(held, wait) if wait > 0 else None
        if pending is None and not held.leaving:
            held.leaving = True
            relay.leaving += 1
        return pending.task() if pending is not None else None

    async def session_event(self, event: SessionEvent) -> None:
        """See `roles.delivery.Relays`."""
        session = self._sessions.get(event.session)
        if session is None:
            return
        if event.state == "ready":
            self._mark_ready(session)
        else:
            self._ended(session, event)

    def add_dispatcher(self, dispatcher: Outgoing) -> None:
        """One more that sessions can be ordered from."""
        if dispatcher not in self._connecting.dispatchers:
            self._connecting.dispatchers.append(dispatcher)

    def remove_dispatcher(self, dispatcher: Outgoing) -> None:
        """It died, and its sessions with it. What it was trying is due again: no destination is to blame."""
        if dispatcher in self._connecting.dispatchers:
            self._connecting.dispatchers.remove(dispatcher)
        pairs = [(evpid, r.attempt) for evpid, r in self._running.items() if r.dispatcher is dispatcher]
        for evpid, _ in pairs:
            del self._running[evpid]
        self._lost(pairs)
        for session in [s for s in self._sessions.values() if s.dispatcher is dispatcher]:
            self._ended(session, SessionEvent(session=session.id, state="closed"))

    def adopt(self, dispatcher: Outgoing, held: InFlight) -> None:
        """What a dispatcher said (after a restart of the queue) that it is still trying: lost with it if it dies."""
        for evpid, attempt in held.running:
            self._running[evpid] = Running(attempt, dispatcher, "")

    # `smtpctl`.

    def show_relays(self) -> list[str]:
        """`smtpctl show relays`."""
        now = self._monotonic()
        return [line for relay in self._relays.values() for line in relay_lines(relay, now)]

    def show_routes(self) -> list[str]:
        """`smtpctl show routes`."""
        return route_lines(self._connecting.routing, self._monotonic())

    def show_hosts(self) -> list[str]:
        """`smtpctl show hosts`."""
        return host_lines(self._connecting.routing, self._monotonic())

    def show_hoststats(self) -> list[str]:
        """`smtpctl show hoststats`."""
        return self._hoststats.lines()

    def show_paused(self) -> list[str]:
        """`smtpctl show mta paused`."""
        return [f"{bracketed(source)} -> {domain or '*'}" for source, domain in sorted(self._connecting.blocked)]

    def pause_route(self, source: str, domain: str, paused: bool) -> None:
        """`smtpctl pause|resume mta from SOURCE for DOMAIN`: open no connections from there to there, or do again."""
        if paused:
            self._connecting.blocked.add((source, domain.lower()))
            return
        self._connecting.blocked.discard((source, domain.lower()))
        for relay in list(self._relays.values()):
            self._serve(relay)

    def resume_route(self, route: int) -> None:
        """`smtpctl resume route N`: enable it at once, without penalty; 0 = all."""
        self._connecting.resume(route)
        for relay in list(self._relays.values()):
            self._serve(relay)

    def stats(self) -> dict[str, int]:
        """Gauges under the reference's names; before the first relay there is only `mta.source`."""
        relays = list(self._relays.values())
        routing = self._connecting.routing
        gauges = {
            "mta.connector": sum(len(r.connectors) for r in relays),
            "mta.domain": len(routing.domains),
            "mta.envelope": sum(len(p.attempts) for r in relays for p in r.tasks.values()) + len(self._running),
            "mta.host": len(routing.hosts),
            "mta.relay": len(relays),
            "mta.route": len(routing.routes),
            "mta.session": len(self._sessions),
            "mta.source": len(routing.sources),
            "mta.task": sum(len(r.tasks) for r in relays) + sum(s.task is not None for s in self._sessions.values()),
            "mta.task.running": sum(s.task is not None for s in self._sessions.values()),
        }
        return gauges if self._used else {"mta.source": 0}

    # Where an attempt goes.

    def _place(self, attempt: Attempt) -> RelayState | None:
        """Put an attempt into its relay; None where it was refused, or where to is being looked up."""
        action = self._config.actions.get(attempt.envelope.dispatcher)
        if not isinstance(action, Action):
            self._refuse(attempt, f'No relay action "{attempt.envelope.dispatcher}"')
            return None
        if not action.domain and not action.hosts:
            return self._place_at(attempt, action, self._config.generation, action.host)
        # Each envelope gets the next of `hosts`; those for one domain share the answer of `domain`.
        what = f"{attempt.envelope.evpid:016x}" if action.hosts else attempt.envelope.dest_domain
        key = (self._config.generation, action.name, what)
        waiting = self._asked_urls.get(key)
        self._unplanned[attempt.destination] += 1
        if waiting is not None:
            waiting.append(attempt)
        else:
            self._asked_urls[key] = [attempt]
            self._jobs.start(self._ask_url(key, action))
        return None

    async def _ask_url(self, key: tuple[int, str, str], action: Action) -> None:
        """Look a smarthost up in the action's table, and place the attempts that wait for it."""
        generation, _, domain = key
        question = smarthost_question(action, domain)
        assert question is not None  # `_place` has looked
        try:
            url = await self._lookup.relay_url(generation, *question)
        except PillarboxError:
            url = ""
        attempts = self._asked_urls.pop(key)
        for attempt in attempts:
            self._unplanned[attempt.destination] -= 1
            if not self._unplanned[attempt.destination]:
                del self._unplanned[attempt.destination]
        if generation == self._config.generation:
            self._place_all(attempts, action, generation, url)
        else:  # the answer is to a question of yesterday
            self.deliver(attempts)
        for destination in {a.destination for a in attempts} & self._held_unplanned.keys():
            del self._held_unplanned[destination]
            self._ready(destination)

    def _place_all(self, attempts: list[Attempt], action: Action, generation: int, url: str) -> None:
        relays: dict[int, RelayState] = {}
        for attempt in attempts:
            if not url:
                self._log.warn(f"Failed to retrieve smarthost for envelope {attempt.envelope.evpid:016x}")
                self._refuse(attempt, "Cannot retrieve smarthost")
                continue
            relay = self._place_at(attempt, action, generation, url)
            if relay is not None:
                relays[id(relay)] = relay
        for relay in relays.values():
            self._serve(relay)

    def _place_at(self, attempt: Attempt, action: Action, generation: int, smarthost: str) -> RelayState | None:
        envelope = attempt.envelope
        try:
            plan = plan_relay(action, generation, envelope, smarthost, self._log, require_tls=attempt.require_tls)
        except TempFail as error:
            self._refuse(attempt, str(error))
            return None
        except PermFail as error:
            self._report([attempt], Result.PERMFAIL, str(error), REQUIRETLS_CODE)
            return None
        relay = self._relays.get(plan.key) or self._make(plan)
        if attempt.destination not in relay.destinations:
            relay.destinations[attempt.destination] = None
        self._of_destination[attempt.destination] = relay
        relay.add(attempt, sender_for(action, self._config.srs, envelope, self._now()))
        self._hoststats.forget(envelope.dest_domain, envelope.evpid)
        return relay

    def _make(self, plan: Plan) -> RelayState:
        self._used = True
        domain = self._connecting.routing.domain(
            plan.domain, as_host=plan.url is not None, require_tls=plan.require_tls
        )
        limits = self._config.mta_domains.get(plan.domain, self._config.mta)
        relay = self._relays[plan.key] = RelayState(plan=plan, domain=domain, limits=limits)
        return relay

    def _refuse(self, attempt: Attempt, text: str) -> None:
        """COMPAT: what cannot be planned is not logged as a delivery."""
        self._report([attempt], Result.TEMPFAIL, text)

    def _report(self, attempts: list[Attempt], result: Result, text: str, code: int = 0) -> None:
        self._reporter.report(
            [
                Outcome(
                    evpid=a.envelope.evpid,
                    attempt=a.attempt,
                    result=result,
                    errorline=text,
                    esc_class=5 if result is Result.PERMFAIL else 4,
                    esc_code=code,
                )
                for a in attempts
            ]
        )

    # Tasks and sessions.

    def _serve(self, relay: RelayState) -> None:
        """Something changed: give tasks to sessions that wait for one, open more sessions if they are wanted."""
        if self._outdated(relay):
            self._vacate(relay)
            return
        while relay.tasks and relay.idle:
            session = relay.idle.pop()  # the one idle for the shortest time: the others may end
            if session.waiter is not None and not session.waiter.done():
                session.waiter.set_result(self._pop(session))
        if relay.tasks:
            self._connecting.drain(relay)
            self._connecting.connect_all(relay)
        self._drop_if_done(relay)

    def _outdated(self, relay: RelayState) -> bool:
        """Does it go by a configuration that was replaced?"""
        return relay.plan.generation != self._config.generation

    def _vacate(self, relay: RelayState) -> None:
        """Its tasks find their relays by the configuration of today; its sessions end with what they are doing."""
        attempts: list[Attempt] = []
        while relay.tasks:
            attempts += relay.next().attempts
        for session in relay.idle:
            if session.waiter is not None and not session.waiter.done():
                session.waiter.set_result(None)
        relay.timer.cancel()
        relay.waits.pop("connector", None)
        self._release(relay)
        self._drop_if_done(relay)
        self.deliver(attempts)

    def _pop(self, session: Session) -> Pending:
        """The oldest task, for this session; and word to the scheduler when there is room again."""
        relay = session.relay
        session.task = pending = relay.next()
        for attempt in pending.attempts:
            envelope = attempt.envelope
            self._running[envelope.evpid] = Running(attempt.attempt, session.dispatcher, envelope.dest_domain)
        if relay.held and len(relay.tasks) <= relay.limits.task_lowat:
            self._release(relay)
        return pending

    async def _await_task(self, session: Session, wait: float) -> Pending | None:
        waiter: asyncio.Future[Pending | None] = asyncio.get_running_loop().create_future()
        session.waiter = waiter
        session.relay.idle.append(session)
        timer = Timer()
        now = self._monotonic()
        timer.set(now + min(wait, _LINGER), now, partial(self._linger, session, timer, now + wait))
        try:
            return await waiter
        except asyncio.CancelledError:
            # The dispatcher is gone or gave up asking; a task that was about to go there belongs to another.
            if waiter.done() and not waiter.cancelled() and waiter.result() is not None:
                self._put_back(session)
            raise
        finally:
            timer.cancel()
            session.waiter = None
            if session in session.relay.idle:
                session.relay.idle.remove(session)

    def _linger(self, session: Session, timer: Timer, until: float) -> None:
        """No task came for a while: a session beside others goes, the last one stays until its keepalive is over."""
        relay, now = session.relay, self._monotonic()
        if now >= until or relay.connections - relay.leaving > 1:
            if session.waiter is not None and not session.waiter.done():
                session.waiter.set_result(None)
                session.leaving = True
                relay.leaving += 1
        else:
            timer.set(min(now + _LINGER, until), now, partial(self._linger, session, timer, until))

    def _mark_ready(self, session: Session) -> None:
        """The session was greeted: its route is good, others may follow."""
        if session.ready:
            return
        session.ready = True
        session.relay.ready += 1
        if session.route.new:
            session.route.new = False
            self._connecting.connect(session.relay, session.connector)

    def _register(self, session: Session) -> None:
        self._sessions[session.id] = session

    def _put_back(self, session: Session, evpids: Collection[int] = ()) -> None:
        """Give the task of a session, or these envelopes of it, to another."""
        pending, session.task = session.task, None
        if pending is None:
            return
        back = [a for a in pending.attempts if not evpids or a.envelope.evpid in evpids]
        begun = [a for a in pending.attempts if a not in back]
        if begun:
            session.task = Pending(pending.sender, begun)
        for attempt in back:
            self._running.pop(attempt.envelope.evpid, None)
        if back:
            session.relay.put_back(Pending(pending.sender, back))

    def _ended(self, session: Session, event: SessionEvent) -> None:
        """A session is over: release what it held, judge the route, and see what else can be done."""
        if self._sessions.pop(session.id, None) is None:
            return
        relay = session.relay
        if session.waiter is not None and not session.waiter.done():
            session.waiter.set_result(None)
        if event.unused or event.left:
            self._put_back(session, event.left)
        if session.task is not None:
            pairs = self._still_running([(a.envelope.evpid, a.attempt) for a in session.task.attempts])
            if pairs:
                self._jobs.start(self._look_for(pairs, session.dispatcher))
        if session.ready:
            relay.ready -= 1
        if session.leaving:
            relay.leaving -= 1
        self._connecting.closed(session, event)
        self._serve(relay)

    def _still_running(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(e, attempt) for e, attempt in pairs if (r := self._running.get(e)) and r.attempt == attempt]

    async def _look_for(self, pairs: list[tuple[int, int]], dispatcher: Outgoing) -> None:
        """A task whose way to a session was too long is known to nobody: its attempts are due again."""
        await asyncio.sleep(_MISSING)
        if not self._still_running(pairs):
            return
        try:
            held = await dispatcher.in_flight()
        except PillarboxError:
            return  # when it is gone we are told
        known = {*held.running, *((o.evpid, o.attempt) for o in held.outcomes)}
        missing = [pair for pair in self._still_running(pairs) if pair not in known]
        for evpid, _ in missing:
            del self._running[evpid]
        self._lost(missing)

    # Relays that fail, fill up, or are done.

    def _flush(self, relay: RelayState, failure: Failure) -> None:
        """Nothing can be sent this way: end all tasks."""
        result, text, code = failure
        down = bool(relay.connectors) and all(c.fault is Fault.ERROR_ROUTE_NET for c in relay.connectors.values())
        now = self._now()
        relay.timer.cancel()
        relay.waits.pop("connector", None)
        while relay.tasks:
            pending = relay.next()
            self._report(pending.attempts, result, text, code)
            for attempt in pending.attempts:
                envelope = attempt.envelope
                if down and result is Result.TEMPFAIL:
                    self._hoststats.defer(envelope.dest_domain, envelope.evpid)
                log_delivery(
                    self._log, 0, envelope, pending.sender,
                    source="", relay=relay.plan.domain, now=now, result=result, stat=text,
                )  # fmt: skip
        self._release(relay)
        self._drop_if_done(relay)

    def _hold(self, relay: RelayState, destination: str) -> None:
        if not relay.held:
            self._log.debug(f"smtp-out: hiwat reached on {relay.plan}: holding envelopes")
        relay.held[destination] = None

    def _release(self, relay: RelayState) -> None:
        if not relay.held:
            return
        self._log.debug(f"smtp-out: back to lowat on {relay.plan}: releasing")
        held, relay.held = relay.held, {}
        for destination in held:
            self._ready(destination)

    def _drop_if_done(self, relay: RelayState) -> None:
        if relay.busy or self._relays.get(relay.plan.key) is not relay:
            return
        del self._relays[relay.plan.key]
        relay.timer.cancel()
        for connector in relay.connectors.values():
            connector.timer.cancel()
        for destination in relay.destinations:
            if self._of_destination.get(destination) is relay:
                del self._of_destination[destination]
        self._release(relay)

    def _forget_destinations(self, relay: RelayState) -> None:
        """A smarthost that is never idle sees ever more destinations: keep those that have something pending."""
        if len(relay.destinations) < _DESTINATIONS:
            return
        kept = dict.fromkeys(a.destination for pending in relay.tasks.values() for a in pending.attempts) | relay.held
        for destination in relay.destinations.keys() - kept.keys():
            if self._of_destination.get(destination) is relay:
                del self._of_destination[destination]
        relay.destinations = kept

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            relays = list(self._relays.values())
            for relay in relays:
                self._drop_if_done(relay)
                self._forget_destinations(relay)
            sources = [c.source for r in relays for c in r.connectors.values()]
            self._connecting.routing.sweep([r.domain for r in relays], sources, self._monotonic())
            self._hoststats.sweep()
