"""How long a configuration that was replaced is kept, with a clock that is moved."""

import asyncio
import io
from collections.abc import Awaitable, Callable

from pillarbox.conf.model import Config
from pillarbox.daemon.reload import retirement
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.reload.retirement import Retirement
from pillarbox.daemon.settings import Generation
from pillarbox.errors import TempFail
from pillarbox.log import Log


class Using:
    """A role that uses what a test says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.uses: set[int] = set()
        self.broken = False
        self.told: list[tuple[str, int]] = []

    async def in_use(self) -> set[int]:
        if self.broken:
            raise TempFail("being restarted")
        return self.uses

    async def retire(self, number: int) -> None:
        self.told.append(("retire", number))

    async def forget(self, number: int) -> None:
        self.told.append(("forget", number))


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.roles = [Using("queue"), Using("dispatcher.0")]
        self.missing = False
        self.generations = Generations(Generation(config=Config(hostname="x")))
        self.retirement = Retirement(
            generations=self.generations,
            members=lambda: self.roles[: 1 if self.missing else 2],  # type: ignore[arg-type,return-value]
            expected=lambda: 2,
            now=lambda: self.now,
            log=Log(io.StringIO()),
        )

    def reload(self) -> None:
        self.generations.propose(Generation(config=Config(hostname="x")))
        self.generations.commit()
        self.retirement.replaced()

    async def after(self, seconds: float) -> list[int]:
        """The older ones that live when the roles have been asked after a while."""
        self.now += seconds
        await self.retirement.look()
        return [generation.number for generation in self.generations.older()]

    def told(self) -> list[list[tuple[str, int]]]:
        return [role.told for role in self.roles]


def in_world(body: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        await body(World())

    asyncio.run(run())


def test_what_nobody_uses_is_forgotten_everywhere() -> None:
    async def body(w: World) -> None:
        w.roles[1].uses = {0}
        w.reload()
        assert await w.after(1) == [0]
        w.roles[1].uses = {1}
        assert await w.after(1) == []
        assert w.told() == [[("forget", 0)]] * 2
        w.roles[0].uses = {0}  # whatever a role says later
        assert await w.after(1) == []

    in_world(body)


def test_nothing_is_forgotten_while_a_role_does_not_say_what_it_uses() -> None:
    async def body(w: World) -> None:
        w.reload()
        w.missing = True
        assert await w.after(1) == [0]
        w.missing, w.roles[0].broken = False, True
        assert await w.after(1) == [0]
        w.roles[0].broken = False
        assert await w.after(1) == []

    in_world(body)


def test_after_an_hour_its_sessions_are_told_to_go_and_then_it_is_dropped() -> None:
    async def body(w: World) -> None:
        w.roles[1].uses = {0}
        w.reload()
        assert await w.after(retirement.LIFETIME - 1) == [0]
        assert w.told() == [[], []]
        assert await w.after(1) == [0]
        assert w.told() == [[("retire", 0)]] * 2
        assert await w.after(retirement.GRACE - 1) == [0]
        w.missing = True  # not even then
        assert await w.after(1) == []
        assert w.roles[0].told == [("retire", 0), ("forget", 0)]

    in_world(body)


def test_of_too_many_the_oldest_have_to_go_before_their_time() -> None:
    async def body(w: World) -> None:
        for number in range(retirement.OLD_MAX + 2):
            w.roles[0].uses.add(number)
            w.reload()
        await w.after(1)
        await w.after(1)
        assert w.told()[1] == [("retire", 0), ("retire", 1)]
        w.roles[0].uses -= {0, 1}
        assert len(await w.after(1)) == retirement.OLD_MAX

    in_world(body)


def test_it_looks_by_itself_after_a_reload() -> None:
    async def body(w: World) -> None:
        task = asyncio.create_task(w.retirement.run())
        await asyncio.sleep(0)
        w.reload()
        async with asyncio.timeout(5):
            while w.generations.older():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()

    in_world(body)
