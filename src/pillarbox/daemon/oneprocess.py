"""Started as anyone else, or with `--one-process`: the same roles on one event loop, joined within the process."""

import asyncio
import contextlib
import os

from pillarbox.conf.model import Config
from pillarbox.daemon import interfaces, launch
from pillarbox.daemon.parent import DRAIN_DEADLINE, START_DEADLINE
from pillarbox.daemon.parentservices import ParentServices
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.role import Role
from pillarbox.daemon.roles import BUILDERS
from pillarbox.daemon.settings import Boot, Secrets, Settings
from pillarbox.daemon.wiring import CONTROL, DISPATCHER, LOOKUP, PARENT, QUEUE
from pillarbox.errors import PillarboxError
from pillarbox.log import Log

_NAMES = (LOOKUP, QUEUE, f"{DISPATCHER}.0", CONTROL)


async def run(config: Config, settings: Settings, secrets: Secrets, sockets: launch.Sockets, log: Log) -> int:
    """Build the roles, join them, serve until told to stop; returns the exit status."""
    as_root = os.geteuid() == 0
    stopping = asyncio.Event()
    boot = Boot(
        role="",
        index=0,
        config=config,
        state=settings.state,
        verbose=log.verbose,
        debug=settings.debug,
        paused=settings.paused,
        seal_key=os.urandom(32),
        pki=secrets.pki,
        ca=secrets.ca,
        local_addresses=tuple(interfaces.local_addresses()),
    )
    peers = {name: Peers(name, 1, log) for name in (*_NAMES, PARENT)}
    parent = ParentServices(config, settings, peers[PARENT], as_root=as_root, on_stop=stopping.set, log=log)
    roles: dict[str, Role] = {}
    for name in _NAMES:
        roles[name] = await BUILDERS[kind(name)](boot, peers[name], log)
    services = {name: role.services for name, role in roles.items()} | {PARENT: parent.services}
    parent.programs.hand = lambda token, connection: roles[LOOKUP].add_program(token, connection.dup())
    for mine in peers.values():
        for name in mine.ports:
            mine.attach_local(name, services[name])
    roles[CONTROL].add_socket(0, sockets.control)
    for listener, (listening,) in sockets.listening:
        roles[f"{DISPATCHER}.0"].add_socket(listener, listening)
    launch.stop_on_signals(stopping.set, log)
    try:
        async with asyncio.timeout(START_DEADLINE):
            for role in roles.values():
                await role.start()
            await parent.start()
    except (PillarboxError, TimeoutError) as error:
        log.warn(str(error) or "could not start in time")
        return 1
    log.info("info: ready")
    await stopping.wait()
    log.info("info: exiting")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_DEADLINE):
            await asyncio.gather(*(role.drain() for role in roles.values()), parent.drain())
    for name in reversed(_NAMES):
        await roles[name].stop()
    await parent.stop()
    return 0
