"""A role in a process of its own: `python -m pillarbox.daemon.process ROLE FD`, started by the parent alone.

It receives its boot values and descriptors over the channel FD, builds the role, gives up its rights, and serves its
peers until the parent says `stop` or goes away.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import msgspec

from pillarbox.daemon import privileges
from pillarbox.daemon.channel import Channel, Message, read_memory, receive_message
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.role import Role
from pillarbox.daemon.roles import BUILDERS
from pillarbox.daemon.settings import Boot
from pillarbox.log import Log, stderr_log


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
    _start_loop(_run(boot, channel, message, descriptors, log))


def _start_loop(run: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - asyncio where it is absent
    except ImportError:
        asyncio.run(run)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run)


async def _run(boot: Boot, channel: Channel, first: Message, descriptors: list[int], log: Log) -> None:
    name = boot.role if boot.role != "dispatcher" else f"dispatcher.{boot.index}"
    peers = Peers(name, boot.dispatchers, log)
    listening: list[tuple[int, socket.socket]] = []
    links: list[tuple[str, socket.socket]] = []
    for what, fd in zip(first.names[1:], descriptors[1:], strict=True):
        kind, _, value = what.partition(" ")
        connection = socket.socket(fileno=fd)
        if kind == "listen":
            listening.append((int(value.split()[0]), connection))
        else:
            links.append((value, connection))
    if boot.account is not None:
        privileges.become(privileges.Account(*boot.account))
    privileges.renounce()
    role = await BUILDERS[boot.role](boot, peers, log)
    for listener, sock in listening:
        role.add_socket(listener, sock)
    await _serve(role, peers, links, channel)


async def _serve(role: Role, peers: Peers, links: list[tuple[str, socket.socket]], channel: Channel) -> None:
    ended = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def drain() -> None:
        await role.drain()
        channel.send("drained")

    def receive(message: Message, fds: list[int]) -> None:
        if message.op == "peer":
            for what, fd in zip(message.names, fds, strict=True):
                spawn(peers.attach(what.partition(" ")[2], socket.socket(fileno=fd), role.services))
        elif message.op == "drain":
            spawn(drain())
        elif message.op == "stop":
            ended.set()

    peers.on_lost = role.peer_lost
    peers.on_attached = role.peer_attached
    channel.start(receive, ended.set)
    for peer, connection in links:
        await peers.attach(peer, connection, role.services)
    await role.start()
    # What was built lives as long as the process: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    channel.send("ready")
    await ended.wait()
    await role.stop()


if __name__ == "__main__":
    main()
