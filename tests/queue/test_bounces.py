import asyncio
from pathlib import Path
from typing import Any

from pillarbox.mail.envelope import Kind, Result
from pillarbox.roles.bounce import BounceKind, PendingBounce
from tests.queue.rig import Clock, Rig, rig, run, until


async def fail(r: Rig, *dests: str, **fields: object) -> int:
    msgid = await r.send(*dests, **fields)
    await r.settle(await r.attempts(len(dests)), Result.PERMFAIL, errorline="550 no")
    return msgid


def test_failures_of_a_message_share_a_dsn_after_a_second_of_quiet(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("a@x.example", "b@y.example")
            first, second = await r.attempts(2)
            await r.settle([first], Result.PERMFAIL, errorline="550 one")
            await r.advance(0.7)
            await r.settle([second], Result.PERMFAIL, errorline="550 two")
            await r.advance(0.7)
            assert r.bouncer.asked == []
            await r.advance(0.4)
            (dsn,) = await r.attempts(1, of=r.mda)
            ((kind, pending),) = r.bouncer.asked
            assert kind is BounceKind.FAILED
            assert sorted(p.errorline for p in pending) == ["550 one", "550 two"]
            assert [p.evpid for p in pending] == sorted(p.evpid for p in pending)
            assert r.bouncer.original == b"Subject: x\r\n\r\nhello\r\n"
            assert (dsn.body, dsn.envelope.dest, dsn.envelope.sender) == (b"DSN\r\n", "alice@example.org", "")
            assert await r.store.counts() == (1, 1)  # the original is gone
            assert await r.store.bouncing(9) == []

    run(main)


def test_a_dsn_may_be_streamed(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.bouncer.stream = True
            await fail(r, "a@x.example")
            await r.advance(1.1)
            (dsn,) = await r.attempts(1, of=r.mda)
            assert dsn.body == b"DSN body\r\n"

    run(main)


def test_a_dsn_that_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.bouncer.fails = 1
            msgid = await fail(r, "a@x.example")
            await r.advance(1.1)
            await until(lambda: len(r.log) == 1)
            assert r.log == [f"warn: queue: bounce of {msgid:08x}: no answer"]
            assert await r.store.counts() == (0, 1)
            await r.advance(5.1)
            await r.attempts(1, of=r.mda)

    run(main)


def test_a_dsn_that_nobody_foresaw_ends_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            real = r.bouncer.make

            async def make(kind: BounceKind, pending: list[PendingBounce], *args: Any, **named: Any) -> Any:
                if pending[0].envelope.dest == "a@x.example":
                    raise ZeroDivisionError("a mistake of ours")
                return await real(kind, pending, *args, **named)

            r.bouncer.make = make  # type: ignore[method-assign]
            await fail(r, "a@x.example")
            await fail(r, "b@y.example")
            await r.advance(1.1)
            await r.attempts(1, of=r.mda)
            await until(lambda: "\tZeroDivisionError: a mistake of ours" in r.log)
            assert r.fatal == []

    run(main)


def test_a_bounce_noted_while_the_others_are_looked_for_is_not_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, start=False) as r:
            look, found = asyncio.Event(), r.store.bouncing

            async def bouncing(limit: int) -> list[int]:
                answer = await found(limit)
                await look.wait()
                return answer

            r.store.bouncing = bouncing  # type: ignore[method-assign]
            await r.queue.start()
            await fail(r, "a@x.example")
            look.set()
            await r.advance(1.1)
            await r.attempts(1, of=r.mda)

    run(main)


def test_nobody_to_tell_ends_the_matter(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            r.bouncer.nobody = True
            await fail(r, "a@x.example")
            await r.advance(1.1)
            await r.holds(0, 0)
            assert len(r.bouncer.asked) == 1

    run(main)


def test_pending_bounces_survive_a_restart(tmp_path: Path) -> None:
    clock = Clock()

    async def before() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await fail(r, "a@x.example")

    async def after() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await r.attempts(1, of=r.mda)
            assert len(r.bouncer.asked) == 1

    async def again() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await r.attempts(1, of=r.mda)  # the DSN itself
            await r.advance(5)
            assert r.bouncer.asked == []

    for part in (before, after, again):
        run(part)


def test_a_delay_is_told_while_the_mail_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            for wait in (400, 1200, 2000, 2800, 3600, 4400):
                await r.settle(await r.attempts(1), Result.TEMPFAIL, errorline="451 wait")
                await r.advance(wait)
            await r.advance(1.1)
            await until(lambda: len(r.bouncer.asked) == 1)
            ((kind, (pending,)),) = r.bouncer.asked
            assert (kind, pending.delay, pending.ttl) == (BounceKind.DELAYED, 4 * 3600, 4 * 86400)
            assert any(row.envelope.kind is Kind.MTA for row in await r.queue.show(0, 9))

    run(main)
