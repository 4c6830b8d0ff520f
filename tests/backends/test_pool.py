"""Connections in threads, and lists handed out in turn, with a clock of our own."""

import asyncio
import threading
from collections.abc import Iterable

import pytest

from pillarbox.backends.pool import Backoff, Lost, Pool
from pillarbox.backends.rotation import Rotation
from pillarbox.sdk.table import TableError


class World:
    """The clock, and a server that is up or not."""

    def __init__(self) -> None:
        self.time = 100.0
        self.up = True
        self.connected = self.closed = 0

    def now(self) -> float:
        """The time."""
        return self.time


class Line:
    """A connection to it."""

    def __init__(self, world: World) -> None:
        self.released = threading.Event()
        self.alive = True
        self.world = world
        if not world.up:
            raise Lost("nobody listens")
        world.connected += 1

    def ask(self) -> str:
        """A question."""
        if not (self.alive and self.world.up):
            raise Lost("the line is dead")
        return "answer"

    def hang(self) -> str:
        """A question that ends only when it is given up."""
        assert self.released.wait(20)
        raise Lost("cut")

    def close(self) -> None:
        """End."""
        self.world.closed += 1

    def abort(self) -> None:
        """Give up."""
        self.released.set()


def pool(world: World, *, size: int = 2, deadline: float = 5.0) -> Pool[Line]:
    """A pool of lines."""
    return Pool(lambda: Line(world), size=size, deadline=deadline, now=world.now)


def test_connections_are_kept_and_a_lost_one_is_made_anew_for_the_question_that_found_it_lost() -> None:
    async def scenario() -> None:
        world = World()
        lines = pool(world)
        assert [await lines.run(Line.ask) for _ in range(3)] == ["answer"] * 3
        assert world.connected == 1
        await lines.run(lambda line: setattr(line, "alive", False))
        assert await lines.run(Line.ask) == "answer"
        assert (world.connected, world.closed) == (2, 1)

    asyncio.run(scenario())


def test_after_a_fault_of_the_driver_the_connection_is_not_used_again() -> None:
    async def scenario() -> None:
        world = World()
        lines = pool(world)
        with pytest.raises(ZeroDivisionError):
            await lines.run(lambda line: 1 // 0)
        with pytest.raises(TableError, match="wrong query"):
            await lines.run(refuse)
        assert await lines.run(Line.ask) == "answer"
        assert (world.connected, world.closed) == (2, 1)

    def refuse(line: Line) -> None:
        raise TableError("wrong query")

    asyncio.run(scenario())


def test_while_nobody_listens_every_question_is_an_error_and_few_connect() -> None:
    async def scenario() -> None:
        world = World()
        world.up = False
        lines = pool(world)
        for _ in range(5):
            with pytest.raises(TableError, match="nobody listens"):
                await lines.run(Line.ask)
        world.up = True
        with pytest.raises(TableError, match="nobody listens"):
            await lines.run(Line.ask)  # too early to try again
        world.time += 0.5
        assert await lines.run(Line.ask) == "answer"

    asyncio.run(scenario())


def test_the_pauses_between_attempts_grow_to_a_limit_and_begin_anew_after_a_success() -> None:
    world = World()
    backoff = Backoff(now=world.now)
    pauses = []
    for _ in range(7):
        backoff.check()
        backoff.failed("down")
        backoff.failed("down, says another thread")
        with pytest.raises(Lost, match="down"):
            backoff.check()
        before = world.time
        while True:
            world.time += 0.25
            try:
                backoff.check()
                break
            except Lost:
                continue
        pauses.append(world.time - before)
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15]
    backoff.succeeded()
    backoff.failed("again")
    world.time += 0.5
    backoff.check()


def test_a_question_past_its_deadline_is_given_up_and_its_place_is_free_again() -> None:
    async def scenario() -> None:
        world = World()
        lines = pool(world, size=1, deadline=0.1)
        with pytest.raises(TableError, match="no answer from the database within"):
            await lines.run(Line.hang)
        assert await lines.run(Line.ask) == "answer"
        assert (world.connected, world.closed) == (2, 1)

    asyncio.run(scenario())


def test_when_every_connection_hangs_the_next_question_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        world = World()
        lines = pool(world, size=1, deadline=0.1)
        gate = threading.Event()
        with pytest.raises(TableError, match="no answer from the database within"):
            await lines.run(lambda line: gate.wait(20))
        with pytest.raises(TableError, match="every connection is busy"):
            await lines.run(Line.ask)
        gate.set()
        assert await lines.run(Line.ask) == "answer"

    asyncio.run(scenario())


def test_a_closed_pool_lets_go_of_its_connections() -> None:
    async def scenario() -> None:
        world = World()
        lines = pool(world)
        await lines.run(Line.ask)
        ended = threading.Event()
        await lines.run(lambda line: setattr(line, "close", ended.set))
        lines.close()
        assert await asyncio.to_thread(ended.wait, 20)

    asyncio.run(scenario())


def test_a_list_is_loaded_again_after_its_time_or_its_number_and_not_before() -> None:
    async def scenario() -> None:
        world = World()
        values: list[str] = ["b", "a", "b"]
        loads = []

        async def load() -> Iterable[str]:
            loads.append(world.time)
            return values

        rotation = Rotation(load, expire=60, refresh=5, now=world.now)
        assert [await rotation.next() for _ in range(5)] == ["a", "b", "a", "b", "a"]
        assert len(loads) == 1
        assert [await rotation.next() for _ in range(2)] == ["a", "b"]
        assert len(loads) == 2
        world.time += 60
        values.clear()
        assert await rotation.next() is None
        assert len(loads) == 3

    asyncio.run(scenario())
