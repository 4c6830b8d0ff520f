"""The filter role with real processors: what they are told and answer, whatever they do instead, reload, and bounds."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pillarbox.conf.model import EventReport, Proc
from pillarbox.errors import TempFail
from pillarbox.filters import asked, service
from pillarbox.filters import processor as link
from pillarbox.filters.processor import Patience
from pillarbox.roles.filters import EVENTS, Decision, Output, Phase, Question, Report, Said
from tests.filters.rig import HASTY, Rig, command, configuration, event, gone, play

Body = Callable[[Rig], Awaitable[None]]


def run(
    folder: Path, body: Body, *modes: str, timeout: int = 60, patience: Patience = HASTY, size: int = 35_000_000
) -> Rig:
    """With one processor that has these modes."""
    proc = Proc(name="f", command=command(folder, *modes), timeout=timeout)
    return play(body, configuration(proc, max_message_size=size), patience=patience)


async def fails(rig: Rig, why: str, *told: str, last: bool = False) -> None:
    """The processor is ended for this reason when it is asked something, or told of these events."""
    processor = await rig.join()
    assert processor.life
    await rig.tell(processor, *(event(name) for name in told), rig.question())
    await rig.dispatcher.until(lambda: rig.now(processor).life != processor.life)
    await rig.says(f"filter f: {why}")
    with pytest.raises(TempFail):
        await rig.tell(processor, rig.question())


# -- told and answered


def test_a_question_is_answered_to_who_asked(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        assert (processor.name, processor.known, processor.why) == ("f", True, "")
        assert processor.phases == set(Phase)
        assert processor.events == {f"smtp-in {name}" for name in EVENTS}
        assert (await rig.ask(processor)).decision is Decision.PROCEED
        assert not rig.other.answers
        await rig.tell(processor, rig.question(session=2), teller="dispatcher.1")
        await rig.other.until(lambda: bool(rig.other.answers))

    run(folder, body, "good")


def test_answers_may_come_in_any_order(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        questions = [rig.question(session) for session in (1, 2, 3)]
        await rig.tell(processor, *questions)
        await rig.answer(questions[0])
        assert [answer.session for answer in rig.dispatcher.answers] == [3, 2, 1]

    run(folder, body, "backwards")


def test_a_message_comes_back_as_it_was(folder: Path) -> None:
    text = b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n" + b"line\r\n" * 20_000
    cut = text.index(b"\n", 100_000) + 1

    async def body(rig: Rig) -> None:
        processor = await rig.join()
        lines = rig.lines(text[:cut], last=False)
        await rig.tell(processor, lines)
        await rig.tell(processor, rig.lines(text[cut:], token=lines.token))
        await rig.dispatcher.until(lambda: any(isinstance(a, Output) and a.last for a in rig.dispatcher.answers))
        assert rig.dispatcher.message(lines.token) == text

    run(folder, body, "good")


def test_what_was_not_registered_is_not_told(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, event("tx-begin", text="1"), event("tx-mail", text="0a0b0c0d|ok|a@b"))
        await rig.says("|tx-mail|0000000000000001|0a0b0c0d|ok|a@b")
        with pytest.raises(TempFail, match="has not registered mail-from"):
            await rig.tell(processor, rig.question())

    assert "tx-begin" not in run(folder, body, "listens").log


def test_local_deliveries_are_events_too(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, Report("mda", "delivery", 7, 1576146008.006099, "x|ok"), teller="queue")
        await rig.says("report|0.7|1576146008.006099|mda|delivery|0000000000000007|x|ok")

    run(folder, body, "listens")


def test_local_deliveries_take_no_session_s_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MAX_SESSIONS", 3)

    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, rig.question())
        for session in range(2, 12):
            await rig.tell(processor, Report("mda", "delivery", session, 1576146008.006099, "x|ok"), teller="queue")
        (status,) = await rig.filters.show()
        assert status.waiting == 1

    run(folder, body, "no_answer")


def test_a_loop_that_reads_is_a_processor(folder: Path) -> None:
    proc = Proc(name="f", command=command(folder, "bare"))

    async def body(rig: Rig) -> None:
        processor = await rig.join()
        assert processor.events == {f"smtp-in {name}" for name in EVENTS}
        await rig.tell(processor, event("link-connect", text="h|pass|1.2.3.4:5|6.7.8.9:25"))
        await rig.says("f: report|0.7|1576146008.006099|smtp-in|link-connect|0000000000000001|h|pass|")

    play(body, configuration(proc, reports=(EventReport(direction="smtp-in", proc="f"),)))


def test_an_older_processor_is_spoken_to_in_its_way(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, event("tx-mail", text="0a0b0c0d|ok|a@b"))
        await rig.says("report|0.4|1576146008.006099|smtp-in|tx-mail|0000000000000001|0a0b0c0d|a@b|ok")
        assert (await rig.ask(processor, phase="helo")).decision is Decision.PROCEED

    run(folder, body, "old")


def test_a_processor_that_says_nothing_new_about_strangers_may(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        for session in (1, 2):
            assert (await rig.ask(processor, session)).session == session
        assert len(rig.dispatcher.answers) == 2

    run(folder, body, "strangers")


def test_a_second_answer_is_ignored(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        for _ in range(3):
            assert (await rig.ask(processor)).decision is Decision.PROCEED

    run(folder, body, "twice")


def test_what_comes_after_the_session_is_ignored(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        first = rig.question(1)
        await rig.tell(processor, first, event("link-disconnect", 1), rig.question(2), rig.question(3))
        await rig.dispatcher.until(lambda: len(rig.dispatcher.answers) == 2)
        assert {answer.session for answer in rig.dispatcher.answers} == {2, 3}

    run(folder, body, "backwards")


# -- life and death


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("dies", "ended; starting it again"),
        ("garbage", 'wrote a line that is none: "what is this?"; starting it again'),
        ("bad_token", "answered what session 0000000000000001 did not ask (a wrong token)"),
        ("wrong_kind", "answered mail-from with lines of a message"),
        ("flood", "wrote more than 1048576 bytes without an end of line"),
        ("flood_of_lines", "floods us with lines that nobody waits for"),
    ],
)
def test_a_processor_that_fails_is_started_again(mode: str, why: str, folder: Path) -> None:
    async def body(rig: Rig) -> None:
        before = (await rig.status()).pid
        if "flood" not in mode:
            await fails(rig, why)
        await rig.says(why)
        processor = await rig.join()
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)
        assert (await rig.ask(rig.now(processor))).decision is Decision.PROCEED
        assert gone(before)
        assert (await rig.status()).restarts == 1

    run(folder, body, mode, "good")


@pytest.mark.parametrize(("mode", "told"), [("flood_of_reports", "link-connect"), ("flood_of_message", "")])
def test_a_flood_about_a_session_ends_too(mode: str, told: str, folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, event(told) if told else rig.lines(b"x\r\n", last=False))
        await rig.says("floods us" if told else "makes a message longer than any may be")
        assert sum(len(a.data) for a in rig.dispatcher.answers if isinstance(a, Output)) < 5_000_000

    run(folder, body, mode, "good", size=2_000_000)


def test_junk_at_commit_comes_too_late(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        assert (await rig.ask(processor, phase="data")).decision is Decision.JUNK
        await rig.tell(processor, rig.question(phase="commit"))
        await rig.says("decided junk at commit")

    run(folder, body, "junk_at_commit", "good")


def test_registering_what_there_is_not_is_a_failure(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.says("registers what there is not")
        processor = await rig.join()
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)

    run(folder, body, "garbage_when_greeted", "good")


@pytest.mark.parametrize("mode", ["stops", "no_answer", "unfinished"])
def test_a_processor_that_does_not_answer_is_ended(mode: str, folder: Path) -> None:
    async def body(rig: Rig) -> None:
        began = time.monotonic()
        await fails(rig, "did not answer for 1 s")
        assert time.monotonic() - began < 5
        processor = await rig.join()
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)

    run(folder, body, mode, "good", timeout=1)


def test_a_question_that_is_left_out_is_lost_and_nothing_else(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, rig.question(phase="helo"))
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            await rig.ask(processor)
            await asyncio.sleep(0.1)
        await rig.says("filter f: 0000000000000001 helo was not answered for 1 s")
        assert (await rig.status()).waiting == 0
        assert rig.now(processor).life == processor.life

    run(folder, body, "leaves_out", timeout=1)


def test_a_message_that_takes_longer_than_an_answer_may_arrives_as_long_as_some_of_it_does(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        lines = rig.lines(b"line\r\n" * 8)
        await rig.tell(processor, lines)
        await rig.dispatcher.until(lambda: any(isinstance(a, Output) and a.last for a in rig.dispatcher.answers))
        assert rig.dispatcher.message(lines.token) == lines.data
        assert "not answered" not in rig.log

    run(folder, body, "slowly", timeout=1)


def test_a_processor_that_does_not_read_makes_who_asks_wait_until_it_is_ended(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        with pytest.raises(TempFail):
            for _ in range(1000):
                await rig.tell(
                    processor, rig.lines(b"x" * 900 + b"\r\n", token=1, last=False), *([event("tx-begin")] * 100)
                )
        await rig.says("did not read for 1 s what it was sent")

    run(folder, body, "deaf", "good", timeout=1)


def test_however_many_tell_it_something_at_once_what_it_has_not_read_is_bounded(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        most = 0
        empty = rig.lines(b"\r\n" * 100_000, last=False)  # 9 MB as they are told
        (supervised,) = rig.filters._running.values()
        telling = [asyncio.ensure_future(rig.tell(processor, empty)) for _ in range(20)]
        while not all(told.done() for told in telling):
            await asyncio.sleep(0.01)
            if supervised.link is not None and supervised.link._transport is not None:
                most = max(most, supervised.link._transport.get_write_buffer_size())
        assert {type(told.exception()) for told in telling} == {TempFail}
        await rig.says("did not read for 1 s what it was sent")
        assert link.UNREAD < most < 20 << 20

    run(folder, body, "deaf", "good", timeout=1)


def test_events_that_only_it_waits_for_are_dropped_and_counted(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        text = "x" * 900
        async with asyncio.timeout(10):
            for _ in range(200):
                await rig.tell(processor, *(event("protocol-client", text=text) for _ in range(100)))
        status = await rig.status()
        assert 0 < status.dropped < 20_000
        assert rig.now(processor).life == processor.life
        await rig.filters.restart("f")
        await rig.says(f"{status.dropped} events were dropped")

    run(folder, body, "deaf_listener")


def test_one_that_never_registers_is_started_again(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.says("did not register within 0.5 s; starting it again")
        processor = await rig.join()
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)

    run(folder, body, "silent", "good", patience=Patience(start=0.5, pauses=(0.0, 0.1), grace=0.5))


def test_one_that_fails_five_times_in_a_minute_is_left_down_until_somebody_says_restart(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.says(
            'died 5 times in 60 s and is left down: look at what it says above, then "smtpctl restart filter f"'
        )
        status = await rig.status()
        assert (status.state, status.pid, status.restarts, status.why) == ("down", 0, 4, "ended")
        processor = await rig.join()
        assert (processor.life, processor.known, processor.why) == (0, True, "ended")
        assert await rig.filters.restart("f")
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)
        assert (await rig.status()).state == "running"
        assert not await rig.filters.restart("g")

    run(folder, body, *["dies_at_once"] * 3, *["dies_when_ready"] * 2, "good")


def test_a_command_that_cannot_be_executed_is_a_death_like_any_other(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.says("left down")
        assert "f: sh: 1: exec: /nonexistent/filter: not found" in rig.log

    play(body, configuration(Proc(name="f", command="/nonexistent/filter")))


def test_the_killed_one_is_noticed_and_its_dispatcher_told(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        os.kill((await rig.status()).pid, signal.SIGKILL)
        await rig.dispatcher.until(lambda: rig.now(processor).life not in (0, processor.life))
        assert "f: killed by SIGKILL" in rig.log
        await rig.ask(rig.now(processor))

    run(folder, body, "good")


def test_restart_lets_it_end_by_itself(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        assert await rig.filters.restart("f")
        await rig.says("f: end of input")
        await rig.dispatcher.until(lambda: rig.now(processor).life not in (0, processor.life))
        await rig.says("info: filter f: restarted")

    run(folder, body, "polite")


def test_a_restart_while_it_starts_is_no_excuse_for_a_later_death(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        await rig.filters.restart("f")
        processor = await rig.join()
        os.kill((await rig.status()).pid, signal.SIGKILL)
        await rig.dispatcher.until(lambda: rig.now(processor).life not in (0, processor.life))
        await rig.says("filter f: ended; starting it again")

    config = configuration(Proc(name="f", command=command(folder, "good")))

    async def bounded() -> None:
        rig = Rig(config)
        running = asyncio.ensure_future(rig.filters.run())
        adding = asyncio.ensure_future(rig.filters.add_config(config))
        await asyncio.sleep(0)
        try:
            await body(rig)
            await adding
        finally:
            await rig.filters.close()
            running.cancel()

    asyncio.run(asyncio.wait_for(bounded(), 30))


def test_lines_written_one_at_a_time_are_passed_on_together(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        rig.dispatcher.busy.clear()
        lines = rig.lines(b"line\r\n" * 1000)
        await rig.tell(processor, lines)
        await asyncio.sleep(0.3)
        rig.dispatcher.busy.set()
        await rig.dispatcher.until(lambda: any(isinstance(a, Output) and a.last for a in rig.dispatcher.answers))
        assert rig.dispatcher.message(lines.token) == lines.data
        assert len(rig.dispatcher.answers) < 100

    run(folder, body, "good")


def test_who_does_not_end_is_killed(folder: Path) -> None:
    pids: list[int] = []

    async def body(rig: Rig) -> None:
        pids.append((await rig.status()).pid)

    began = time.monotonic()
    run(folder, body, "stubborn", patience=Patience(grace=0.3))
    assert gone(pids[0])
    assert time.monotonic() - began < 10


# -- dispatchers


def test_answers_that_a_dispatcher_does_not_take_are_bounded_and_delay_no_deadline(folder: Path) -> None:
    line = b"x" * 900 + b"\r\n"

    async def body(rig: Rig) -> None:
        processor = await rig.join()
        rig.dispatcher.busy.clear()
        lines = rig.lines(line * 100, last=False)

        async def send() -> None:
            for _ in range(400):
                await rig.tell(processor, rig.lines(line * 100, token=lines.token, last=False))
            await rig.tell(processor, rig.lines(b"", token=lines.token))

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(2.5)
        assert not sending.done()
        rig.dispatcher.busy.set()
        await sending
        await rig.dispatcher.until(lambda: any(isinstance(a, Output) and a.last for a in rig.dispatcher.answers))
        assert len(rig.dispatcher.message(lines.token)) == 400 * 100 * len(line)
        assert rig.now(processor).life == processor.life

    run(folder, body, "good", timeout=1)


def test_a_dispatcher_that_is_gone_is_not_waited_for(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, rig.question(1), teller="dispatcher.1")
        await rig.tell(processor, rig.question(2))
        rig.filters.teller_lost("dispatcher.1")
        assert (await rig.status()).waiting == 1
        await rig.tell(processor, rig.question(3), rig.question(4))
        await rig.dispatcher.until(lambda: len(rig.dispatcher.answers) == 2)

    run(folder, body, "backwards")


def test_the_sessions_of_a_dispatcher_that_is_gone_are_over_for_who_follows_them(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        out = Report("smtp-out", "link-connect", 3, 1576146008.006099, "x|pass|192.0.2.1:1|192.0.2.2:25")
        await rig.tell(processor, rig.question(1), event("link-connect", 2), out, teller="dispatcher.1")
        await rig.tell(processor, event("link-connect", 4), event("link-disconnect", 4), teller="dispatcher.1")
        await rig.tell(processor, rig.question(5))
        await rig.says("over: smtp-in|link-disconnect|0000000000000004")
        rig.filters.teller_lost("dispatcher.1")
        for ended in ("smtp-in|link-disconnect|0000000000000001", "smtp-in|link-disconnect|0000000000000002"):
            await rig.says(f"over: {ended}")
        await rig.says("over: smtp-out|link-disconnect|0000000000000003")
        await rig.ask(processor, 5)
        assert rig.log.count("over: ") == 4
        # Whoever comes in its place may have sessions of any number.
        await rig.tell(processor, rig.question(1))

    run(folder, body, "ends")


def test_a_dispatcher_does_not_speak_for_the_sessions_of_another(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        mine = rig.question(1)
        await rig.tell(processor, mine)
        for told in (rig.question(1), rig.lines(b"x\r\n"), event("tx-begin"), event("link-disconnect")):
            with pytest.raises(TempFail, match=r"not one of dispatcher\.1"):
                await rig.tell(processor, told, teller="dispatcher.1")
        # And what it was asked in the same breath is asked, and not merely noted as owed.
        with pytest.raises(TempFail):
            await rig.tell(processor, rig.question(2), rig.question(1), teller="dispatcher.1")
        await rig.answer(mine)
        await rig.other.until(lambda: len(rig.other.answers) == 1)
        assert len(rig.dispatcher.answers) == 1

    run(folder, body, "good")


def test_a_processor_reports_to_the_dispatcher_of_the_session(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        await rig.tell(processor, event("link-connect", 9))
        await rig.dispatcher.until(lambda: bool(rig.dispatcher.answers))
        assert rig.dispatcher.answers[0] == Said(9, 1576146008.006099, "x")

    run(folder, body, "flood_of_reports", "good")


# -- waiting, and bounds


def test_nobody_waits_long_for_one_that_does_not_register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "REGISTERING", 0.3)

    async def body(rig: Rig) -> None:
        processor = await rig.join()
        assert (processor.life, processor.known) == (0, False)
        await rig.says("filter f: not registered after 0.3 s: not waited for any longer")
        with pytest.raises(TempFail):
            await rig.tell(processor, rig.question())

    run(folder, body, "silent", patience=Patience(grace=0.2))


def test_more_than_any_number_of_questions_of_a_session_stay_bounded(folder: Path) -> None:
    async def body(rig: Rig) -> None:
        processor = await rig.join()
        for _ in range(30):
            await rig.tell(processor, *(rig.question() for _ in range(100)))
        await rig.dispatcher.until(lambda: len(rig.dispatcher.answers) == 3000)
        assert isinstance(rig.question(), Question)

    run(folder, body, "good")


def test_the_unread_bounds_are_in_order() -> None:
    assert link.UNREAD < link.UNREAD_EVENTS < link.UNREAD_MAX
