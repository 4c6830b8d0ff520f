import asyncio
import io
import time
from collections.abc import Awaitable, Callable

import pytest

from pillarbox.conf.model import Config, Local, MdaLimits
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result
from pillarbox.mda.deliveries import Deliveries
from pillarbox.roles.delivery import Attempt, InFlight, LocalDelivery
from pillarbox.roles.lookup import MxHost, User

ACTIONS = {
    "files": Local(name="files", method="maildir"),
    "command": Local(name="command", method="mda", target="true"),
    "lmtp": Local(name="lmtp", method="lmtp", target="store.example.org:24"),
}


class MemoryLookup:
    def __init__(self) -> None:
        self.known = {"alice", "bob"}
        self.broken = False

    async def user(self, generation: int, table: str, name: str) -> User | None:
        if self.broken:
            raise TempFail("no answer")
        return User(name=name, uid=1000, gid=1000, home=f"/home/{name}") if name in self.known else None

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        assert (domain, mx) == ("store.example.org", False)
        return [MxHost(preference=0, name=domain, address=a) for a in ("192.0.2.1", "2001:db8::1")]


class MemoryAgent:
    """Notes orders; a test says when they end."""

    def __init__(self) -> None:
        self.orders: list[list[LocalDelivery]] = []
        self.broken = False
        self.came = asyncio.Event()

    async def deliver(self, deliveries: list[LocalDelivery]) -> None:
        if self.broken:
            raise TempFail("the parent is busy")
        self.orders.append(deliveries)
        self.came.set()

    async def in_flight(self) -> InFlight:
        return InFlight()


class World:
    def __init__(self, **limits: int) -> None:
        self.outcomes: list[Outcome] = []
        self.settled = asyncio.Event()
        self.ready: list[str] = []
        self.refuse: list[Exception] = []
        self.lookup, self.agent, self.text = MemoryLookup(), MemoryAgent(), io.StringIO()
        self.deliveries = Deliveries(
            config=Config(hostname="mx", actions=ACTIONS, mda=MdaLimits(**limits)),
            lookup=self.lookup,  # type: ignore[arg-type]
            agent=self.agent,
            settle=self.settle,
            ready=self.ready.append,
            log=Log(self.text),
            now=time.time,
        )

    async def settle(self, outcomes: list[Outcome]) -> None:
        if self.refuse:
            raise self.refuse.pop()
        self.outcomes += outcomes
        self.deliveries.settled(outcomes)
        self.settled.set()

    def give(self, count: int, action: str = "files", user: str = "alice", *, size: int = 100, first: int = 1) -> None:
        self.deliveries.deliver([self._attempt(n, action, user, size) for n in range(first, first + count)])

    def _attempt(self, number: int, action: str, user: str, size: int) -> Attempt:
        envelope = Envelope(
            evpid=number << 32 | 7, kind=Kind.MDA, dispatcher=action, sender="s@x", rcpt=f"{user}@y", dest=f"{user}@y",
            ctime=int(time.time()), mda_user=user,
        )  # fmt: skip
        body = b"x" * size if size <= 131072 else b""
        return Attempt(envelope=envelope, attempt=1, destination=user, size=size, body=body)

    async def orders(self, count: int) -> list[int]:
        """Wait for so many orders; how large they were."""
        async with asyncio.timeout(5):
            while len(self.agent.orders) < count:
                self.agent.came.clear()
                await self.agent.came.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        return [len(order) for order in self.agent.orders]

    async def end(self, order: int) -> None:
        await self.settle(
            [Outcome(evpid=d.envelope.evpid, attempt=1, result=Result.OK) for d in self.agent.orders[order]]
        )


