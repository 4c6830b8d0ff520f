"""Groups of network interfaces: `egress`, and those that ip-link(8) knows.

OpenBSD gives an interface any number of named groups, and puts those with a default route into `egress`. Linux gives
each one number (`ip link set dev eth1 group 7`), whose names are in a file; `egress` is found in the routing tables.
Number 0 means no group.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

EGRESS = "egress"
_NAMES = ("/etc/iproute2/group", "/usr/share/iproute2/group")
_UP, _REJECT = 0x1, 0x200  # RTF_UP, RTF_REJECT: linux/route.h
_NOWHERE = "0" * 32


def members(
    group: str, *, proc: str = "/proc/net", classes: str = "/sys/class/net", names: Sequence[str] = _NAMES
) -> set[str]:
    """The names of the interfaces in a group; none where there is no such group."""
    if group == EGRESS:
        return set(_default_routes(_lines(f"{proc}/route"), _lines(f"{proc}/ipv6_route")))
    number = _number(group, names)
    if not number:
        return set()
    known = os.listdir(classes) if os.path.isdir(classes) else ()
    return {name for name in known if _first_number(_lines(f"{classes}/{name}/netdev_group")) == number}


def _default_routes(ipv4: list[str], ipv6: list[str]) -> Iterator[str]:
    """Interfaces that a default route leads through: proc(5), `/proc/net/route` and `ipv6_route`."""
    for line in ipv4[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and _usable(fields[3]):
            yield fields[0]
    for line in ipv6:
        fields = line.split()
        if len(fields) > 9 and fields[0] == _NOWHERE and fields[1] == "00" and _usable(fields[8]):
            yield fields[9]


def _usable(flags: str) -> bool:
    return int(flags, 16) & (_UP | _REJECT) == _UP


def _number(group: str, files: Sequence[str]) -> int:
    """The number of a named group."""
    for path in files:
        for line in _lines(path):
            fields = line.partition("#")[0].split()
            if len(fields) == 2 and fields[1] == group:
                return _first_number(fields)
    return 0


def _first_number(words: Iterable[str]) -> int:
    try:
        return int(next(iter(words), "0"), 0)
    except ValueError:
        return 0


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
