"""Work that does not return: its deadline, and that nobody else waits for it."""

import asyncio
import io
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pillarbox.daemon import hanging
from pillarbox.errors import TempFail
from pillarbox.log import Log


def run(body: Callable[[hanging.Hanging], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await body(hanging.Hanging(Log(io.StringIO())))

    asyncio.run(bounded())


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def sleep() -> bytes:
    time.sleep(60)
    return b""


def test_a_child_that_hangs_is_killed_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 0.2)

    async def body(it: hanging.Hanging) -> None:
        with pytest.raises(TempFail, match="no answer"):
            await it.in_child(sleep, "/home", "login")
        with pytest.raises(TempFail, match="could not be read"):
            await it.in_child(lambda: 1 // 0 and b"", "/home", "login")
        assert await it.in_child(lambda: b"+" * 300000, "/home", "login") == b"+" * 300000

    before = children()
    run(body)
    assert children() <= before, "a child is left unreaped"


def test_a_child_holds_nothing_of_the_server() -> None:
    """Neither its lock nor its sockets outlive a killed server in a child that hangs."""

    def count() -> bytes:
        return " ".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode()

    async def body(it: hanging.Hanging) -> None:
        left, right = socket.socketpair()
        with left, right:
            kept = (await it.in_child(count, "/home", "x")).split()
        assert len(kept) <= 5, kept  # 0, 1, 2, the pipe, and the directory being listed

    run(body)


def test_a_thread_that_hangs_is_left_behind_and_its_place_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 0.1)
    release = threading.Event()

    def hang() -> bytes:
        release.wait(30)
        return b"late"

    async def body(it: hanging.Hanging) -> None:
        asked = [it.in_thread(hang, "/net", "x") for _ in range(hanging.LEFT_MAX)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(a) for a in answers} == {TempFail}
        with pytest.raises(TempFail, match="/net does not answer"):
            await it.in_thread(lambda: b"", "/net", "x")
        assert await it.in_thread(lambda: b"fine", "/home", "x") == b"fine"
        release.set()
        for _ in range(100):
            await asyncio.sleep(0.01)
            try:
                assert await it.in_thread(lambda: b"back", "/net", "x") == b"back"
                return
            except TempFail:
                continue
        raise AssertionError("the place is still avoided")

    run(body)


def test_errors_of_a_thread_are_raised_where_it_was_asked() -> None:
    async def body(it: hanging.Hanging) -> None:
        with pytest.raises(ZeroDivisionError):
            await it.in_thread(lambda: 1 // 0 and b"", "/home", "x")

    run(body)


def test_half_an_answer_of_a_child_that_dies_is_none() -> None:
    """Its first bytes could be an address that is cut in the middle."""

    def cut() -> bytes:
        real = os.write

        def write(fd: int, data: bytes) -> int:
            real(fd, bytes(data[:20]))
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.write = write  # type: ignore[assignment]  # in the child alone
        return b"+bob@example.org\ncarol@example.org\n"

    async def body(it: hanging.Hanging) -> None:
        with pytest.raises(TempFail, match="could not be read"):
            await it.in_child(cut, "/home", ".forward")

    run(body)


def test_one_home_that_hangs_keeps_nobody_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 0.5)

    async def body(it: hanging.Hanging) -> None:
        asked = [asyncio.ensure_future(it.in_child(sleep, "/home/eve", "x")) for _ in range(2 * hanging.AT_ONCE)]
        await asyncio.sleep(0)
        for work in (it.in_child, it.in_thread):
            async with asyncio.timeout(0.4):
                assert await work(lambda: b"fine", "/home/bob", "x") == b"fine"
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(a) for a in answers} == {TempFail}

    started = time.monotonic()
    run(body)
    assert time.monotonic() - started < 2 * 0.5 + 2, "who waits for a turn has a deadline, too"


def test_a_file_server_that_is_gone_is_not_asked_home_by_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 0.1)
    release = threading.Event()

    async def body(it: hanging.Hanging) -> None:
        async def ask(number: int) -> None:
            with pytest.raises(TempFail):
                await it.in_thread(lambda: release.wait(30), f"/net/home/{number}", "x")

        await asyncio.gather(*(ask(number) for number in range(hanging.LEFT_ABOVE)))
        with pytest.raises(TempFail, match="/net/home does not answer"):
            await it.in_thread(lambda: b"", "/net/home/another", "x")
        assert await it.in_thread(lambda: b"fine", "/home/bob", "x") == b"fine"

    try:
        run(body)
    finally:
        release.set()


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_comes_when_nobody_waits_any_more_is_given_back(cancelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 20.0 if cancelled else 0.1)
    release, begun = threading.Event(), threading.Event()

    def work() -> bytes:
        begun.set()
        release.wait(30)
        return b"late"

    async def body(it: hanging.Hanging) -> None:
        late: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        asked = asyncio.ensure_future(it.in_thread(work, "/home", "x", late=late.put))
        await asyncio.to_thread(begun.wait)
        if cancelled:
            asked.cancel()
        with pytest.raises((TempFail, asyncio.CancelledError)):
            await asked
        release.set()
        assert await asyncio.to_thread(late.get, True, 5) == b"late"

    run(body)


def test_what_comes_when_the_loop_has_ended_is_given_back_too() -> None:
    release, begun = threading.Event(), threading.Event()
    late: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def work() -> bytes:
        begun.set()
        release.wait(30)
        return b"late"

    async def body(it: hanging.Hanging) -> None:
        asked = asyncio.ensure_future(it.in_thread(work, "/home", "x", late=late.put))
        await asyncio.to_thread(begun.wait)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    run(body)
    release.set()
    assert late.get(timeout=5) == b"late"
