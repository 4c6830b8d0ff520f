"""Where outgoing connections may go, and when: hosts, sources, routes, their limits, delays and penalties.

Pure bookkeeping of the queue role: times are seconds of a monotonic clock that the caller reads. `mta/relay` asks
`Routing.find`, opens what it says, and reports `opened` and `closed`. Formulas: FACTS of the reference, mta.c.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from pillarbox.conf.model import MtaLimits
from pillarbox.roles.lookup import MxHost

PENALTY_BASE = 15  # seconds: a route with penalty p is disabled 15 p²,
PENALTY_MAX = 3600  # an hour at the most
LIMIT_CHECK = 5  # seconds until a limit that was hit is looked at again


@dataclass(slots=True, eq=False)
class Usage:
    """What is counted for every thing that has limits."""

    connections: int = 0
    last_connect: float = -math.inf

    def opened(self, now: float) -> None:
        """A connection more."""
        self.connections += 1
        self.last_connect = now

    def closed(self) -> None:
        """A connection less."""
        self.connections -= 1


@dataclass(slots=True, eq=False)
class Source(Usage):
    """A local address to send from; "" leaves it to the kernel."""

    address: str = ""

    def __str__(self) -> str:
        return bracketed(self.address) if self.address else "[]"


@dataclass(slots=True, eq=False)
class Host(Usage):
    """An address to send to. `name`: its reverse name (the address where it has none), "" before it was asked."""

    address: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{bracketed(self.address)} ({self.name})" if self.name else bracketed(self.address)


@dataclass(slots=True, eq=False)
class Domain(Usage):
    """A destination domain, or a smarthost (`as_host`), and where it is served.

    `postponed`: why an exchanger that was left out may serve later, "" where there is none.
    """

    name: str = ""
    as_host: bool = False
    exchangers: tuple[MxHost, ...] | None = None
    postponed: str = ""
    asked_at: float = -math.inf


@dataclass(slots=True, eq=False)
class Route(Usage):
    """A source and a host. `new`: no session has got through since it was made or enabled."""

    source: Source = field(default_factory=Source)
    host: Host = field(default_factory=Host)
    id: int = 0
    new: bool = True
    disabled_until: float | None = None
    penalty: int = 0
    last_penalty: float = -math.inf
    last_disconnect: float = -math.inf

    def __str__(self) -> str:
        return f"{self.source} <-> {self.host}"


class Fault(Enum):
    """Why a source cannot reach a destination: `show relays` prints the name, the first in this order is the reason."""

    ERROR_ROUTE_NET = "Network error on destination MXs"
    ERROR_MX = "No MX found for destination"
    ERROR_FAMILY = "Address family mismatch on destination MXs"
    ERROR_BLOCKED = "All routes to destination blocked"
    ERROR_SOURCE = "No valid route to destination"


@dataclass(frozen=True, slots=True)
class Choice:
    """Connect on this route, to this exchanger."""

    route: Route
    exchanger: MxHost


@dataclass(frozen=True, slots=True)
class Later:
    """Not now: a limit is reached, or a delay has not passed. Ask again at `at`."""

    at: float


class Obstacle(Enum):
    """What keeps a host from being used."""

    LIMIT = "too many connections"
    FAMILY = "address family mismatch"
    DISABLED = "suspended"


class Routing:
    """Every source, host, domain and route in use, once for all relays."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.hosts: dict[str, Host] = {}
        self.domains: dict[tuple[str, bool, bool], Domain] = {}
        self.routes: dict[tuple[str, str], Route] = {}
        self._route_ids = 0
        self._longest_delay = 0

    def source(self, address: str) -> Source:
        """The source of that address."""
        return self.sources.setdefault(address, Source(address=address))

    def host(self, address: str) -> Host:
        """The host of that address."""
        return self.hosts.setdefault(address, Host(address=address))

    def domain(self, name: str, *, as_host: bool, require_tls: bool = False) -> Domain:
        """The domain of that name; for REQUIRETLS one of its own, since fewer hosts serve it."""
        key = (name.lower(), as_host, require_tls)
        return self.domains.setdefault(key, Domain(name=name, as_host=as_host))

    def route(self, source: Source, host: Host) -> Route:
        """The route from there to there."""
        key = (source.address, host.address)
        found = self.routes.get(key)
        if found is None:
            self._route_ids += 1
            found = self.routes[key] = Route(source=source, host=host, id=self._route_ids)
        return found

    def find(
        self, source: Source, domain: Domain, limits: MtaLimits, now: float, below: float = math.inf
    ) -> Choice | Later | Fault:
        """The route with the fewest connections of the best preference that can be used.

        `below`: as a backup MX, only exchangers of a smaller preference than our own. A host that is only busy is
        waited for, it does not make the next preference a candidate.
        """
        self._longest_delay = max(self._longest_delay, limits.conn_delay_route, limits.reconn_delay_route)
        best: Choice | None = None
        obstacles: list[Obstacle | float] = []
        level, seen = -math.inf, False
        for exchanger in domain.exchangers or ():
            if exchanger.preference > level:
                waiting = any(o is Obstacle.LIMIT or isinstance(o, float) for o in obstacles)
                if best is not None or waiting or exchanger.preference >= below:
                    break
                level = exchanger.preference
            seen = True
            route = self.route(source, self.host(exchanger.address))
            obstacle = _obstacle(route, limits, now)
            if obstacle is not None:
                obstacles.append(obstacle)
            elif best is None or route.connections < best.route.connections:
                best = Choice(route, exchanger)
        return best or _why_not(seen, obstacles, now)

    def disable(self, route: Route, now: float) -> int:
        """A network error on a route that has not proved itself: one penalty more. Returns the seconds it is out."""
        route.penalty += 1
        route.last_penalty = now
        delay = min(PENALTY_BASE * route.penalty * route.penalty, PENALTY_MAX)
        route.disabled_until = now + delay
        return delay

    def enable(self, route: Route) -> None:
        """The time is over: one session may try."""
        route.disabled_until = None
        route.new = True

    def sweep(self, domains: Iterable[Domain], sources: Iterable[Source], now: float) -> None:
        """Forget what nothing needs: neither these (of relays), nor an open connection, a delay or a penalty."""
        for key, route in list(self.routes.items()):
            delays = max(route.last_connect, route.last_disconnect) + self._longest_delay
            penalty = route.last_penalty + 2 * PENALTY_MAX if route.penalty else -math.inf
            if not route.connections and route.disabled_until is None and max(delays, penalty) <= now:
                del self.routes[key]
        kept_domains = set(map(id, domains))
        self.domains = {k: d for k, d in self.domains.items() if d.connections or id(d) in kept_domains}
        addresses = {mx.address for d in self.domains.values() for mx in d.exchangers or ()}
        addresses.update(address for _, address in self.routes)
        self.hosts = {a: h for a, h in self.hosts.items() if a in addresses}
        kept_sources = {source.address for source in sources} | {address for address, _ in self.routes}
        self.sources = {a: s for a, s in self.sources.items() if a in kept_sources}

    def references(self, host: Host) -> int:
        """How many routes and exchanger lists name this host."""
        lists = sum(mx.address == host.address for d in self.domains.values() for mx in d.exchangers or ())
        return lists + sum(address == host.address for _, address in self.routes)


