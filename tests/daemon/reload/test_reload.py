"""The order of a reload: what is done when, and what is undone when something fails."""

import asyncio
import io
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pillarbox.cli import connection
from pillarbox.control.server import Limits
from pillarbox.daemon import check, launch
from pillarbox.daemon.processes import parent
from pillarbox.daemon.reload import reload
from pillarbox.daemon.reload.generations import Generations, read_generation
from pillarbox.daemon.reload.members import Bound
from pillarbox.daemon.reload.reload import Reloader
from pillarbox.daemon.reload.retirement import Retirement
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.wiring import DEADLINES
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.roles.parent import Reloaded


class Part:
    """A role that notes what it is told, and fails as a test says."""

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.world = world
        self.dead = asyncio.Event()
        self.may_prepare = asyncio.Event()
        self.may_prepare.set()
        self.answer = ""
        self.commits = True
        self.dies_at_commit = False

    @property
    def gone(self) -> bool:
        return self.dead.is_set()

    async def wait_gone(self) -> None:
        await self.dead.wait()

    def note(self, what: str) -> None:
        self.world.told.append(f"{self.name} {what}")

    async def prepare(self, generation: Generation, fresh: Bound) -> str:
        self.note(f"prepare {generation.number}")
        await self.may_prepare.wait()
        return self.answer

    async def commit(self, number: int) -> None:
        self.world.current_at_commit = self.world.generations.current.number
        if self.dies_at_commit:
            self.dead.set()
            raise TempFail(f"{self.name} died")
        if not self.commits:
            await asyncio.Event().wait()
        self.note(f"commit {number}")

    async def abort(self, number: int) -> None:
        self.note(f"abort {number}")

    async def retire(self, number: int) -> None:
        self.note(f"retire {number}")

    async def forget(self, number: int) -> None:
        self.note(f"forget {number}")

    async def in_use(self) -> set[int]:
        return set()

    def end(self) -> None:
        self.note("end")
        self.dead.set()


class World:
    """A reloader of the file `conf`, with two roles."""

    def __init__(self, folder: Path) -> None:
        self.conf = folder / "smtpd.conf"
        self.write("listen on socket\n")
        self.told: list[str] = []
        self.fatal: list[BaseException] = []
        self.current_at_commit = -1
        self.text = io.StringIO()
        self.parts = [Part("a", self), Part("b", self)]
        self.listening: dict[str, list[socket.socket]] = {}
        self.generations = Generations(read_generation(check.read_config(str(self.conf), {})))
        log = Log(self.text)

        async def members() -> list[Part]:
            return self.parts

        retirement = Retirement(
            generations=self.generations,
            members=lambda: list(self.parts),
            expected=2,
            now=lambda: 0.0,
            log=log,
        )
        self.reloader = Reloader(
            settings=Settings(file=str(self.conf), state=str(folder), directory=str(folder)),
            generations=self.generations,
            listening=self.listening,
            dispatchers=2,
            members=members,  # type: ignore[arg-type]
            retirement=retirement,
            fatal=self.fatal.append,
            log=log,
        )

    def write(self, text: str) -> None:
        self.conf.write_text(text + "match for any reject\n")

    async def reload(self, text: str = "listen on socket\n") -> Reloaded:
        self.write(text)
        return await self.reloader.reload()

    async def until(self, told: str) -> None:
        async with asyncio.timeout(10):
            while told not in self.told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def unchanged(self) -> bool:
        return self.generations.current.number == 0 and not self.generations.older() and not self.listening


