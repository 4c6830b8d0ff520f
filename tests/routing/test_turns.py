"""Turns: logins of one source wait for each other, and for nobody else."""

import asyncio

import pytest

from pillarbox.errors import TempFail
from pillarbox.routing import turns
from pillarbox.routing.failures import Failures
from pillarbox.routing.turns import AT_ONCE, AT_ONCE_OF_SITE, Turns


class Checks:
    """Logins whose checks take until they are told to end."""

    def __init__(self):
        self.failures = Failures(now=lambda: 1000.0)
        self.turns = Turns(self.failures)
        self.running = []
        self.end = asyncio.Event()

    async def login(self, address, *, fails=False, limit=30):
        async with self.turns.turn(address, limit):
            self.running.append(address)
            await self.end.wait()
            self.running.remove(address)
            if fails:
                self.failures.count(address, user="alice")
        return "checked"

    def begin(self, times, address, **options):
        return [asyncio.ensure_future(self.login(address, **options)) for _ in range(times)]


def play(scenario):
    async def bounded():
        checks = Checks()
        async with asyncio.timeout(10):
            await scenario(checks)
        left = checks.turns
        assert not (left._running or left._waiting or left._turned_away)

    asyncio.run(bounded())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def outcomes(tasks):
    return [str(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)]


def test_those_of_one_source_wait_and_all_are_heard():
    async def scenario(checks):
        tasks = checks.begin(40, "192.0.2.1")
        await settle()
        assert len(checks.running) == AT_ONCE
        others = checks.begin(1, "192.0.2.2")
        await settle()
        assert checks.running[-1] == "192.0.2.2"
        checks.end.set()
        assert await outcomes(tasks + others) == ["checked"] * 41

    play(scenario)


def test_no_more_run_than_may_fail_and_who_waits_is_refused_with_them():
    async def scenario(checks):
        tasks = checks.begin(6, "192.0.2.1", fails=True, limit=2)
        await settle()
        assert len(checks.running) == 2
        checks.end.set()
        assert (await outcomes(tasks)).count("too many failed logins from 192.0.2.1") == 4

    play(scenario)


def test_a_site_cannot_take_all_turns_by_its_many_networks():
    async def scenario(checks):
        tasks = [task for n in range(20) for task in checks.begin(2, f"2001:db8:1:{n:x}::1")]
        await settle()
        assert len(checks.running) == AT_ONCE_OF_SITE
        checks.end.set()
        assert await outcomes(tasks) == ["checked"] * 40

    play(scenario)


def test_a_network_that_may_fail_once_more_does_not_wait_for_its_neighbours():
    async def scenario(checks):
        for _ in range(29):
            checks.failures.count("2001:db8:1:1::1", user="alice")
        tasks = checks.begin(3, "2001:db8:1:2::1") + checks.begin(1, "2001:db8:1:1::1")
        await settle()
        assert len(checks.running) == 4
        checks.end.set()
        await outcomes(tasks)

    play(scenario)


def test_those_who_wait_are_bounded_and_may_leave(monkeypatch):
    monkeypatch.setattr(turns, "WAITING_MAX", 3)

    async def scenario(checks):
        tasks = checks.begin(AT_ONCE, "192.0.2.1")
        await settle()
        tasks += checks.begin(5, "192.0.2.1")
        await settle()
        assert sum(task.done() for task in tasks) == 2
        tasks[AT_ONCE].cancel()
        await settle()
        tasks += checks.begin(1, "192.0.2.1")
        checks.end.set()
        found = await outcomes(tasks)
        assert found.count("too many logins at once from 192.0.2.1") == 2
        assert found.count("checked") == AT_ONCE + 3

    play(scenario)


def test_a_turn_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(turns, "DEADLINE", 0.01)

    async def scenario(checks):
        tasks = checks.begin(AT_ONCE, "192.0.2.1")
        await settle()
        with pytest.raises(TempFail, match="too long"):
            await checks.login("192.0.2.1")
        checks.end.set()
        await outcomes(tasks)

    play(scenario)
