import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.conf.model import QueueOptions, SchedulerLimits
from pillarbox.mail.envelope import Kind, Result
from pillarbox.queue import scheduler
from pillarbox.roles.queue import INLINE_BODY
from tests.queue.rig import DAY, T0, Rig, calm, make_config, rig, run, until


async def backlog(r: Rig, count: int, domain: str) -> None:
    """Queue messages for a domain while nothing is delivered."""
    for start in range(0, count, 100):
        await asyncio.gather(*(r.send(f"u@{domain}") for _ in range(min(100, count - start))))


def test_turns_are_shared_between_destinations(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            await backlog(r, 300, "large.example")
            await backlog(r, 20, "small.example")
            await r.queue.pause("mta", False)
            await until(lambda: len(r.mta.attempts) == 320)
            order = [a.destination for a in r.mta.attempts]
            # Pages are read in threads: a slow one lets the other destination have a few more turns, not all.
            assert max(i for i, d in enumerate(order) if d == "mta:small.example") < 300

    run(main)


def test_a_long_queue_for_a_dead_domain_delays_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            r.mta.rooms["mta:dead.example"] = 50
            await backlog(r, 3000, "dead.example")
            await r.queue.pause("mta", False)
            await until(lambda: len(r.mta.attempts) == 50)
            await r.send("u@alive.example")
            await until(lambda: len(r.mta.attempts) == 51)
            assert r.mta.attempts[-1].destination == "mta:alive.example"
            assert r.queue.scheduler.in_memory < 51 + scheduler.PAGE

    run(main)


def test_a_destination_without_room_waits_for_ready(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.mta.default = 0
            await r.send("a@x.example")
            await r.advance(1)
            assert r.mta.history == []
            r.mta.default = 9
            r.queue.ready("mta:x.example")
            await r.attempts(1)

    run(main)


def test_a_deliverer_that_forgets_to_say_ready_is_asked_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.mta.default = 0
            await r.send("a@x.example")
            await r.advance(1)
            r.mta.default = 9
            await r.advance(scheduler.PARKED)
            await r.attempts(1)

    run(main)


def test_no_more_run_than_allowed(tmp_path: Path) -> None:
    async def main() -> None:
        config = make_config(scheduler=SchedulerLimits(max_inflight=25))
        async with rig(tmp_path, config=config) as r:
            for domain in ("a.example", "b.example", "c.example"):
                await backlog(r, 20, domain)
            await calm(r)
            delivered = 0
            while delivered < 60:
                await until(lambda: bool(r.mta.attempts))
                await calm(r)
                assert len(r.mta.attempts) <= 25
                batch = r.mta.take()
                delivered += len(batch)
                await r.settle(batch, Result.OK)
            assert await r.store.counts() == (0, 0)

    run(main)


def test_relaying_leaves_room_for_local_mail(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, config=make_config(scheduler=SchedulerLimits(max_inflight=20))) as r:
            await backlog(r, 30, "hangs.example")
            await until(lambda: len(r.mta.attempts) == 16)
            await r.send("alice@example.org", kind=Kind.MDA, mda_user="alice")
            await r.attempts(1, of=r.mda)

    run(main)


def test_a_message_is_not_torn_apart_by_its_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            batches: list[int] = []
            deliver = r.mta.deliver
            r.mta.deliver = lambda attempts: (batches.append(len(attempts)), deliver(attempts))[1]  # type: ignore[method-assign,func-returns-value]
            await r.send(*(f"u{i}@x.example" for i in range(35)))
            await r.attempts(35)
            assert batches == [35]

    run(main)


def test_a_large_body_is_left_to_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            for size in (INLINE_BODY, INLINE_BODY + 1):
                await r.send(body=b"x" * size)
                (attempt,) = await r.attempts(1)
                assert (attempt.size, len(attempt.body)) == (size, size if size <= INLINE_BODY else 0)
                await r.settle([attempt], Result.TEMPFAIL)
            await r.advance(400)
            assert sorted(len(a.body) for a in await r.attempts(2)) == [0, INLINE_BODY]

    run(main)


def test_memory_for_bodies_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BODIES", 10_000)

    async def main() -> None:
        async with rig(tmp_path) as r:
            for _ in range(20):
                await r.send(body=b"x" * 1000)
            attempts = await r.attempts(20)
            assert sum(len(a.body) for a in attempts) <= 10_000 + 1000 * scheduler.FETCHERS
            assert all(len(a.body) in (0, 1000) for a in attempts)

    run(main)


def test_idle_destinations_are_forgotten_and_found_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("a@x.example")
            await r.settle(await r.attempts(1), Result.TEMPFAIL)
            await r.send("a@y.example")
            await r.settle(await r.attempts(1), Result.OK)
            await r.advance(scheduler.IDLE * 2)
            await until(lambda: not r.queue.scheduler._known)
            assert await r.store.next_destination("mta", T0) == T0 + 400
            assert await r.store.destinations("mta", T0 + 399, 9) == []
            await r.advance(400)
            await r.attempts(1)

    run(main)


def test_many_destinations_pass_through_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "DESTINATIONS", 40)
    monkeypatch.setattr(scheduler, "WAITING", 30)
    monkeypatch.setattr(scheduler, "PAGE", 10)

    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            for number in range(200):
                await r.send(f"a@d{number}.example")
            assert not r.queue.scheduler._known
            await r.queue.pause("mta", False)
            seen: Counter[str] = Counter()
            while len(seen) < 200:
                assert len(r.queue.scheduler._known) <= 40 + 10 + len(r.mta.attempts)
                batch = r.mta.take()
                seen.update(a.destination for a in batch)
                await r.settle(batch, Result.TEMPFAIL)
                await r.advance(1)
                assert r.clock.now() < T0 + 400
            assert set(seen.values()) == {1}

    run(main)


MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # hundreds of queues, none to survive anything


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_every_envelope_ends_once_whatever_happens(seed: int) -> None:
    """A model: random mail, outcomes, losses, restarts, clocks and commands. Nothing is lost, doubled or early."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        run(lambda: Model(seed).play(Path(folder)))


class Model:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sent: set[int] = set()
        self.over: set[int] = set()
        self.due: dict[int, int] = {}  # not to be tried before
        self.suspended: set[int] = set()

    async def play(self, folder: Path) -> None:
        config = make_config(queue=QueueOptions(ttl=10 * DAY), scheduler=SchedulerLimits(max_inflight=12))
        async with rig(folder, config=config) as r:
            for _ in range(25):
                await self.random.choice(
                    [self.send, self.send, self.finish, self.finish, self.lose, self.wait, self.command, self.room]
                )(r)
                self.check(r)
            await self.drain(r)
            assert self.over == self.sent
            await r.holds(0, 0)

    async def send(self, r: Rig) -> None:
        domains = [f"u@d{self.random.randrange(4)}.example" for _ in range(self.random.randint(1, 6))]
        msgid = await r.send(*domains, sender="")
        self.sent |= {row.envelope.evpid for row in await r.queue.show(0, 100, msgid)}

    async def finish(self, r: Rig) -> None:
        for attempt in r.mta.take():
            evpid = attempt.envelope.evpid
            result = self.random.choice([Result.OK, Result.PERMFAIL, Result.TEMPFAIL])
            await asyncio.gather(*(r.settle([attempt], result) for _ in range(self.random.randint(1, 2))))
            row = await r.queue.envelope(evpid)
            if row is None:
                self.over.add(evpid)
            else:
                assert result is Result.TEMPFAIL
                self.due[evpid] = row.next_try

    async def lose(self, r: Rig) -> None:
        r.queue.lost([(a.envelope.evpid, a.attempt) for a in r.mta.take()])

    async def wait(self, r: Rig) -> None:
        await r.advance(self.random.choice([1, 6, 100, 400, 5000]))

    async def room(self, r: Rig) -> None:
        destination = f"mta:d{self.random.randrange(4)}.example"
        r.mta.rooms[destination] = self.random.choice([0, 1, 1000])
        r.queue.ready(destination)

    async def command(self, r: Rig) -> None:
        which = self.random.choice(sorted(self.sent) or [1])
        match self.random.randrange(5):
            case 0:
                await r.queue.schedule(which)
                self.due.pop(which, None)
            case 1:
                if await r.queue.suspend(which, True):
                    self.suspended.add(which)
                    self.forgive(r, which)
            case 2:
                self.suspended.discard(which)
                await r.queue.suspend(which, False)
            case 3:
                if await r.queue.remove(which):
                    self.over.add(which)
                    self.forgive(r, which)
            case 4:
                await r.queue.pause("mta", self.random.random() < 0.5)

    def forgive(self, r: Rig, evpid: int) -> None:
        """Attempts under way run on."""
        for attempt in r.mta.attempts:
            if attempt.envelope.evpid == evpid:
                r.mta.history.clear()

    def check(self, r: Rig) -> None:
        held = [a.envelope.evpid for a in r.mta.attempts]
        assert len(held) == len(set(held)) <= 12
        now = r.clock.now()
        for attempt in r.mta.history:
            evpid = attempt.envelope.evpid
            assert evpid not in self.over
            assert evpid not in self.suspended
            assert self.due.get(evpid, 0) <= now
        r.mta.history.clear()

    async def drain(self, r: Rig) -> None:
        """Let everything go: what was sent must come out."""
        await r.queue.pause("mta", False)
        await r.queue.suspend(0, False)
        self.suspended.clear()
        r.mta.rooms.clear()
        for number in range(4):
            r.queue.ready(f"mta:d{number}.example")
        for _ in range(60):
            if self.over == self.sent:
                return
            await r.advance(8000)
            self.check(r)
            for attempt in r.mta.take():
                await r.settle([attempt], Result.OK)
                self.over.add(attempt.envelope.evpid)
        raise AssertionError(f"still queued: {self.sent - self.over}")
