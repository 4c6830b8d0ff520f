"""The parent with roles that cannot be started."""

import asyncio
import io
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pillarbox.conf.model import Config
from pillarbox.daemon.assembly.parent import ParentServices
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.processes.channel import Channel
from pillarbox.daemon.processes.child import Child
from pillarbox.daemon.processes.parent import Parent
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.reload.members import LocalRole
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.wiring import PARENT
from pillarbox.log import Log
from pillarbox.roles.parent import Reloaded


async def unasked() -> Reloaded:
    raise AssertionError("nobody asks for a reload")


def make(state: Path, log: Log) -> Parent:
    generations = Generations(Generation(config=Config(hostname="x")))
    settings = Settings(file="conf", state=str(state), directory="/")
    peers = Peers(PARENT, 1, log)
    services = ParentServices(
        generations, settings, peers, as_root=False, on_stop=lambda: None, on_reload=unasked, log=log
    )
    return Parent(
        generations=generations,
        settings=settings,
        services=services,
        peers=peers,
        listening={},
        control=socket.socket(),
        accounts={},
        stopping=asyncio.Event(),
        log=log,
    )


def test_a_role_that_lived_long_and_cannot_be_started_is_tried_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    text = io.StringIO()

    async def body() -> None:
        parent = make(tmp_path, Log(text))
        process = subprocess.Popen(["true"])  # noqa: ASYNC220 - no more than its end is needed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        child = Child("queue", process, Channel(ours))
        child.started = time.monotonic() - 3600
        child.has_ended()
        process.wait()
        restarting = asyncio.ensure_future(parent._restart(child, 0))
        async with asyncio.timeout(5):
            while "in 0.8 s" not in text.getvalue():  # noqa: ASYNC110 - the log is all that can be seen of it
                await asyncio.sleep(0.01)
        restarting.cancel()
        for task in parent._tasks:
            task.cancel()

    asyncio.run(body())
    lines = text.getvalue().splitlines()
    assert lines[0] == "warn: queue exited with 0; starting it again"
    assert [line.rpartition("; ")[2] for line in lines[1:]] == [
        "starting it again in 0.4 s",
        "starting it again in 0.8 s",
    ]
    assert "queue cannot be started: " in lines[1]


def test_ending_a_role_of_this_process_does_not_undo_what_was_decided() -> None:
    undone: list[int] = []

    class Undoing(BaseRole):
        def abort(self, number: int) -> None:
            undone.append(number)

        forget = abort

    async def body() -> None:
        log = Log(io.StringIO())
        member = LocalRole("control", Undoing(log), log)
        await member.commit(1)
        member.end()
        assert undone == [] and not member.gone

    asyncio.run(body())
