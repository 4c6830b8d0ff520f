"""What `smtpctl show relays|routes|hosts` prints about outgoing mail: the reference's lines."""

import math

from pillarbox.mta.lines import duration
from pillarbox.mta.route import Routing, Usage
from pillarbox.mta.state import RelayState, Timer


def relay_lines(relay: RelayState, now: float) -> list[str]:
    """A relay and its connectors. COMPAT: `refcount` is what it counts as here: sessions and lookups."""
    references = relay.connections + len(relay.waits)
    held = "ONHOLD" if relay.held else ""
    lines = [
        f"{relay.plan} refcount={references} ntask={len(relay.tasks)} nconn={relay.connections} "
        f"lastconn={_since(relay, now)} timeout={_until(relay.timer, now)} wait={','.join(relay.waits)}{held}"
    ]
    for connector in relay.connectors.values():
        flags = ["NEW"] if connector.new else []
        flags += ["WAIT"] if connector.timer.due is not None else []
        flags += [connector.fault.name] if connector.fault is not None else []
        lines.append(
            f"  connector {connector.source} refcount=0 nconn={connector.connections} "
            f"lastconn={_since(connector, now)} timeout={_until(connector.timer, now)} flags={','.join(flags)}"
        )
    return lines


def route_lines(routing: Routing, now: float) -> list[str]:
    """Every route: N new, D disabled."""
    lines = []
    for route in sorted(routing.routes.values(), key=lambda r: r.id):
        disabled = route.disabled_until is not None
        flags = f"{'N' if route.new else '-'}{'D' if disabled else '-'}--"
        timeout = duration(route.disabled_until - now) if route.disabled_until is not None else "-"
        lines.append(
            f"{route.id}. {route} {flags} nconn={route.connections} nerror=0 penalty={route.penalty} timeout={timeout}"
        )
    return lines


def host_lines(routing: Routing, now: float) -> list[str]:
    """Every host we know of, by address."""
    return [
        f"{host.address} {host.name or '(null)'} refcount={routing.references(host)} nconn={host.connections} "
        f"lastconn={_since(host, now)}"
        for _, host in sorted(routing.hosts.items())
    ]


def _since(used: Usage, now: float) -> str:
    return "-" if used.last_connect == -math.inf else duration(now - used.last_connect)


def _until(timer: Timer, now: float) -> str:
    return "-" if timer.due is None else duration(timer.due - now)
