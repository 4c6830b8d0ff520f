import asyncio
import sqlite3
from pathlib import Path

import pytest

from pillarbox.conf.model import QueueOptions
from pillarbox.errors import TempFail
from pillarbox.mail.envelope import Kind, Notify, Outcome, Result, Sealed, encode_envelope
from pillarbox.queue.queue import BLOCK
from pillarbox.roles.bounce import BounceKind
from pillarbox.roles.delivery import InFlight
from pillarbox.roles.queue import NewMessage
from tests.queue.rig import DAY, T0, Clock, calm, make_config, make_envelope, rig, run, sealed, until


def test_new_mail_is_handed_over_with_its_body(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("bob@far.example", body=b"hello\r\n")
            (attempt,) = await r.attempts(1)
            assert (attempt.destination, attempt.body, attempt.size) == ("mta:far.example", b"hello\r\n", 7)
            await r.settle([attempt], Result.OK)
            assert await r.store.counts() == (0, 0)

    run(main)


def test_mda_and_mta_have_their_own_deliverers(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("alice@example.org", kind=Kind.MDA, mda_user="alice")
            await r.attempts(1, of=r.mda)
            assert r.mta.history == []

    run(main)


def test_only_what_lookup_sealed_for_this_message_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            good = make_envelope(77)
            forged = Sealed(encode_envelope(good), b"\0" * 16)
            moved = sealed(make_envelope(78))
            for envelopes in ((), (forged,), (moved,), (sealed(good), moved)):
                with pytest.raises(TempFail):
                    await r.queue.commit(NewMessage(msgid=77, size=1, body=b"x", envelopes=envelopes))
            with pytest.raises(TempFail):
                await r.queue.commit(NewMessage(msgid=77, size=2, body=b"x", envelopes=(sealed(good),)))
            assert await r.store.counts() == (0, 0)
            await r.queue.commit(NewMessage(msgid=77, size=1, body=b"x", envelopes=(sealed(good),)))

    run(main)


def test_ids_are_unique_and_fit_31_bits(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, start=False) as r:
            blocks = await asyncio.gather(*(r.queue.reserve(n) for n in (1, 4000, 0, 4096, 100)))
            assert [len(b) for b in blocks] == [1, 4000, 0, 4096, 100]
            ids = [i for block in blocks for i in block]
            assert len(set(ids)) == len(ids)
            assert all(0 < i < 2**31 for i in ids)

    run(main)


def test_ids_follow_one_another_round_the_end_and_past_what_is_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, start=False) as r:
            r.queue._block = 2**31 // BLOCK - 1  # the last one
            last = await r.queue.reserve(BLOCK)
            assert last == list(range(2**31 - BLOCK, 2**31))
            used = sealed(make_envelope(BLOCK + 5))
            await r.queue.commit(NewMessage(msgid=BLOCK + 5, size=1, body=b"x", envelopes=(used,)))
            assert await r.queue.reserve(2) == [2 * BLOCK, 2 * BLOCK + 1]

    run(main)


def test_mail_whose_client_went_away_during_the_commit_is_delivered(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            task = asyncio.get_running_loop().create_task(r.send())
            await until(lambda: r.queue._incoming == 1)
            task.cancel()
            await r.attempts(1)

    run(main)


def test_a_failed_attempt_is_repeated_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            msgid = await r.send()
            first = await r.attempts(1)
            await r.settle(first, Result.TEMPFAIL, errorline="451 wait")
            await r.advance(399)
            assert r.mta.attempts == []
            (row,) = await r.queue.show(0, 10)
            assert (row.next_try, row.state, row.envelope.retry, row.envelope.errorline) == (
                T0 + 400,
                "pending",
                1,
                "451 wait",
            )
            await r.advance(1)
            (again,) = await r.attempts(1)
            assert again.envelope.msgid == msgid
            assert again.attempt != first[0].attempt
            assert again.body
            (row,) = await r.queue.show(0, 10)
            assert (row.state, row.envelope.last_try) == ("inflight", T0 + 400)

    run(main)


def test_an_outcome_counts_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            (attempt,) = await r.attempts(1)
            outcome = Outcome(evpid=attempt.envelope.evpid, attempt=attempt.attempt, result=Result.TEMPFAIL)
            await asyncio.gather(
                r.queue.settle([outcome, outcome]), r.queue.settle([outcome]), r.queue.settle([outcome])
            )
            await r.queue.settle([outcome])
            (row,) = await r.queue.show(0, 10)
            assert row.envelope.retry == 1
            await r.advance(400)
            await r.attempts(1)
            await r.queue.settle([outcome])  # late, of the first attempt
            assert (await r.queue.show(0, 10))[0].state == "inflight"

    run(main)


def test_an_envelope_expires_without_another_attempt_when_its_last_was_in_this_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("bob@far.example", rcpt="b@fwd.example", ttl=100)
            await r.settle(await r.attempts(1), Result.TEMPFAIL)
            await r.advance(100)
            await until(lambda: bool(r.log))
            assert r.mta.attempts == []
            assert r.log[0].startswith("relay: Expire for ")
            assert r.log[0].endswith(
                ": from=<alice@example.org>, to=<bob@far.example>, rcpt=<b@fwd.example>, delay=1m40s, "
                "stat=Envelope expired"
            )
            await r.advance(1)
            await until(lambda: len(r.bouncer.asked) == 1)
            kind, (pending,) = r.bouncer.asked[0]
            assert (kind, pending.errorline, pending.ttl) == (BounceKind.FAILED, "Envelope expired", 100)

    run(main)


@pytest.mark.parametrize("restart", [False, True])
def test_after_an_outage_or_a_clock_jump_there_is_one_more_attempt(tmp_path: Path, restart: bool) -> None:
    clock = Clock()
    config = make_config(queue=QueueOptions(ttl=DAY))

    async def before() -> None:
        async with rig(tmp_path, clock=clock, config=config) as r:
            await r.send()
            await r.settle(await r.attempts(1), Result.TEMPFAIL)
            if not restart:
                clock.jump(10 * DAY)
                await r.advance(0)
                await last_chance(r)

    async def last_chance(r: object) -> None:
        attempts = await r.attempts(1)  # type: ignore[attr-defined]
        await r.settle(attempts, Result.TEMPFAIL)  # type: ignore[attr-defined]
        assert any("Expire for" in line for line in r.log)  # type: ignore[attr-defined]
        assert await r.stored() == 0  # type: ignore[attr-defined]

    async def after() -> None:
        async with rig(tmp_path, clock=clock, config=config) as r:
            await last_chance(r)

    run(before)
    if restart:
        clock.advance(10 * DAY)
        run(after)


def test_a_clock_set_back_strands_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with rig(tmp_path, clock=clock) as r:
            clock.jump(1000 * DAY)
            await r.advance(0)
            await r.send()
            await r.settle(await r.attempts(1), Result.TEMPFAIL)
            clock.jump(-1000 * DAY)
            await r.advance(0)
            await r.attempts(1)

    run(main)


def test_in_flight_attempts_survive_a_restart_of_the_queue(tmp_path: Path) -> None:
    clock = Clock()
    kept: list[tuple[int, int]] = []

    async def before() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await r.send("a@one.example", "b@two.example", "c@three.example", "d@four.example")
            for attempt in await r.attempts(4):
                kept.append((attempt.envelope.evpid, attempt.attempt))
            tempfail = Outcome(evpid=kept[3][0], attempt=kept[3][1], result=Result.TEMPFAIL)
            await r.queue.settle([tempfail])

    async def after() -> None:
        running, reported, lost, settled = kept
        held = InFlight(
            running=(running, (12345 << 32, 1)),
            outcomes=(
                Outcome(evpid=reported[0], attempt=reported[1], result=Result.OK),
                Outcome(evpid=settled[0], attempt=settled[1], result=Result.TEMPFAIL),  # its answer was lost
            ),
        )
        async with rig(tmp_path, clock=clock, start=False) as r:
            await r.queue.recover([held])
            await r.queue.start()
            (attempt,) = await r.attempts(1)
            assert attempt.envelope.evpid == lost[0]
            rows = {row.envelope.evpid: row for row in await r.queue.show(0, 10)}
            assert set(rows) == {running[0], lost[0], settled[0]}
            assert rows[settled[0]].envelope.retry == 1
            assert rows[running[0]].state == "inflight"
            await r.queue.settle([Outcome(evpid=running[0], attempt=running[1], result=Result.OK)])
            assert await r.queue.envelope(running[0]) is None

    run(before)
    run(after)


def test_mail_that_comes_while_a_restarted_queue_asks_what_is_under_way_is_delivered(tmp_path: Path) -> None:
    clock = Clock()
    seen: list[tuple[int, int]] = []

    async def before() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await r.send()
            (attempt,) = await r.attempts(1)
            seen.append((attempt.envelope.evpid, attempt.attempt))

    async def after() -> None:
        async with rig(tmp_path, clock=clock, start=False) as r:
            await r.queue.recover([InFlight(running=tuple(seen))])
            msgid = await r.send()  # for the same destination, which is known but not served yet
            await r.queue.settle([Outcome(evpid=seen[0][0], attempt=seen[0][1], result=Result.OK)])
            await r.queue.start()
            (attempt,) = await r.attempts(1)
            assert attempt.envelope.msgid == msgid

    run(before)
    run(after)


def test_a_report_to_a_queue_that_has_just_been_restarted_waits_until_it_knows(tmp_path: Path) -> None:
    clock = Clock()
    seen: list[tuple[int, int]] = []

    async def before() -> None:
        async with rig(tmp_path, clock=clock) as r:
            await r.send()
            (attempt,) = await r.attempts(1)
            seen.append((attempt.envelope.evpid, attempt.attempt))

    async def after() -> None:
        async with rig(tmp_path, clock=clock, start=False) as r:
            outcome = Outcome(evpid=seen[0][0], attempt=seen[0][1], result=Result.OK)
            report = asyncio.ensure_future(r.queue.settle([outcome]))
            await asyncio.sleep(0.05)
            assert not report.done()
            await r.queue.recover([InFlight(outcomes=(outcome,))])
            await report
            await r.queue.start()
            await calm(r)
            assert r.mta.history == [], "delivered twice"
            assert await r.store.counts() == (0, 0)

    run(before)
    run(after)


def test_an_attempt_lost_while_its_outcome_is_not_stored_is_due_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            (attempt,) = await r.attempts(1)
            refused: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
            real, r.store.settle = r.store.settle, lambda changes: refused  # type: ignore[method-assign]
            report = asyncio.ensure_future(r.settle([attempt], Result.OK))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            r.queue.lost([(attempt.envelope.evpid, attempt.attempt)])
            refused.set_exception(TempFail("disk full"))
            with pytest.raises(TempFail):
                await report
            r.store.settle = real  # type: ignore[method-assign]
            await r.advance(5)
            (again,) = await r.attempts(1)
            assert again.envelope == attempt.envelope

    run(main)


def test_what_its_deliverers_die_of_is_tried_less_and_less_often(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            for pause in (5, 20, 80):
                (attempt,) = await r.attempts(1)
                r.queue.lost([(attempt.envelope.evpid, attempt.attempt)])
                await r.advance(pause - 2)
                assert r.mta.attempts == []
                await r.advance(2)
            await r.attempts(1)

    run(main)


def test_a_body_that_is_gone_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        body = bytes(40000)
        async with rig(tmp_path, paused=("mta",)) as r:
            await r.send("a@far.example", body=body)
        for file in (tmp_path / "segments").iterdir():
            file.unlink()
        async with rig(tmp_path) as r:
            (gone,) = await r.attempts(1)
            assert (gone.body, gone.size) == (b"", 40000)
            with pytest.raises(TempFail):
                await r.queue.read(gone.envelope.msgid, 0, 100)
            await r.send("b@far.example")
            await r.attempts(1)

    run(main)


def test_an_envelope_that_cannot_be_read_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            for number in range(3):
                await r.send(f"user{number}@far.example")
        with sqlite3.connect(tmp_path / "queue.db") as db:
            (damaged,) = db.execute("SELECT evpid FROM envelope ORDER BY next_try, evpid LIMIT 1").fetchone()
            db.execute("UPDATE envelope SET data = x'c1' WHERE evpid = ?", (damaged,))
        async with rig(tmp_path) as r:
            await r.attempts(2)
            await calm(r)
            assert r.log == [
                f"warn: scheduler: mta:far.example: envelope {damaged:016x} cannot be read and is passed over"
            ]
            assert r.fatal == []

    run(main)


def test_lost_attempts_are_due_again_without_a_retry(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            (attempt,) = await r.attempts(1)
            r.queue.lost([(attempt.envelope.evpid, attempt.attempt), (1, 1)])
            await calm(r)
            assert r.mta.attempts == []
            await r.advance(5)
            (again,) = await r.attempts(1)
            assert again.envelope == attempt.envelope
            await r.settle([attempt], Result.OK)  # the dead man's report changes nothing
            assert await r.stored() == 1

    run(main)


def test_show_pages_and_single_envelopes(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            msgid = await r.send("a@x.example", "b@x.example")
            await r.send("c@x.example")
            rows = await r.queue.show(0, 2)
            rows += await r.queue.show(rows[-1].envelope.evpid, 2)
            assert [row.envelope.evpid for row in rows] == sorted(row.envelope.evpid for row in rows)
            assert len(rows) == 3
            assert {row.envelope.msgid for row in await r.queue.show(0, 9, msgid)} == {msgid}
            assert rows[0].expire == T0 + 4 * DAY
            assert await r.queue.envelope(rows[0].envelope.evpid) == rows[0]
            assert await r.queue.envelope(1) is None
            assert await r.queue.envelope(2**64) is None

    run(main)


def test_suspended_envelopes_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            msgid = await r.send("a@x.example", "b@y.example")
            assert await r.queue.suspend(msgid, True) == 2
            assert await r.queue.suspend(0, True) == 0
            assert await r.queue.pause("mta", False)
            await calm(r)
            assert r.mta.attempts == []
            evpid = (await r.queue.show(0, 1))[0].envelope.evpid
            assert await r.queue.suspend(evpid, False) == 1
            (attempt,) = await r.attempts(1)
            assert attempt.envelope.evpid == evpid
            assert [row.suspended for row in await r.queue.show(0, 9)] == [False, True]
            assert await r.queue.suspend(2**32 + 5, False) == 0

    run(main)


def test_pausing_stops_one_kind(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            assert await r.queue.pause("mta", True)
            assert not await r.queue.pause("mta", True)
            assert await r.queue.paused() == ["mta"]
            await r.send("a@x.example")
            await r.send("alice@x.example", kind=Kind.MDA, mda_user="alice")
            await r.attempts(1, of=r.mda)
            await calm(r)
            assert r.mta.attempts == []
            assert await r.queue.pause("mta", False)
            assert not await r.queue.pause("mta", False)
            await r.attempts(1)

    run(main)


def test_schedule_tries_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            msgid = await r.send("a@x.example", "b@y.example")
            await r.settle(await r.attempts(2), Result.TEMPFAIL)
            assert await r.queue.schedule(msgid + 1) == 0
            assert await r.queue.schedule(msgid) == 2
            await r.attempts(2)
            assert await r.queue.schedule(0) == 0  # under way

    run(main)


def test_remove_deletes_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            msgid = await r.send("a@x.example", "b@y.example", sender="")
            evpid = (await r.queue.show(0, 1))[0].envelope.evpid
            assert await r.queue.remove(evpid) == 1
            assert await r.queue.remove(evpid) == 0
            assert await r.queue.remove(msgid) == 1
            assert await r.store.counts() == (0, 0)
            assert "from=<@>, to=<" in r.log[0]
            assert r.log[0].endswith("stat=Removed by administrator")
            assert (await r.queue.stats())["scheduler.envelope.removed"] == 2

    run(main)


def test_removing_under_an_attempt_ends_it_silently(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send()
            attempts = await r.attempts(1)
            assert await r.queue.remove(0) == 1
            await r.settle(attempts, Result.PERMFAIL)
            assert await r.store.counts() == (0, 0)
            assert await r.store.bouncing(9) == []

    run(main)


def test_stats_use_the_reference_s_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("a@x.example", "b@x.example", "c@x.example")
            ok, later, _ = await r.attempts(3)
            await r.settle([ok], Result.OK)
            await r.settle([later], Result.TEMPFAIL)
            assert await r.queue.stats() == {
                "queue.evpcache.size": 1,
                "scheduler.delivery.ok": 1,
                "scheduler.delivery.tempfail": 1,
                "scheduler.envelope": 2,
                "scheduler.envelope.incoming": 0,
                "scheduler.envelope.inflight": 1,
                "scheduler.ramqueue.envelope": 2,
                "scheduler.ramqueue.message": 1,
                "scheduler.ramqueue.update": 0,
            }

    run(main)


def test_a_null_sender_gets_no_bounce(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send(sender="")
            await r.settle(await r.attempts(1), Result.PERMFAIL, errorline="550 no")
            assert r.log == ["warn: queue: no return path!"]
            assert await r.store.counts() == (0, 0)

    run(main)


def test_a_configuration_applies_to_mail_already_queued(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, paused=("mta",)) as r:
            await r.send(dsn_notify=Notify.NEVER)
            r.queue.configure(make_config(queue=QueueOptions(ttl=5)))
            assert (await r.queue.show(0, 1))[0].expire == T0 + 5

    run(main)


def test_outcomes_are_witnessed_once_and_only_when_they_are_on_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("alice@example.org", kind=Kind.MDA)
            (attempt,) = await r.attempts(1, of=r.mda)
            settling = asyncio.ensure_future(r.settle([attempt], Result.OK))
            await asyncio.sleep(0)
            assert r.witness.told == []  # it is on its way to the disk
            await settling
            await r.settle([attempt], Result.OK)  # repeated, as its deliverer may
            assert r.witness.told == [("alice@example.org", "ok")]

    run(main)


def test_attempts_that_fail_and_the_end_of_time_are_witnessed(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, config=make_config(queue=QueueOptions(ttl=15))) as r:
            await r.send("alice@example.org", kind=Kind.MDA)
            (attempt,) = await r.attempts(1, of=r.mda)
            await r.settle([attempt], Result.TEMPFAIL, errorline="disk full")
            await r.advance(20)
            assert r.witness.told == [("alice@example.org", "tempfail"), ("alice@example.org", "expired")]

    run(main)


def test_what_was_removed_meanwhile_is_not_witnessed(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as r:
            await r.send("alice@example.org", kind=Kind.MDA)
            (attempt,) = await r.attempts(1, of=r.mda)
            assert await r.queue.remove(0) == 1
            await r.settle([attempt], Result.OK)
            assert r.witness.told == []

    run(main)
