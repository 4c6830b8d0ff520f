"""When a relay connects, from where and to where: asks lookup for exchangers and sources, orders the sessions.

`relay.Relays` owns the tasks and calls `drain` and `connect_all` when there is something to send; what comes of it
returns by its callbacks. One source address is one connector; sources are taken up one after the other, each proving
itself for a second, and a relay fails when none of them gets through (mta.c of the reference).
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from pillarbox.conf.model import Config
from pillarbox.errors import PermFail, PillarboxError
from pillarbox.log import Log
from pillarbox.mail.envelope import Result
from pillarbox.mta.jobs import Jobs
from pillarbox.mta.plan import REQUIRETLS_CODE, REQUIRETLS_FAILED, REQUIRETLS_POSTPONED, helo_name
from pillarbox.mta.route import LIMIT_CHECK, Choice, Fault, Later, Route, Routing
from pillarbox.mta.state import Connector, Failure, RelayState, Session
from pillarbox.roles.delivery import Outgoing, SessionEvent, SessionOrder
from pillarbox.roles.lookup import Lookup, MxHost

_NEW_SOURCE = 1  # seconds that a source is given before the next is taken up,
_KNOWN_SOURCE = 10  # and that pass between looks for others
_NO_DISPATCHER = 1  # seconds before a session that could not be ordered is ordered again
_ASK_AGAIN = 300  # seconds after which a busy relay asks for its exchangers anew; the resolver honours their TTL
_NOT_FOUND = 4  # the reference's number for "no such MX"
_RETRY_TEXTS = ("No MX found for domain", "Host not found", "Temporary failure in MX lookup")
_LOGGED = {
    Fault.ERROR_MX: "No MX found for",
    Fault.ERROR_FAMILY: "Address family mismatch on",
    Fault.ERROR_ROUTE_NET: "No valid route for",
}


class Connecting:
    """See above. `blocked` holds (source address, domain) that an operator paused."""

    def __init__(
        self,
        *,
        config: Config,
        lookup: Lookup,
        dispatchers: list[Outgoing],
        jobs: Jobs,
        log: Log,
        monotonic: Callable[[], float],
        relays: Callable[[], Iterable[RelayState]],
        register: Callable[[Session], None],
        broken: Callable[[Session, SessionEvent], None],
        flush: Callable[[RelayState, Failure], None],
    ) -> None:
        self.config = config
        self.dispatchers = dispatchers
        self.routing = Routing()
        self.blocked: set[tuple[str, str]] = set()
        self._lookup = lookup
        self._jobs = jobs
        self._log = log
        self._monotonic = monotonic
        self._relays = relays
        self._register = register
        self._broken = broken
        self._flush = flush
        self._turn = 0
        self._source_turns: Counter[str] = Counter()

    # What is needed before connecting.

    def drain(self, relay: RelayState) -> None:
        """See that the pending tasks get sent: find out what is not known yet, take up a source, or give up."""
        if not relay.tasks:
            return
        if relay.failed is not None:
            self._flush(relay, relay.failed)
            return
        now = self._monotonic()
        if relay.domain.exchangers is None and "MX" not in relay.waits:
            relay.waits["MX"] = None
            self._jobs.start(self._resolve(relay))
        elif relay.domain.exchangers is not None and relay.domain.asked_at + _ASK_AGAIN < now:
            relay.domain.asked_at = now
            self._jobs.start(self._resolve(relay))
        if relay.waits:
            return
        if relay.next_source <= now:
            self._query_source(relay)
        else:
            relay.waits["connector"] = None
            relay.timer.set(relay.next_source, now, partial(self._on_timer, relay))

    def _on_timer(self, relay: RelayState) -> None:
        relay.waits.pop("connector", None)
        self.drain(relay)

    async def _resolve(self, relay: RelayState) -> None:
        """Ask for the exchangers of the domain, and for our own place among them as a backup."""
        domain, plan = relay.domain, relay.plan
        domain.asked_at = self._monotonic()
        try:
            found = await self._lookup.exchangers(domain.name, plan.url is None, "")
        except PillarboxError as error:
            self._unresolved(relay, error)
        else:
            self._resolved(relay, found)
        if plan.backup_name and domain.exchangers is not None:
            own = [mx.preference for mx in domain.exchangers if mx.name.lower().rstrip(".") == plan.backup_name]
            if own:
                relay.backup_preference = min(own)
            else:
                self._log.warn(f"Couldn't find backup preference for {plan}: error {_NOT_FOUND}")
        relay.waits.pop("MX", None)
        self.drain(relay)

    def _resolved(self, relay: RelayState, found: list[MxHost]) -> None:
        # RFC 8689 §4.2.1: whoever can forge MX records must not choose the host that is verified.
        if relay.plan.require_tls and relay.plan.url is None:
            found = [mx for mx in found if mx.secure]
            if not found:
                relay.failed = _unprotected(f"the exchangers of {relay.domain.name} are not signed (DNSSEC)")
                return
        relay.domain.exchangers, relay.domain.postponed = tuple(found), ""

    def _unresolved(self, relay: RelayState, error: PillarboxError) -> None:
        if relay.domain.exchangers is not None:  # what was known still serves
            return
        text = str(error)
        if isinstance(error, PermFail):
            relay.failed = Failure(Result.PERMFAIL, text)
        else:
            relay.failed = Failure(Result.TEMPFAIL, text if text in _RETRY_TEXTS else "Temporary failure in MX lookup")
        self._log.info(f"smtp-out: Failed to resolve MX for {relay.plan}: {relay.failed.text}")

    def _query_source(self, relay: RelayState) -> None:
        relay.source_loop += 1
        if relay.plan.action.src:
            relay.waits["source"] = None
            self._jobs.start(self._ask_source(relay))
        else:
            self._on_source(relay, "")

    async def _ask_source(self, relay: RelayState) -> None:
        """Take the next address of the source table."""
        table = relay.plan.action.src
        try:
            addresses = await self._lookup.source_addresses(relay.plan.generation, table)
        except PillarboxError:
            addresses = []
        relay.waits.pop("source", None)
        if not addresses:
            self._on_source(relay, None)
            return
        turn = self._source_turns[table]
        self._source_turns[table] = (turn + 1) % len(addresses)
        self._on_source(relay, addresses[turn % len(addresses)].strip("[]"))

    def _on_source(self, relay: RelayState, address: str | None) -> None:
        """A source to use (None: there is none); the relay fails once each was tried and is at fault."""
        delay: float = _KNOWN_SOURCE
        if address is None:
            self._log.warn(f"Failed to get source address for {relay.plan}")
        else:
            connector = relay.connectors.get(address)
            if connector is None:
                connector = relay.connectors[address] = Connector(source=self.routing.source(address))
            if connector.new:
                connector.new = False
                delay = _NEW_SOURCE
            self.connect(relay, connector)
            if connector.fault is None:
                relay.source_loop = 0
            else:
                delay = 0
        if not relay.connectors:
            relay.failed = Failure(Result.TEMPFAIL, "Could not retrieve source address")
        elif len(relay.connectors) < relay.source_loop and not relay.ready:
            faults = {connector.fault for connector in relay.connectors.values()}
            reason = next((fault.value for fault in Fault if fault in faults), Fault.ERROR_SOURCE.value)
            relay.failed = Failure(Result.TEMPFAIL, reason)
        relay.next_source = self._monotonic() + delay
        self.drain(relay)

    # Connections.

    def connect_all(self, relay: RelayState) -> None:
        """Open what sessions the tasks call for and the limits allow."""
        for connector in relay.connectors.values():
            self.connect(relay, connector)

    def connect(self, relay: RelayState, connector: Connector) -> None:
        """The same from one source."""
        if (connector.source.address, relay.plan.domain) in self.blocked:
            connector.fault = connector.fault or Fault.ERROR_BLOCKED
        elif connector.fault is Fault.ERROR_BLOCKED:
            connector.fault = None
        while self._connect_once(relay, connector):
            pass

    def _connect_once(self, relay: RelayState, connector: Connector) -> bool:
        """Order one session; False where none is wanted or possible now."""
        wanted = len(relay.tasks)
        if connector.fault is not None or not wanted or relay.failed is not None or relay.domain.exchangers is None:
            return False
        if relay.plan.generation != self.config.generation:
            return False  # what it still has goes by another relay
        if relay.ready >= wanted or (relay.connections > 2 and relay.connections >= wanted // 2):
            return False
        if relay.connections - relay.ready >= wanted:  # as many are on their way as could find something to do
            return False
        now = self._monotonic()
        found = self._find(relay, connector, now)
        if isinstance(found, Choice):
            connector.timer.cancel()
            self._open(relay, connector, found, now)
            return True
        if isinstance(found, Later):
            connector.timer.set(found.at, now, partial(self.connect, relay, connector))
        else:
            connector.timer.cancel()
            connector.fault = found
            self._log.info(f"smtp-out: {_LOGGED[found]} [connector:{connector.source}->{relay.plan},0x0]")
        return False

    def _find(self, relay: RelayState, connector: Connector, now: float) -> Choice | Later | Fault:
        limits = relay.limits
        if not self.dispatchers:
            return Later(now + _NO_DISPATCHER)
        checks = (
            (relay.domain, limits.max_conn_per_domain, limits.conn_delay_domain),
            (connector.source, limits.max_conn_per_source, limits.conn_delay_source),
            (connector, limits.max_conn_per_connector, limits.conn_delay_connector),
            (relay, limits.max_conn_per_relay, limits.conn_delay_relay),
        )
        if any(used.connections >= most for used, most, _ in checks):
            return Later(now + LIMIT_CHECK)
        ready = max(connector.not_before, *(used.last_connect + delay for used, _, delay in checks))
        if ready > now:
            return Later(ready)
        return self.routing.find(connector.source, relay.domain, limits, now, relay.backup_preference)

    def _open(self, relay: RelayState, connector: Connector, choice: Choice, now: float) -> None:
        route = choice.route
        for used in (relay, relay.domain, connector, route, route.source, route.host):
            used.opened(now)
        self._turn += 1
        session = Session(
            id=secrets.randbits(64) or 1,
            relay=relay,
            connector=connector,
            route=route,
            dispatcher=self.dispatchers[self._turn % len(self.dispatchers)],
        )
        self._register(session)
        self._jobs.start(self._order(session, choice.exchanger))

    async def _order(self, session: Session, exchanger: MxHost) -> None:
        """Complete what the order must say, and give it."""
        host = session.route.host
        try:
            if not host.name:
                host.name = await self._reverse_name(host.address)
            helo = await self._helo(session)
            if not helo:
                error = "Failed to retrieve helo string"
                self._broken(session, SessionEvent(session=session.id, state="failed", error=error, blame="source"))
                return
            await session.dispatcher.open_session(self._order_for(session, exchanger, helo))
        except PillarboxError as error:
            self._log.warn(f"smtp-out: no session on {session.route}: {error}")
            self._broken(session, SessionEvent(session=session.id, state="failed"))

    async def _reverse_name(self, address: str) -> str:
        try:
            return await self._lookup.reverse_name(address) or address
        except PillarboxError:
            return address

    async def _helo(self, session: Session) -> str:
        action, source = session.relay.plan.action, session.route.source.address
        helo = helo_name(action, source, self.config.hostname)
        if helo is None:
            return await self._lookup.host_name(session.relay.plan.generation, action.helo_src, source)
        return helo

    def _order_for(self, session: Session, exchanger: MxHost, helo: str) -> SessionOrder:
        plan, limits = session.relay.plan, session.relay.limits
        action, url = plan.action, plan.url
        return SessionOrder(
            session=session.id,
            generation=plan.generation,
            action=action.name,
            protocol=plan.policy.scheme,
            host=exchanger.name.strip("[]"),
            address=exchanger.address,
            port=url.port if url is not None else 25,
            helo=helo,
            source=session.route.source.address,
            tls=plan.policy.tls,
            tls_verify=plan.policy.verify,
            pki=action.pki,
            ca=action.ca,
            ciphers=action.ciphers or self.config.smtp.ciphers,
            protocols=action.protocols,
            auth_table=action.auth if url is not None and url.label else "",
            auth_label=url.label if url is not None else "",
            host_for_log=session.route.host.name,
            mails_max=limits.session_mail_max,
            keepalive=limits.session_keepalive,
            transaction_delay=limits.session_transaction_delay,
            failures_max=limits.max_failures_per_session,
            require_tls=plan.require_tls,
            filter=action.filter,
        )

    def closed(self, session: Session, event: SessionEvent) -> None:
        """A session is over: count it out, judge what it showed, and connect anew if that is wanted."""
        relay, connector, route = session.relay, session.connector, session.route
        now = self._monotonic()
        for used in (relay, relay.domain, connector, route, route.source, route.host):
            used.closed()
        route.last_disconnect = now
        if event.delivered and route.penalty:
            route.penalty -= 1
        if event.blame == "source":
            self._log.info(f"smtp-out: Error on {route}: {event.error}")
            connector.fault = connector.fault or Fault.ERROR_SOURCE
        elif event.blame in ("tls", "tls-now"):
            self._leave_out(relay, session, event.error, for_now=event.blame == "tls-now")
        elif event.blame:
            relay.failed = Failure(Result.TEMPFAIL, event.error)
            if event.blame == "credentials":
                self._log.warn(f"Failed to retrieve secret for {relay.plan}")
        elif event.network and (route.new or not route.connections):
            # A route that worked is no exception once nothing is left on it: else we would knock without end.
            self._disable(route, now)
        elif event.network:
            connector.not_before = now + LIMIT_CHECK  # others still get through: perhaps we are too many
        elif not session.ready:
            connector.not_before = now + _NO_DISPATCHER
        self.connect(relay, connector)
        if connector.fault is not None and "connector" in relay.waits:  # see at once whether another source will do
            relay.timer.cancel()
            del relay.waits["connector"]
            relay.next_source = now

    def _leave_out(self, relay: RelayState, session: Session, reason: str, *, for_now: bool) -> None:
        """A host without the protection that the messages demand: others of the domain may have it.

        The route is not to blame: mail that demands nothing goes on there. Where one of them may serve later, the
        messages wait for that, whatever the others are like.
        """
        domain, host = relay.domain, session.route.host
        left = tuple(mx for mx in domain.exchangers or () if mx.address != host.address)
        self._log.info(f"smtp-out: REQUIRETLS: {host} cannot be used{' now' if for_now else ''}: {reason}")
        domain.exchangers = left or None  # with none, they are asked for anew next time
        if for_now:
            domain.postponed = f"{host}: {reason}"
        if not left:
            relay.failed = _postponed(domain.postponed) if domain.postponed else _unprotected(f"{host}: {reason}")

    def _disable(self, route: Route, now: float) -> None:
        seconds = self.routing.disable(route, now)
        self._log.info(f"smtp-out: Disabling route {route} for {seconds}s")
        self._jobs.later(seconds, partial(self._enable, route))

    def _enable(self, route: Route) -> None:
        if route.disabled_until is not None and route.disabled_until <= self._monotonic() + 0.001:
            self._log.info(f"smtp-out: Enabling route {route}")
            self._enabled(route)

    def resume(self, number: int) -> None:
        """Enable the route of that number, or all with 0."""
        for route in list(self.routing.routes.values()):
            if route.disabled_until is not None and number in (0, route.id):
                self._log.info(f"smtp-out: Enabling route {route} per admin request")
                route.penalty = 0
                self._enabled(route)

    def _enabled(self, route: Route) -> None:
        self.routing.enable(route)
        for relay in list(self._relays()):
            connector = relay.connectors.get(route.source.address)
            if connector is not None and connector.fault is Fault.ERROR_ROUTE_NET:
                connector.fault = None
                self.connect(relay, connector)


def _unprotected(reason: str) -> Failure:
    return Failure(Result.PERMFAIL, f"{REQUIRETLS_FAILED}: {reason}", REQUIRETLS_CODE)


def _postponed(reason: str) -> Failure:
    return Failure(Result.TEMPFAIL, f"{REQUIRETLS_POSTPONED}: {reason}", REQUIRETLS_CODE)
