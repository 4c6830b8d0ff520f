"""Roles that fall silent, with real processes on the other end of a channel."""

import asyncio
import io
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from pillarbox.daemon.processes import watchdog
from pillarbox.daemon.processes.channel import Channel, Message
from pillarbox.daemon.processes.child import Child
from pillarbox.log import Log

ROLE = """
import asyncio, socket, sys
from pillarbox.daemon.processes.channel import Channel

async def main():
    channel, ended = Channel(socket.socket(fileno=int(sys.argv[1]))), asyncio.Event()
    channel.start(lambda message, fds: channel.send(f"answer {message.op}"), ended.set)
    channel.send("ready")
    await ended.wait()

asyncio.run(main())
"""


def watched(scenario: Callable[[Child], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, patience: float) -> str:
    """What is logged while a role of its own process is watched, and the scenario happens to it."""
    monkeypatch.setattr(watchdog, "EVERY", 0.02)
    monkeypatch.setattr(watchdog, "PATIENCE", patience)
    text = io.StringIO()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([sys.executable, "-c", ROLE, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()

    async def body() -> None:
        child = Child("lookup", process, Channel(ours))

        def receive(message: Message, fds: list[int]) -> None:
            child.ready.set() if message.op == "ready" else child.answered(message)

        child.channel.start(receive, child.has_ended)
        watching = asyncio.create_task(watchdog.watch(child, Log(text)))
        try:
            async with asyncio.timeout(20):
                await child.ready.wait()
                await scenario(child)
                await watching
        finally:
            process.kill()
            process.wait()
            if not child.ended.is_set():
                child.has_ended()

    asyncio.run(body())
    return text.getvalue()


def test_a_role_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(child: Child) -> None:
        child.process.send_signal(signal.SIGSTOP)
        assert await asyncio.to_thread(child.process.wait) == -signal.SIGKILL

    assert "lookup has not answered for 1 seconds: it is ended" in watched(hang, monkeypatch, 0.3)


def test_a_role_that_answers_is_left_alone_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live(child: Child) -> None:
        for _ in range(50):
            assert await child.ask("here") == ""
        assert child.process.poll() is None
        child.process.terminate()

    assert watched(live, monkeypatch, 15.0) == ""


def test_a_pause_of_the_parent_is_not_held_against_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(child: Child) -> None:
        child.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.3)  # longer than it may be silent once
        child.process.send_signal(signal.SIGCONT)
        assert await child.ask("here") == ""
        child.process.terminate()

    assert watched(pause, monkeypatch, 2.0) == ""


def test_a_role_that_ends_before_it_is_ready_is_watched_no_longer() -> None:
    async def body() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        process = subprocess.Popen(["true"])  # noqa: ASYNC220 - no more than a pid is needed
        child = Child("lookup", process, Channel(ours))
        watching = asyncio.create_task(watchdog.watch(child, Log(io.StringIO())))
        await asyncio.sleep(0)
        process.wait()
        child.has_ended()
        async with asyncio.timeout(5):
            await watching

    asyncio.run(body())
