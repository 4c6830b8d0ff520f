"""Sockets that a service manager has bound for us, and what it is told (sd_listen_fds(3), sd_notify(3)).

A listener whose address and port are those of such a socket is served by it: so a server that is not root may have
port 25, and no connection is refused while it starts.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping

from pillarbox.daemon.interfaces import address_of
from pillarbox.log import Log

_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited(environment: MutableMapping[str, str], pid: int, log: Log) -> dict[str, socket.socket]:
    """The sockets by their addresses, as `interfaces.address_of` has them. Our children shall not take them for theirs.

    What is no listening TCP socket is closed, with a line in the log.
    """
    whose, number, _ = (environment.pop(name, "") for name in _VARIABLES)
    if whose != str(pid) or not (number.isascii() and number.isdigit()):
        return {}
    found: dict[str, socket.socket] = {}
    for descriptor in range(_FIRST, _FIRST + int(number)):
        try:
            given = socket.socket(fileno=descriptor)
        except OSError as error:
            log.warn(f"descriptor {descriptor} of LISTEN_FDS is no socket: {error.strerror}")
            continue
        given.set_inheritable(False)
        if not _listens(given) or (address := _address(given)) in found:
            log.warn(f"descriptor {descriptor} of LISTEN_FDS is not used: it is no listening TCP socket of its own")
            given.close()
            continue
        given.setblocking(False)
        found[address] = given
    return found


def _listens(given: socket.socket) -> bool:
    return (
        given.family in (socket.AF_INET, socket.AF_INET6)
        and given.type == socket.SOCK_STREAM
        and bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def _address(given: socket.socket) -> str:
    host, port = given.getsockname()[:2]
    return address_of((given.family, host.partition("%")[0], port))


def notify(environment: MutableMapping[str, str], state: str) -> None:
    """Tell the service manager, where there is one, e.g. `READY=1`."""
    path = environment.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
    ):
        manager.setblocking(False)
        manager.connect(f"\0{path[1:]}" if path[0] == "@" else path)
        manager.send(f"{state}\nMAINPID={os.getpid()}".encode())
