"""`smtpctl spf walk`: domains on stdin, on stdout what their SPF records allow, a line each. It needs no server."""

import asyncio
import ipaddress
import itertools
import sys
import time
from collections.abc import Iterable

from pillarbox.cli.connection import ControlError
from pillarbox.dns.resolver import Resolver
from pillarbox.dns.spf import SpfWalk

_FAMILIES = {"": (4, 6), "-4": (4,), "-6": (6,)}
_BATCH = 1000  # domains that are read and asked about at a time


def walk(lines: Iterable[str], family: str) -> int:
    """Walk the records of the domains, one a line; returns the exit status: 1 where the list is not complete."""
    if family not in _FAMILIES:
        raise ControlError("invalid ip_family")
    return asyncio.run(_walk(lines, _FAMILIES[family]))


async def _walk(lines: Iterable[str], families: tuple[int, ...]) -> int:
    walking = SpfWalk(questions=Resolver(now=time.monotonic), warn=_warn, families=families)
    domains = filter(None, map(str.strip, lines))
    found: list[str] = []
    while batch := list(itertools.islice(domains, _BATCH)):
        for networks in await asyncio.gather(*map(walking.walk, batch)):
            found += networks
    # In the same order each time, whatever order answers came in: lists are compared.
    for network in sorted(found, key=_order):
        print(network)
    return 0 if walking.complete else 1


def _order(text: str) -> tuple[int, int, int]:
    network = ipaddress.ip_network(text, strict=False)
    return network.version, int(network.network_address), network.prefixlen


def _warn(text: str) -> None:
    print(f"smtpctl: {text}", file=sys.stderr)
