"""Programs that are not ours: what they see, whom they run as, what the log gets of them, how they end."""

import asyncio
import gc
import io
import os
import pwd
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.programs import programs
from pillarbox.daemon.programs.programs import Programs
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.log import Log

SCRIPT = Path(__file__).parent.parent.parent / "tables/misbehaving.py"


class Rig:
    def __init__(self, account: Callable[[], Account] | None = None) -> None:
        self.stream = io.StringIO()
        self.programs = Programs(account=account, log=Log(self.stream))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    async def start(self, mode: str, *, key: str = "k", script: Path = SCRIPT) -> socket.socket:
        return await self.programs.start(key, "users", "/usr/bin/python3", ["-u", str(script), mode])

    async def says(self, text: str) -> None:
        while text not in self.stream.getvalue():  # noqa: ASYNC110 - the log is no event
            await asyncio.sleep(0.02)


def play(body: Callable[[Rig], Awaitable[None]], account: Callable[[], Account] | None = None) -> Rig:
    async def bounded() -> Rig:
        rig = Rig(account)
        async with asyncio.timeout(20):
            try:
                await body(rig)
            finally:
                await rig.programs.stop_all()
        return rig

    return asyncio.run(bounded())


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_a_program_sees_a_clean_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("TZ", "UTC")

    async def body(rig: Rig) -> None:
        with await rig.start("shows"):
            await rig.says("fds ")

    lines = [line.removeprefix("warn: users: ") for line in play(body).lines]
    names = {line.partition("=")[0] for line in lines if re.match(r"\w+=", line)}
    assert names <= {"PATH", "HOME", "SHELL", "PILLARBOX_ACCEPTS", "TZ", "LANG", "LC_ALL", "LC_CTYPE"}, lines
    assert {"TZ=UTC", "HOME=/", "cwd /", "argv ['shows']", "group True", "session True", "fds [0, 1, 2]"} <= set(lines)


@pytest.mark.usefixtures("machine")
def test_it_runs_as_the_account_with_its_groups(folder: Path) -> None:
    script = folder / "program.py"  # where that user may read it
    script.write_bytes(SCRIPT.read_bytes())
    user = pwd.getpwnam("_smtpd")

    async def body(rig: Rig) -> None:
        with await rig.start("shows", script=script):
            await rig.says("ids ")

    rig = play(body, lambda: Account(user.pw_name, user.pw_uid, user.pw_gid))
    groups = sorted(os.getgrouplist(user.pw_name, user.pw_gid))
    assert f"warn: users: ids {(user.pw_uid,) * 3} {(user.pw_gid,) * 3} {groups}" in rig.lines


def test_without_an_account_nothing_is_started() -> None:
    def account() -> Account:
        raise PillarboxError("no user _smtpd")

    async def body(rig: Rig) -> None:
        with pytest.raises(TempFail, match="no user _smtpd"):
            await rig.start("good")

    play(body, account)


def test_error_output_is_logged_line_by_line_within_bounds() -> None:
    async def body(rig: Rig) -> None:
        with await rig.start("talks") as standard:
            await rig.says("left out")
            standard.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(standard, b"config|ready\n")
            assert (await loop.sock_recv(standard, 100)).startswith(b"register|alias\n")

    lines = play(body).lines
    assert lines[0] == "warn: users: starting"
    assert lines[1] == "warn: users: second\\x1b[31m line"
    assert lines[2] == "warn: users: " + ("long" * 250) + "..."
    assert lines[3] == "warn: users: number 0"
    assert len(lines) < 500, len(lines)
    counted = sum(int(m[1]) for m in map(re.compile(r"warn: users: (\d+) more lines").match, lines) if m)
    assert counted + sum("number" in line for line in lines) == 5000
    assert lines.count("warn: users: no end of line") == 1


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o644, "Permission denied"), (None, "No such file or directory"), (0o755, "Exec format error")],
)
def test_what_cannot_be_executed_says_why(folder: Path, mode: int | None, reason: str) -> None:
    path = folder / "table-x"
    if mode:
        path.write_bytes(b"\0\1\2")
        path.chmod(mode)

    async def body(rig: Rig) -> None:
        with pytest.raises(TempFail, match=re.escape(f"{path}: {reason}")):
            await rig.programs.start("k", "x", str(path), [])

    before = children()
    gc.collect()  # what earlier tests left
    descriptors = len(os.listdir("/proc/self/fd"))
    play(body)
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_starting_one_ends_the_one_before() -> None:
    before = children()

    async def body(rig: Rig) -> None:
        with await rig.start("stays") as first:
            first.sendall(b"config|ready\n")
            await rig.says("child ")
            with await rig.start("good") as second:
                first.setblocking(False)
                second.setblocking(False)
                loop = asyncio.get_running_loop()
                while await loop.sock_recv(first, 4096):  # what it said before it ended
                    pass
                await loop.sock_sendall(second, b"config|ready\n")
                assert (await loop.sock_recv(second, 100)).startswith(b"register|alias\n")
                assert len(children() - before) == 1

    play(body)
    assert children() <= before


def test_a_start_that_nobody_waits_for_leaves_no_process() -> None:
    before = children()

    async def body(rig: Rig) -> None:
        starting = asyncio.ensure_future(rig.start("good"))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        while children() - before:  # noqa: ASYNC110 - a process is no event
            await asyncio.sleep(0.02)

    play(body)


def test_a_program_whose_end_nobody_waits_for_is_ended_by_the_next_who_asks() -> None:
    before = children()

    async def body(rig: Rig) -> None:
        with await rig.start("deaf"):
            ending = asyncio.ensure_future(rig.programs.stop("k", grace=60))
            await asyncio.sleep(0.1)
            ending.cancel()
            await asyncio.wait({ending})
            assert children() - before
            await rig.programs.stop("k", grace=0)
            assert not children() - before

    play(body)


def test_a_start_that_hangs_is_given_up_and_no_other_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "START", 0.2)
    release, hung = threading.Event(), list[bool]()

    def account() -> Account:  # in the same thread as execve(2), which a file server may hold
        hung.append(True)
        release.wait(20)
        raise PillarboxError("no user _smtpd")

    async def body(rig: Rig) -> None:
        with pytest.raises(TempFail, match="no answer in time"):
            await rig.start("good")
        for key in "abcdefgh":
            with pytest.raises(TempFail, match="/usr/bin/python3 does not answer"):
                await rig.start("good", key=key)
        assert len(hung) == 1
        assert await asyncio.to_thread(lambda: True), "there is nothing left to run other work"
        release.set()

    descriptors = len(os.listdir("/proc/self/fd"))
    play(body, account)
    while len(os.listdir("/proc/self/fd")) > descriptors:
        time.sleep(0.02)
