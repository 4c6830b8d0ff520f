"""Who may call what: the call graph of the roles, written down once and enforced on every link.

`CALLS[(caller, callee)]` names the services, each with its methods (`ALL`, or those that this caller needs). A
compromised role can ask its peers for nothing else. No caller waits, directly or through others, for itself: the
calls back from those whom queue orders (`queue.read`, `queue.settle`, `relays.*`) are made outside the orders, which
return as soon as they are noted. `filters.tell` waits for processors, whose answers and changes are told beside it; so
what serves `filtered` must never wait for a `tell`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pillarbox.daemon.ipc import Interface
from pillarbox.roles.deadlines import RELOAD_ASKED
from pillarbox.roles.delivery import Agent, Outgoing, Relays
from pillarbox.roles.dispatcher import Incoming
from pillarbox.roles.filters import Filtered, Filters
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.parent import FilterPrograms, Programs, System
from pillarbox.roles.queue import Queue

DISPATCHER, LOOKUP, QUEUE, FILTER, CONTROL, PARENT = "dispatcher", "lookup", "queue", "filter", "control", "parent"

# Seconds. The others have ipc.DEADLINE.
DEADLINES = {
    "relays.next_task": 90.0,  # waits for the session's keepalive
    "incoming.submit_read": 660.0,  # waits for what a session says next; sessions end by themselves before
    "incoming.submit_write": 330.0,
    "lookup.exchangers": 120.0,
    "lookup.expand": 120.0,
    "lookup.explain": 120.0,
    "system.reload": RELOAD_ASKED,
    "filters.tell": 1260.0,  # waits for a processor to read; that is ended by its own timeout (10 minutes) before
}

INTERFACE = Interface(
    {
        "lookup": Lookup,
        "queue": Queue,
        "relays": Relays,
        "outgoing": Outgoing,
        "agent": Agent,
        "system": System,
        "programs": Programs,
        "filter_programs": FilterPrograms,
        "filters": Filters,
        "filtered": Filtered,
        "incoming": Incoming,
    },
    DEADLINES,
)

ALL: tuple[str, ...] = ()

CALLS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    (DISPATCHER, LOOKUP): {
        "lookup": (
            "expand",
            "client_name",
            "filter",
            "authenticate",
            "check_token",
            "offers_scram",
            "scram_salt",
            "scram_signature",
            "may_send_as",
            "host_name",
            "credentials",
            "trusts_proxy",
            "admit",
            "hold",
            "leave",
            "spend",
        )
    },
    (DISPATCHER, QUEUE): {
        "queue": ("reserve", "append", "discard", "commit", "read", "settle"),
        "relays": ALL,
    },
    (DISPATCHER, FILTER): {"filters": ("join", "tell")},
    (QUEUE, FILTER): {"filters": ("join", "tell")},
    (FILTER, DISPATCHER): {"filtered": ALL},
    (FILTER, QUEUE): {"filtered": ("changed",)},
    (FILTER, PARENT): {"filter_programs": ALL},
    (QUEUE, LOOKUP): {
        "lookup": (
            "expand",
            "reverse_name",
            "host_name",
            "user",
            "relay_url",
            "source_addresses",
            "exchangers",
        )
    },
    (QUEUE, DISPATCHER): {"outgoing": ALL},
    (QUEUE, PARENT): {"agent": ALL},
    (PARENT, QUEUE): {"queue": ("read", "settle")},
    (LOOKUP, PARENT): {
        "system": ("read_forward", "check_password", "login_secret", "read_table", "read_database"),
        "programs": ALL,
    },
    (CONTROL, QUEUE): {
        "queue": (
            "read",
            "show",
            "envelope",
            "schedule",
            "remove",
            "suspend",
            "pause",
            "stats",
            "show_mta",
            "pause_mta_route",
            "resume_route",
            "paused",
            "log_level",
        )
    },
    (CONTROL, DISPATCHER): {"incoming": ALL},
    (CONTROL, FILTER): {"filters": ("show", "restart", "log_level")},
    (CONTROL, LOOKUP): {"lookup": ("update_table", "log_level", "explain")},
    # `configuration` has the secrets that `for_role` keeps from control otherwise: docs/design.md, "Secrets".
    (CONTROL, PARENT): {"system": ("stop", "reload", "log_level", "remember_pause", "remember_route", "configuration")},
}

Handlers = Mapping[tuple[str, str], Callable[..., Awaitable[Any]]]


def neighbours(role: str) -> list[str]:
    """The roles that `role` shares a link with."""
    return sorted({b for a, b in CALLS if a == role} | {a for a, b in CALLS if b == role})


class PerCaller:
    """A service that has to know who calls it, by the link and not by what is said: what `serve(name)` makes."""

    def __init__(self, serve: Callable[[str], object]) -> None:
        self.serve = serve


def allowed(caller: str, callee: str, services: Mapping[str, object], *, name: str) -> Handlers:
    """What `callee`, having these service objects, serves to `caller`. `name`: of that process (`dispatcher.1`)."""
    handlers: dict[tuple[str, str], Callable[..., Awaitable[Any]]] = {}
    for service, names in CALLS.get((caller, callee), {}).items():
        served = services[service]
        target = served.serve(name) if isinstance(served, PerCaller) else served
        for method in names or INTERFACE.by_service[service]:
            handlers[service, method] = getattr(target, method)
    return handlers
