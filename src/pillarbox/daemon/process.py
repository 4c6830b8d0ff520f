"""A role in a process of its own: `python -m pillarbox.daemon.process ROLE FD`, started by the parent alone.

It receives its boot values and descriptors over the channel FD, builds the role, gives up its rights, and serves its
peers until the parent says `stop` or goes away.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import msgspec

from pillarbox.daemon.assembly.build import build_role
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.processes import privileges
from pillarbox.daemon.processes.channel import Channel, Message, read_memory, receive_message
from pillarbox.daemon.processes.collector import spare_what_is_built
from pillarbox.daemon.reload.changes import CHANGES, Changes
from pillarbox.daemon.role import Role
from pillarbox.daemon.settings import Boot
from pillarbox.daemon.wiring import DISPATCHER
from pillarbox.errors import PillarboxError
from pillarbox.log import Log, stderr_log

_STOPPING = 40  # seconds for a role to end; the queue's store has 30


def main() -> None:
    """Entry of the re-executed process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent alone handles them, and says `stop`
    channel = Channel(socket.socket(fileno=int(sys.argv[2])))
    os.set_inheritable(channel.socket.fileno(), False)
    channel.socket.setblocking(True)
    first = receive_message(channel.socket)
    if first is None:
        return
    message, descriptors = first
    channel.socket.setblocking(False)
    boot = msgspec.msgpack.decode(read_memory(descriptors[0]), type=Boot)
    log = stderr_log(verbose=boot.verbose) if boot.debug else Log(verbose=boot.verbose)
    try:
        _start_loop(_run(boot, channel, message, descriptors, log))
    except PillarboxError as error:
        log.warn(f"{_name(boot)}: {error}")
        sys.exit(1)
    except Exception as error:  # the last word of a process whose stderr may lead nowhere
        log.exception(f"{_name(boot)}: cannot go on", error)
        sys.exit(os.EX_SOFTWARE)


def _name(boot: Boot) -> str:
    return boot.role if boot.role != DISPATCHER else f"{DISPATCHER}.{boot.index}"


def _start_loop(run: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - asyncio where it is absent
    except ImportError:
        asyncio.run(run)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run)


async def _run(boot: Boot, channel: Channel, first: Message, descriptors: list[int], log: Log) -> None:
    peers = Peers(_name(boot), boot.dispatchers, log)
    listening: dict[str, socket.socket] = {}
    links: list[tuple[str, socket.socket]] = []
    for what, fd in zip(first.names[1:], descriptors[1:], strict=True):
        kind, _, value = what.partition(" ")
        connection = socket.socket(fileno=fd)
        if kind == "listen":
            listening[value] = connection
        else:
            links.append((value, connection))
    if boot.account is not None:
        privileges.become(privileges.Account(*boot.account))
    privileges.renounce()
    role = await build_role(boot.role, boot, peers, log)
    for address, sock in listening.items():
        role.add_socket(address, sock)
    await _serve(role, peers, links, channel, log)


async def _serve(role: Role, peers: Peers, links: list[tuple[str, socket.socket]], channel: Channel, log: Log) -> None:
    ended = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a peer that was not joined would be missing for ever: start afresh
            log.exception(f"{peers.me}: cannot go on", error)
            os._exit(os.EX_SOFTWARE)

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(done)

    async def drain() -> None:
        try:
            await role.drain()
        finally:
            channel.send("drained")

    changes = Changes(peers.me, role, channel, log)
    spawn(changes.run())

    def receive(message: Message, fds: list[int]) -> None:
        if message.op in CHANGES:
            changes.add(message, fds)
        elif message.op == "peer":
            for what, fd in zip(message.names, fds, strict=True):
                spawn(peers.attach(what.partition(" ")[2], socket.socket(fileno=fd), role.services))
        elif message.op == "program":
            role.add_program(int(message.names[0]), socket.socket(fileno=fds[0]))
        elif message.op == "alive":
            channel.send("answer alive")
        elif message.op == "drain":
            spawn(drain())
        elif message.op == "stop":
            ended.set()

    peers.on_lost = role.peer_lost
    peers.on_attached = role.peer_attached
    peers.on_faulty = lambda peer: channel.send(f"faulty {peer}")
    for peer, connection in links:
        await peers.attach(peer, connection, role.services)
    # Only now: what the channel brings about the same peers is newer.
    channel.start(receive, ended.set)
    await _until(role.start(), ended)
    spare_what_is_built()
    channel.send("ready")
    await ended.wait()
    signal.alarm(_STOPPING)  # whatever a thread waits for
    await role.stop()


async def _until(work: Coroutine[Any, Any, None], ended: asyncio.Event) -> None:
    """Do it, or leave off when the parent is gone: it may wait for a peer that is gone too."""
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(ended.wait())
    await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if working.done():
        working.result()
    else:
        working.cancel()


if __name__ == "__main__":
    main()