@pytest.fixture
def in_world(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(body: Callable[[World], Awaitable[None]]) -> None:
        async def inside() -> None:
            world = World(tmp_path)
            await body(world)
            assert not world.fatal
            for sockets in world.listening.values():
                for listening in sockets:
                    listening.close()

        asyncio.run(inside())

    return run


InWorld = Callable[[Callable[[World], Awaitable[None]]], None]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_all_prepare_before_the_parent_decides_and_commit_after_it(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        assert await w.reload() == Reloaded()
        assert w.told == ["a prepare 1", "b prepare 1", "a commit 1", "b commit 1"]
        assert w.current_at_commit == w.generations.current.number == 1
        assert [g.number for g in w.generations.older()] == [0]

    in_world(body)


def test_problems_of_the_file_end_it_before_anybody_is_asked(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        answer = await w.reload('match bogus\nlisten on socket\nmatch for any action "x"\n')
        assert [text.split(": ")[0] for text in answer.problems] == [f"{w.conf}:1", f"{w.conf}:3"]
        assert w.told == []
        assert w.unchanged()
        log = w.text.getvalue().splitlines()
        assert log[0].startswith(f"warn: reload: {w.conf}:1: syntax error")
        assert log[-1] == "warn: reload: nothing has changed, configuration 0 stays in use"

    in_world(body)


def test_what_this_version_does_not_serve_is_refused_as_at_the_start(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        answer = await w.reload("queue encryption 0123456789abcdef0123456789abcdef\nlisten on lo port 2525\n")
        assert "not there yet in this version" in answer.problems[0]
        assert w.unchanged()

    in_world(body)


@pytest.mark.parametrize("fault", ["refuses", "dies", "dies having answered", "hangs"])
def test_one_that_cannot_prepare_aborts_it_in_all(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(reload, "PREPARING", 0.3 if fault == "hangs" else 30.0)

    async def body(w: World) -> None:
        first, second = w.parts
        port = free_port()
        second.may_prepare.clear()
        going = asyncio.ensure_future(w.reload(f"listen on 127.0.0.1 port {port}\n"))
        await w.until("b prepare 1")
        if fault == "refuses":
            first.answer = "no"
            second.answer = "no key"
            second.may_prepare.set()
        elif fault != "hangs":
            (first if fault == "dies having answered" else second).dead.set()
        answer = await going
        reasons = {
            "refuses": "no key",
            "dies": "b died",
            "dies having answered": "a died",
            "hangs": "b: not prepared within 0 seconds",
        }
        assert answer.problems == (reasons[fault],)
        assert w.told[2:] == ["a abort 1", "b abort 1"]
        assert w.unchanged()
        with socket.create_server(("127.0.0.1", port)):
            pass  # what was bound for it is free again

    in_world(body)


def test_one_that_dies_instead_of_committing_comes_back_with_what_was_decided(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        w.parts[0].dies_at_commit = True
        assert await w.reload() == Reloaded()
        assert w.told[2:] == ["b commit 1"]
        assert w.generations.current.number == 1, "what a role that starts again is told"

    in_world(body)


def test_one_that_does_not_commit_is_ended(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "COMMITTING", 0.1)

    async def body(w: World) -> None:
        w.parts[0].commits = False
        assert await w.reload() == Reloaded()
        assert w.told[2:] == ["b commit 1", "a end"]
        assert "warn: a did not take over configuration 1" in w.text.getvalue()

    in_world(body)


def test_addresses_are_bound_once_each_dispatcher_and_let_go_of(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        stays, goes, comes = (free_port() for _ in range(3))
        await w.reload(f"listen on 127.0.0.1 port {stays}\nlisten on 127.0.0.1 port {goes}\n")
        kept = w.listening[f"127.0.0.1 {stays}"]
        dropped = w.listening[f"127.0.0.1 {goes}"]
        assert len(kept) == len(dropped) == 2
        await w.reload(f"listen on 127.0.0.1 port {comes}\nlisten on 127.0.0.1 port {stays} hostname new\n")
        assert w.listening.keys() == {f"127.0.0.1 {stays}", f"127.0.0.1 {comes}"}
        assert w.listening[f"127.0.0.1 {stays}"] is kept
        assert [s.fileno() for s in dropped] == [-1, -1]

    in_world(body)


def test_an_address_that_contains_one_of_ours_can_be_taken(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        port = free_port()
        assert await w.reload(f"listen on 127.0.0.1 port {port}\n") == Reloaded()
        assert await w.reload(f"listen on 0.0.0.0 port {port}\n") == Reloaded()
        assert await w.reload(f"listen on 127.0.0.1 port {port}\nlisten on 0.0.0.0 port {port}\n") == Reloaded()

    in_world(body)


def test_all_who_ask_before_it_begins_share_the_next_one(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        w.parts[0].may_prepare.clear()
        first = asyncio.ensure_future(w.reloader.reload())
        await w.until("a prepare 1")
        w.conf.write_text("nonsense\n")
        w.reloader.request()
        others = [asyncio.ensure_future(w.reloader.reload()) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert len(w.told) == 2
        w.parts[0].may_prepare.set()
        assert await first == Reloaded()
        answers = await asyncio.gather(*others)
        assert {len(answer.problems) for answer in answers} == {1}
        assert w.text.getvalue().count("nothing has changed, configuration 1 stays in use") == 1

    in_world(body)


def test_who_asked_may_go_away(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        w.parts[0].may_prepare.clear()
        asked = asyncio.ensure_future(w.reloader.reload())
        await w.until("a prepare 1")
        asked.cancel()
        w.parts[0].may_prepare.set()
        await w.until("b commit 1")

    in_world(body)


def test_a_server_that_ends_leaves_off(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        w.parts[0].may_prepare.clear()
        asked = asyncio.ensure_future(w.reloader.reload())
        await w.until("b prepare 1")
        w.reloader.close()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert w.told[2:] == ["a abort 1", "b abort 1"]
        with pytest.raises(TempFail, match="the server is ending"):
            await w.reloader.reload()
        w.reloader.request()
        await asyncio.sleep(0.05)
        assert len(w.told) == 4

    in_world(body)


def test_a_file_that_cannot_be_read_in_time_is_given_up(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "READING", 0.3)

    async def body(w: World) -> None:
        fifo = w.conf.parent / "fifo"
        os.mkfifo(fifo)  # as a file server that is gone: opening it does not return
        answer = await w.reload(f'include "{fifo}"\n')
        assert answer.problems == (f"{w.conf}: no answer in time",)
        assert w.unchanged()
        assert await w.reload() == Reloaded()

    in_world(body)


def test_names_are_relative_to_where_the_server_was_started(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        (w.conf.parent / "more.conf").write_text("smtp max-message-size 1000\n")
        assert await w.reload('include "more.conf"\nlisten on socket\n') == Reloaded()
        assert w.generations.current.config.smtp.max_message_size == 1000

    in_world(body)


def test_how_the_queue_is_stored_stays_until_the_next_start(in_world: InWorld) -> None:
    async def body(w: World) -> None:
        note = f"{w.conf}: warning: queue compression stays as it is until the server is started again"
        assert await w.reload("queue compression\nqueue ttl 1d\nlisten on socket\n") == Reloaded(notes=(note,))
        assert f"warn: {w.conf}: queue compression stays" in w.text.getvalue()
        queue = w.generations.current.config.queue
        assert (queue.compression, queue.ttl) == (False, 86400)
        assert await w.reload("queue compression\nlisten on socket\n") == Reloaded(notes=(note,))
        assert await w.reload() == Reloaded()

    in_world(body)


def test_nothing_is_waited_for_between_the_last_look_at_the_roles_and_the_decision(in_world: InWorld) -> None:
    """Who dies at any later moment finds the decision made; who dies before ends the reload."""

    class Dying(Part):
        seen: tuple[int, ...] = ()

        @property
        def gone(self) -> bool:
            asyncio.get_running_loop().call_soon(self.look_later)
            return False

        def look_later(self) -> None:
            self.seen = (*self.seen, self.world.generations.current.number)

    async def body(w: World) -> None:
        dying = Dying("c", w)
        w.parts.append(dying)
        assert await w.reload() == Reloaded()
        assert dying.seen[-1] == 1

    in_world(body)


def test_what_was_read_and_makes_no_sense_changes_nothing(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(w: World) -> None:
        monkeypatch.setattr(reload, "_read", lambda settings: b"\x93")  # in the child
        (problem,) = (await w.reload()).problems
        assert "makes no sense" in problem
        assert w.unchanged()
        assert not w.fatal

    in_world(body)


def test_addresses_that_are_not_bound_in_time_hold_up_no_later_reload(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "BINDING", 0.2)
    release = threading.Event()
    bound = socket.socket()

    def bind_all(addresses: list[str], dispatchers: int, ours: list[str]) -> dict[str, list[socket.socket]]:
        release.wait(20)
        return {addresses[0]: [bound]}

    monkeypatch.setattr(launch, "bind_all", bind_all)

    async def body(w: World) -> None:
        answer = await w.reload("listen on 127.0.0.1 port 2525\n")
        assert answer.problems == ("listening: no answer in time",)
        assert w.unchanged()
        assert await w.reload() == Reloaded()
        release.set()
        while bound.fileno() >= 0:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.02)

    in_world(body)


def test_whoever_asks_for_a_reload_waits_longer_than_it_takes() -> None:
    steps = sum((reload.READING, reload.BINDING, parent.GATHERING, reload.PREPARING, reload.COMMITTING))
    assert 2 * steps < DEADLINES["system.reload"] < Limits().reload < connection.TIMEOUT
