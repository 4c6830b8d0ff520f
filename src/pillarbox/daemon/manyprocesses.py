"""Started as root: parent and roles as separate processes."""

import asyncio
import time

from pillarbox.daemon import launch
from pillarbox.daemon.assembly.parent import ParentServices
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.processes.parent import Parent
from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.reload.reload import Reloader
from pillarbox.daemon.reload.retirement import Retirement
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.wiring import PARENT
from pillarbox.log import Log


async def run(
    first: Generation,
    settings: Settings,
    accounts: dict[str, Account],
    sockets: launch.Sockets,
    *,
    log: Log,
) -> int:
    """Start the roles, and serve until told to stop; returns the exit status."""
    peers = Peers(PARENT, settings.dispatchers, log)
    generations = Generations(first)
    stopping = asyncio.Event()
    services = ParentServices(
        generations,
        settings,
        peers,
        as_root=True,
        on_stop=stopping.set,
        on_reload=lambda: reloader.reload(),  # noqa: PLW0108 - which is made last
        log=log,
    )
    parent = Parent(
        generations=generations,
        settings=settings,
        services=services,
        peers=peers,
        listening=sockets.listening,
        control=sockets.control,
        accounts=accounts,
        stopping=stopping,
        log=log,
    )
    retirement = Retirement(
        generations=generations, members=parent.members, expected=parent.expected, now=time.monotonic, log=log
    )
    reloader = Reloader(
        settings=settings,
        generations=generations,
        listening=sockets.listening,
        dispatchers=settings.dispatchers,
        members=parent.all_members,
        retirement=retirement,
        fatal=services.fatal,
        log=log,
    )
    services.run("retirement", retirement.run())
    launch.handle_signals(stopping.set, reloader.request)
    try:
        return await parent.run()
    finally:
        reloader.close()
