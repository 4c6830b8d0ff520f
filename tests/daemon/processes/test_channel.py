"""The channel between parent and role: messages, descriptors, sealed memory, the end."""

import asyncio
import os
import socket

import pytest

from pillarbox.daemon.processes.channel import Channel, Message, read_memory, sealed_memory


def test_messages_arrive_in_order_with_their_descriptors() -> None:
    async def check() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender, receiver = Channel(ours), Channel(theirs)
        got: list[tuple[Message, list[int]]] = []
        ended, last = asyncio.Event(), asyncio.Event()

        def receive(message: Message, descriptors: list[int]) -> None:
            got.append((message, descriptors))
            if message.op == "last":
                last.set()

        receiver.start(receive, ended.set)
        sender.start(lambda m, fds: None, lambda: None)
        fd = sealed_memory("x", b"secret" * 1000)
        sender.send("boot", {"boot": fd, "peer queue": fd})
        os.close(fd)
        for number in range(2000):  # more than the socket holds: the rest waits for room
            sender.send(f"op{number}")
        sender.send("last")
        await asyncio.wait_for(last.wait(), 3)
        sender.close()
        await asyncio.wait_for(ended.wait(), 3)
        assert got[0][0].names == ("boot", "peer queue")
        assert [read_memory(d) for d in got[0][1]] == [b"secret" * 1000] * 2
        assert [m.op for m, _ in got[1:-1]] == [f"op{n}" for n in range(2000)]

    asyncio.run(check())


def test_sealed_memory_cannot_be_changed() -> None:
    fd = sealed_memory("x", b"key")
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"KEY", 0)
    assert read_memory(fd) == b"key"


def test_sending_to_a_dead_peer_is_harmless() -> None:
    async def check() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sender = Channel(ours)
        ended = asyncio.Event()
        sender.start(lambda m, fds: None, ended.set)
        theirs.close()
        sender.send("drain")
        await asyncio.wait_for(ended.wait(), 3)
        sender.close()

    asyncio.run(check())