def in_world(body: Callable[[World], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        world = World(**limits)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(world.deliveries.run())
            await body(world)
            task.cancel()

    asyncio.run(run())


def test_what_no_child_was_given_follows_a_changed_action():
    async def body(world: World) -> None:
        world.give(1)
        await world.orders(1)
        world.give(1, first=2)
        world.give(1, "command", first=3)
        world.give(1, "lmtp", first=4)
        actions = {"files": Local(name="files", method="mbox"), "command": ACTIONS["command"]}
        world.deliveries.configure(Config(hostname="mx", generation=7, actions=actions))
        assert world.deliveries.generations() == {0}
        for number in (0, 1):
            await world.end(number)
            await world.orders(number + 2)
            assert world.deliveries.generations() == {7}
        found = [(order[0].envelope.dispatcher, order[0].generation) for order in world.agent.orders]
        assert found == [("files", 0), ("files", 7), ("command", 7)]
        assert [(o.evpid >> 32, o.result, o.errorline) for o in world.outcomes if o.result is not Result.OK] == [
            (4, Result.TEMPFAIL, "Unknown action: lmtp")
        ]

    in_world(body, max_session=1)


def test_limits_of_a_new_configuration_are_in_force_at_once():
    async def body(world: World) -> None:
        world.give(3, "command")
        assert await world.orders(1) == [1]
        limits = MdaLimits(max_session=3)
        world.deliveries.configure(Config(hostname="mx", generation=1, actions=ACTIONS, mda=limits))
        assert await world.orders(3) == [1, 1, 1]

    in_world(body, max_session=1)


def test_destination_that_had_no_room_is_told_when_a_configuration_makes_some():
    async def body(world: World) -> None:
        world.give(100, "command")
        while world.deliveries.room("alice"):
            world.give(1, "command", first=1000 + world.deliveries.room("alice"))
        limits = MdaLimits(task_hiwat=1000)
        world.deliveries.configure(Config(hostname="mx", generation=1, actions=ACTIONS, mda=limits))
        assert world.ready == ["alice"]
        assert world.deliveries.room("alice") > 500

    in_world(body)


def test_small_messages_of_a_user_share_a_child_and_the_rest_waits_for_it():
    async def body(world: World) -> None:
        world.give(1)
        world.give(20, first=2)
        assert await world.orders(1) == [1]
        await world.end(0)
        assert await world.orders(2) == [1, 20]

    in_world(body)


def test_full_batch_does_not_wait():
    async def body(world: World) -> None:
        world.give(120)
        assert await world.orders(2) == [50, 50]
        await world.end(0)
        assert await world.orders(2) == [50, 50]
        await world.end(1)
        assert await world.orders(3) == [50, 50, 20]

    in_world(body)


def test_batch_is_bounded_in_bytes_and_a_streamed_message_is_alone():
    async def body(world: World) -> None:
        world.give(12, size=100_000)
        world.give(1, size=200_000, first=100)
        assert await world.orders(1) == [10]
        await world.end(0)
        assert await world.orders(3) == [10, 2, 1]

    in_world(body)


def test_commands_run_alone_up_to_the_limit_of_the_user():
    async def body(world: World) -> None:
        world.give(10, "command")
        world.give(2, "command", "bob", first=100)
        assert await world.orders(9) == [1] * 9
        assert sum(order[0].user == "alice" for order in world.agent.orders) == 7
        await world.end(0)
        assert await world.orders(10) == [1] * 10

    in_world(body)


def test_limit_of_all_is_shared_in_turns():
    async def body(world: World) -> None:
        world.give(5, "command")
        world.give(5, "command", "bob", first=100)
        await world.orders(3)
        await world.end(0)
        await world.end(1)
        assert await world.orders(5) == [1] * 5
        assert [order[0].user for order in world.agent.orders[3:]] == ["alice", "bob"]

    in_world(body, max_session=3)


@pytest.mark.parametrize(
    ("user", "broken", "result", "line", "code"),
    [
        ("nobody", False, Result.PERMFAIL, "Permanent failure in user lookup", 16),
        ("alice", True, Result.TEMPFAIL, "Temporary failure in user lookup", 10),
    ],
)
def test_user_that_is_not_found_ends_the_attempt(user, broken, result, line, code):
    async def body(world: World) -> None:
        world.lookup.broken = broken
        world.give(2, user=user)
        await world.settled.wait()
        assert {(o.result, o.errorline, o.esc_code) for o in world.outcomes} == {(result, line, code)}
        assert world.text.getvalue().count(f"stat={line}\n") == 2
        assert world.agent.orders == []

    in_world(body)


def test_order_that_was_not_taken_is_repeated_and_blames_nobody():
    async def body(world: World) -> None:
        world.agent.broken = True
        world.give(1)
        await asyncio.sleep(0.15)
        world.agent.broken = False
        assert await world.orders(1) == [1]
        assert world.outcomes == []

    in_world(body)


def test_order_that_was_heard_without_an_answer_is_repeated_until_its_outcome_is_known():
    async def body(world: World) -> None:
        take = world.agent.deliver

        async def deaf(deliveries: list[LocalDelivery]) -> None:
            await take(deliveries)
            raise TempFail("the parent did not answer")

        world.agent.deliver = deaf  # type: ignore[method-assign]
        world.give(2)
        await world.orders(2)
        assert world.agent.orders[0] == world.agent.orders[1]
        await world.settle([Outcome(evpid=1 << 32 | 7, attempt=1, result=Result.OK)])
        told = len(world.agent.orders)
        await world.orders(told + 1)
        assert [d.envelope.evpid >> 32 for d in world.agent.orders[-1]] == [2]
        await world.end(-1)
        told = len(world.agent.orders)
        await asyncio.sleep(1)
        assert len(world.agent.orders) <= told + 1
        assert {o.result for o in world.outcomes} == {Result.OK}

    in_world(body)


def test_action_that_is_gone_is_temporary_and_told_until_it_is_stored():
    async def body(world: World) -> None:
        world.refuse = [TempFail("disk full")]
        world.give(1, "gone")
        await world.settled.wait()
        assert [(o.result, o.errorline) for o in world.outcomes] == [(Result.TEMPFAIL, "Unknown action: gone")]

    in_world(body)


def test_room_is_bounded_and_told_again():
    async def body(world: World) -> None:
        room = world.deliveries.room("alice")
        world.give(room)
        assert world.deliveries.room("alice") == 0
        assert world.deliveries.room("bob") == room
        await world.orders(1)
        assert world.ready == []
        await world.end(0)
        assert world.ready == ["alice"]
        assert world.deliveries.room("alice") == 50

    in_world(body)


def test_bodies_held_are_bounded():
    async def body(world: World) -> None:
        world.give(140, size=120_000)
        assert world.deliveries.room("bob") == 0
        await world.orders(1)
        await world.end(0)
        assert world.ready == ["bob"]

    in_world(body)


def test_lmtp_server_is_resolved_by_lookup():
    async def body(world: World) -> None:
        world.give(1, "lmtp")
        await world.orders(1)
        assert world.agent.orders[0][0].resolved_lmtp == "192.0.2.1,2001:db8::1"

    in_world(body)


def test_outcomes_of_others_are_ignored():
    async def body(world: World) -> None:
        world.deliveries.settled([Outcome(evpid=99, attempt=1, result=Result.OK)])
        world.give(1)
        assert await world.orders(1) == [1]
        await world.end(0)
        await world.end(0)
        assert world.deliveries.room("alice") == 150

    in_world(body)
