"""What a dispatcher keeps in stock: message ids, reverse names."""

import asyncio
from collections.abc import Coroutine

import pytest

from pillarbox.errors import TempFail
from pillarbox.roles.lookup import ReverseName
from pillarbox.server import names as module
from pillarbox.server.msgids import BLOCK, MessageIds
from pillarbox.server.names import TTL, ReverseNames

from .memory import MemoryQueue


class Background:
    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))


def test_ids_are_ordered_in_blocks_before_the_stock_is_empty():
    async def inside() -> None:
        background = Background()
        ids = MessageIds(queue=MemoryQueue(), background=background)  # type: ignore[arg-type]
        first = await ids.wait()
        assert ids.take() == first + 1  # in their order: rows of neighbours lie together
        taken = {first, first + 1}
        while len(background.tasks) == 1:
            taken.add(ids.take())
        assert None not in taken and len(taken) < BLOCK
        await asyncio.gather(*background.tasks)
        more = {ids.take() for _ in range(BLOCK)}
        assert None not in more and not more & taken

    asyncio.run(inside())


@pytest.mark.parametrize("answer", [TempFail("queue is away"), []])
def test_a_queue_without_ids_is_a_tempfail_and_asked_again(answer):
    async def inside() -> None:
        queue = MemoryQueue()
        good = queue.reserve

        async def bad(count: int) -> list[int]:
            if isinstance(answer, Exception):
                raise answer
            return answer

        queue.reserve = bad  # type: ignore[method-assign]
        ids = MessageIds(queue=queue, background=Background())  # type: ignore[arg-type]
        with pytest.raises(TempFail):
            await ids.wait()
        queue.reserve = good  # type: ignore[method-assign]
        assert await ids.wait()

    asyncio.run(inside())


class Names:
    def __init__(self) -> None:
        self.asked = 0
        self.fail = False

    async def client_name(self, address: str) -> ReverseName:
        self.asked += 1
        if self.fail:
            raise TempFail("lookup is away")
        return ReverseName(name=f"name-of-{address}", fcrdns="pass")


def test_names_are_asked_once_and_again_after_a_while():
    async def inside() -> None:
        lookup, now = Names(), [0.0]
        names = ReverseNames(lookup=lookup, monotonic=lambda: now[0], background=Background())  # type: ignore[arg-type]
        both = await asyncio.gather(names.ask("192.0.2.1"), names.ask("192.0.2.1"))
        assert [one.confirmed for one in both] == ["name-of-192.0.2.1"] * 2 and lookup.asked == 1
        now[0] = TTL + 1
        await names.ask("192.0.2.1")
        assert lookup.asked == 2

    asyncio.run(inside())


def test_no_answer_is_no_name_and_not_remembered():
    async def inside() -> None:
        lookup = Names()
        names = ReverseNames(lookup=lookup, monotonic=lambda: 0.0, background=Background())  # type: ignore[arg-type]
        lookup.fail = True
        assert await names.ask("192.0.2.1") == ReverseName(fcrdns="error")
        lookup.fail = False
        assert (await names.ask("192.0.2.1")).name == "name-of-192.0.2.1"

    asyncio.run(inside())


def test_sessions_wait_for_a_name_only_so_long_and_a_late_one_serves_the_next(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)

    async def inside() -> None:
        class Slow(Names):
            async def client_name(self, address: str) -> ReverseName:
                await answered.wait()
                return await super().client_name(address)

        answered, lookup, background = asyncio.Event(), Slow(), Background()
        names = ReverseNames(lookup=lookup, monotonic=lambda: 0.0, background=background)  # type: ignore[arg-type]
        nobody = ReverseName(fcrdns="error")
        assert await asyncio.gather(names.ask("192.0.2.1"), names.ask("192.0.2.1")) == [nobody, nobody]
        assert await names.ask("192.0.2.1") == nobody  # the same lookup, known to be slow
        answered.set()
        await asyncio.gather(*background.tasks)
        assert (await names.ask("192.0.2.1")).name == "name-of-192.0.2.1" and lookup.asked == 1

    asyncio.run(inside())