def _obstacle(route: Route, limits: MtaLimits, now: float) -> Obstacle | float | None:
    """What speaks against a connection on this route now; a number is the time until which a delay runs."""
    host, source = route.host, route.source
    family = "inet6" if ":" in host.address else "inet4"
    if limits.family not in ("", family) or (source.address and (":" in source.address) != (family == "inet6")):
        return Obstacle.FAMILY
    if host.connections >= limits.max_conn_per_host:
        return Obstacle.LIMIT
    if host.last_connect + limits.conn_delay_host > now:
        return host.last_connect + limits.conn_delay_host
    if route.disabled_until is not None:
        return Obstacle.DISABLED
    # One session must show that the route works before others follow.
    if route.connections >= (1 if route.new else limits.max_conn_per_route):
        return Obstacle.LIMIT
    ready = max(route.last_connect + limits.conn_delay_route, route.last_disconnect + limits.reconn_delay_route)
    return ready if ready > now else None


def _why_not(seen: bool, obstacles: list[Obstacle | float], now: float) -> Later | Fault:
    if not seen:
        return Fault.ERROR_MX
    if Obstacle.LIMIT in obstacles:
        return Later(now + LIMIT_CHECK)
    times = [o for o in obstacles if isinstance(o, float)]
    if times:
        return Later(min(times))
    return Fault.ERROR_FAMILY if Obstacle.FAMILY in obstacles else Fault.ERROR_ROUTE_NET


def bracketed(address: str) -> str:
    """An address as the logs show it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
