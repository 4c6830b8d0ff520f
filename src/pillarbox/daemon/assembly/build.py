"""Which class a role is: `lookup`, `queue`, `dispatcher`, `filter` and `control` have a module each here."""

# ruff: noqa: PLC0415 - each process loads what its role needs

from pillarbox.daemon import wiring
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.role import Role
from pillarbox.daemon.settings import Boot
from pillarbox.log import Log


async def build_role(name: str, boot: Boot, peers: Peers, log: Log) -> Role:
    """The role of this name. Within the running loop, because some objects keep it."""
    if name == wiring.LOOKUP:
        from pillarbox.daemon.assembly.lookup import LookupRole

        return LookupRole(boot, peers, log)
    if name == wiring.QUEUE:
        from pillarbox.daemon.assembly.queue import QueueRole

        return QueueRole(boot, peers, log)
    if name == wiring.DISPATCHER:
        from pillarbox.daemon.assembly.dispatcher import DispatcherRole

        return DispatcherRole(boot, peers, log)
    if name == wiring.FILTER:
        from pillarbox.daemon.assembly.filter import FilterRole

        return FilterRole(boot, peers, log)
    if name == wiring.CONTROL:
        from pillarbox.daemon.assembly.control import ControlRole

        return ControlRole(boot, peers, log)
    raise AssertionError(f"no role is called {name}")
