"""What every session of a dispatcher uses; made once by `server/listener`."""

from collections.abc import Callable, Coroutine

import msgspec

from pillarbox.filters.processors import Processors
from pillarbox.log import Log
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import Queue
from pillarbox.server.admissions import Admissions
from pillarbox.server.msgids import MessageIds
from pillarbox.server.names import ReverseNames
from pillarbox.server.trace import Dates


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Shared by the sessions. `auth_delay`: seconds from a password to the answer that it is wrong.

    `control_socket`: its path, which is the address of local users to filters.
    """

    lookup: Lookup
    queue: Queue
    log: Log
    msgids: MessageIds
    admissions: Admissions
    names: ReverseNames
    dates: Dates
    processors: Processors
    control_socket: str
    random64: Callable[[], int]
    auth_delay: Callable[[], float]
    background: Callable[[Coroutine[None, None, None]], None]
    count: Callable[[str, int], None]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """The other end of a connection. `address` is "local" for the control socket.

    `local`: the ruleset's `from local`. `loopback`: it came in on the loopback address, or over the control socket.
    `hostname`: known beforehand, for the control socket. `server`, `port`: our end; `client_port`: the other's.
    """

    address: str
    local: bool = False
    loopback: bool = False
    hostname: str | None = None
    username: str = ""
    server: str = ""
    port: int = 0
    client_port: int = 0

    @property
    def shown(self) -> str:
        """The address as the reference writes it into replies and Received."""
        return f"[{self.address}]"

    @property
    def logged(self) -> str:
        """The address as the reference writes it into the log."""
        return bracketed(self.address)


def bracketed(address: str) -> str:
    """An IPv6 address in brackets, any other as it is."""
    return f"[{address}]" if ":" in address else address
