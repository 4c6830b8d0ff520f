"""Started as anyone else, or with `--one-process`: the same roles on one event loop, joined within the process."""

import asyncio
import contextlib
import os
import time

from pillarbox.daemon import activation, launch
from pillarbox.daemon.assembly.build import build_role
from pillarbox.daemon.assembly.parent import ParentServices
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.processes.collector import spare_what_is_built
from pillarbox.daemon.processes.parent import DRAIN_DEADLINE, START_DEADLINE
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.reload.members import LocalRole, Member
from pillarbox.daemon.reload.reload import Reloader
from pillarbox.daemon.reload.retirement import Retirement
from pillarbox.daemon.role import Role
from pillarbox.daemon.settings import Boot, Generation, Settings
from pillarbox.daemon.wiring import CONTROL, DISPATCHER, FILTER, LOOKUP, PARENT, QUEUE
from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.mail.seal import KEY_SIZE

_NAMES = (LOOKUP, QUEUE, FILTER, f"{DISPATCHER}.0", CONTROL)


async def run(first: Generation, settings: Settings, sockets: launch.Sockets, log: Log) -> int:
    """Build the roles, join them, serve until told to stop; returns the exit status."""
    stopping = asyncio.Event()
    generations = Generations(first)
    peers = {name: Peers(name, 1, log) for name in (*_NAMES, PARENT)}
    parent = ParentServices(
        generations,
        settings,
        peers[PARENT],
        as_root=os.geteuid() == 0,
        on_stop=stopping.set,
        on_reload=lambda: reloader.reload(),  # noqa: PLW0108 - which is made last
        log=log,
    )
    roles = await _join(first, settings, peers, parent, log)
    roles[CONTROL].add_socket("control", sockets.control)
    for address, (listening,) in sockets.listening.items():
        roles[f"{DISPATCHER}.0"].add_socket(address, listening.dup())  # a reload may close the one and not the other
    started = asyncio.Event()
    reloader = _reloader(
        roles, parent, generations=generations, settings=settings, sockets=sockets, started=started, log=log
    )
    launch.handle_signals(stopping.set, reloader.request)
    try:
        async with asyncio.timeout(START_DEADLINE):
            for role in roles.values():
                await role.start()
            await parent.start()
    except (PillarboxError, TimeoutError) as error:
        log.warn(str(error) or "could not start in time")
        return 1
    started.set()
    spare_what_is_built()
    log.info("info: ready")
    activation.notify(os.environ, "READY=1")
    await stopping.wait()
    log.info("info: exiting")
    activation.notify(os.environ, "STOPPING=1")
    reloader.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_DEADLINE):
            await asyncio.gather(*(role.drain() for role in roles.values()), parent.drain())
    for name in reversed(_NAMES):
        await roles[name].stop()
    await parent.stop()
    return 0


async def _join(
    first: Generation, settings: Settings, peers: dict[str, Peers], parent: ParentServices, log: Log
) -> dict[str, Role]:
    """The roles, each with what it may ask of the others."""
    boot = Boot(
        role="",
        index=0,
        generation=first,
        state=settings.state,
        verbose=log.verbose,
        debug=settings.debug,
        paused=settings.paused,
        seal_key=os.urandom(KEY_SIZE),
    )
    roles = {name: await build_role(kind(name), boot, peers[name], log) for name in _NAMES}
    services = {name: role.services for name, role in roles.items()} | {PARENT: parent.services}
    parent.programs.hand = lambda token, connection: roles[LOOKUP].add_program(token, connection.dup())
    parent.filter_programs.hand = lambda token, connection: roles[FILTER].add_program(token, connection.dup())
    for mine in peers.values():
        for name in mine.ports:
            mine.attach_local(name, services[name])
    return roles


def _reloader(
    roles: dict[str, Role],
    parent: ParentServices,
    *,
    generations: Generations,
    settings: Settings,
    sockets: launch.Sockets,
    started: asyncio.Event,
    log: Log,
) -> Reloader:
    members: list[Member] = [LocalRole(name, role, log) for name, role in [(PARENT, parent), *roles.items()]]

    async def all_members() -> list[Member]:
        await started.wait()
        return members

    retirement = Retirement(
        generations=generations, members=lambda: members, expected=lambda: len(members), now=time.monotonic, log=log
    )
    parent.run("retirement", retirement.run())
    return Reloader(
        settings=settings,
        generations=generations,
        listening=sockets.listening,
        dispatchers=1,
        members=all_members,
        retirement=retirement,
        fatal=parent.fatal,
        log=log,
    )
