"""Tables that are programs, with real ones that misbehave: a question is answered or a TempFail, in bounded time."""

import asyncio
import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pillarbox.daemon.programs.programs import Programs
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.tables import link
from pillarbox.tables.link import Patience
from pillarbox.tables.program import NoProgram, ProgramTable
from pillarbox.tables.services import Service
from tests.system.server import wait_for

SCRIPT = str(Path(__file__).with_name("misbehaving.py"))
HASTY = Patience(answer=0.5, lost=1.0, start=10.0, steady=60.0, pauses=(0.0, 0.05, 0.1), down=60.0)


class Child:
    """Implements `Program` by misbehaving.py: a mode for each start, the last one from then on."""

    def __init__(self, programs, *modes):
        self.programs = programs
        self.modes = list(modes)
        self.starts = 0

    async def start(self):
        mode = self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]
        self.starts += 1
        return await self.programs.start("t", "t", sys.executable, ["-u", SCRIPT, mode])

    async def stop(self):
        await self.programs.stop("t")


class Rig:
    """An open table and what belongs to it."""

    def __init__(self, *modes, patience=HASTY):
        self.stream = io.StringIO()
        log = Log(self.stream)
        self.programs = Programs(account=None, log=log)
        self.child = Child(self.programs, *modes)
        self.table = ProgramTable(name="t", program=self.child, log=log, patience=patience)

    async def __aenter__(self):
        self.table.open()
        return self

    async def __aexit__(self, *exc):
        await self.table.close()

    @property
    def log(self):
        return self.stream.getvalue()

    @property
    def pid(self):
        (running,) = self.programs._running.values()
        return running.process.pid

    async def says(self, text, seconds=10):
        """Wait until the log says so."""
        async with asyncio.timeout(seconds):
            while text not in self.log:  # noqa: ASYNC110 - the log is no event
                await asyncio.sleep(0.02)

    async def works_again(self, seconds=10):
        """Ask until it answers; how often it did not."""
        failures = 0
        end = time.monotonic() + seconds
        while True:
            try:
                assert await self.table.lookup(Service.ALIAS, "x") == "value of x"
            except TempFail:
                assert time.monotonic() < end, self.log
                failures += 1
                await asyncio.sleep(0.02)
            else:
                return failures


def play(body, *modes, **options):
    """Run `body(rig)` within 30 seconds; no child is left."""

    async def bounded():
        async with asyncio.timeout(30), Rig(*modes, **options) as rig:
            await body(rig)
        return rig

    return asyncio.run(bounded())


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_questions_and_their_answers():
    async def body(rig):
        assert await rig.table.lookup(Service.ALIAS, "Root") == "value of root"
        assert await rig.table.lookup(Service.ALIAS, "none") is None
        assert await rig.table.match(Service.STRING, "x")
        assert not await rig.table.match(Service.STRING, "NONE")
        assert await rig.table.fetch(Service.SOURCE) == "value of "
        assert await rig.table.lookup(Service.USERINFO, "unregistered") == "value of unregistered"
        await rig.table.update()
        with pytest.raises(TempFail, match="table t: out of order"):
            await rig.table.match(Service.DOMAIN, "error")

    assert play(body, "good").child.starts == 1


def test_a_password_keeps_its_case():
    async def body(rig):
        assert await rig.table.registers(Service.AUTH)
        assert not await rig.table.registers(Service.ALIAS)
        assert await rig.table.match(Service.AUTH, "alice:Secret PW")
        assert not await rig.table.match(Service.AUTH, "alice:secret pw")

    play(body, "auth")


def test_answers_in_any_order_reach_whoever_asked():
    async def body(rig):
        keys = [f"k{n}" for n in range(300)]
        found = await asyncio.gather(*(rig.table.lookup(Service.ALIAS, key) for key in keys))
        assert found == [f"value of {key}" for key in keys]

    play(body, "backwards")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dies", "table t: ended; starting it again"),
        ("garbage", "table t: answers what was not asked: a line of 13 bytes that begins with no word of the protocol"),
        ("unfinished", "table t: did not answer for 0.5 s"),
        ("flood", "table t: wrote a line of more than"),
        ("flood_of_lines", 'table t: answers what was not asked: "lookup-result|…"'),
        ("stops", "table t: did not answer for 0.5 s"),
        ("deaf", "table t: did not answer for 0.5 s"),
    ],
)
def test_one_that_misbehaves_is_ended_and_started_again(mode, said):
    async def body(rig):
        begun = time.monotonic()
        questions = [rig.table.lookup(Service.ALIAS, f"k{n}") for n in range(50)]
        found = await asyncio.gather(*questions, return_exceptions=True)
        assert all(isinstance(f, TempFail) for f in found), found
        assert time.monotonic() - begun < 5
        await rig.works_again()
        assert said in rig.log
        assert "table t: runs again" in rig.log

    rig = play(body, mode, "good")
    assert rig.child.starts == 2


def test_an_answer_with_an_unknown_id_ends_it_but_not_what_was_answered():
    async def body(rig):
        assert await rig.table.lookup(Service.ALIAS, "x") == "value of x"
        await rig.works_again()
        assert 'answers what was not asked: "lookup-result|…"' in rig.log

    play(body, "unknown_id", "good")


def test_one_that_never_registers_is_started_again():
    async def body(rig):
        with pytest.raises(TempFail, match=r"did not answer within 0\.5 s"):
            await rig.table.match(Service.STRING, "x")
        await rig.works_again()
        assert "did not register its services within 0.7 s" in rig.log

    play(body, "silent", "good", patience=Patience(answer=0.5, start=0.7, pauses=(0.0,)))


def test_a_late_answer_harms_nobody():
    async def body(rig):
        late = asyncio.create_task(rig.table.lookup(Service.ALIAS, "late"))
        for _ in range(4):  # it is not silent meanwhile, so it is not ended
            await asyncio.sleep(0.2)
            if late.done():
                break
        with pytest.raises(TempFail, match=r"did not answer within 0\.3 s"):
            await late
        assert await rig.table.lookup(Service.ALIAS, "x") == "value of x"  # and the late one, to nobody
        assert await rig.table.lookup(Service.ALIAS, "y") == "value of y"

    rig = play(body, "late", patience=Patience(answer=0.3, lost=30.0))
    assert rig.child.starts <= 2


def test_who_gives_up_asking_leaves_the_program_and_others_alone():
    async def body(rig):
        assert await rig.table.match(Service.STRING, "x")
        tasks = [asyncio.create_task(rig.table.lookup(Service.ALIAS, f"k{n}")) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[1::2] == [f"value of k{n}" for n in range(1, 20, 2)]
        assert await rig.table.lookup(Service.ALIAS, "x") == "value of x"

    assert play(body, "good").child.starts == 1


def test_a_question_that_is_left_out_ends_the_program_at_last():
    async def body(rig):
        lost = asyncio.create_task(rig.table.lookup(Service.ALIAS, "lost"))
        while "left a question unanswered for 1 s" not in rig.log:
            try:
                await rig.table.lookup(Service.ALIAS, "x")
            except TempFail:
                break
            await asyncio.sleep(0.05)
        with pytest.raises(TempFail):
            await lost
        await rig.works_again()
        assert "left a question unanswered for 1 s" in rig.log

    play(body, "forgets", "good")


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(link, "MAX_WAITING", 10)

    async def body(rig):
        assert await rig.table.registers(Service.ALIAS)
        questions = [rig.table.lookup(Service.ALIAS, f"k{n}") for n in range(30)]
        found = await asyncio.gather(*questions, return_exceptions=True)
        refused = [f for f in found if isinstance(f, TempFail)]
        assert len(refused) >= 20
        assert any("10 questions are waiting already" in str(f) for f in refused)

    play(body, "stops", "good")


def test_one_that_fails_again_and_again_is_left_alone_and_refuses_at_once():
    async def body(rig):
        while "left alone" not in rig.log:
            with pytest.raises(TempFail):
                await rig.table.match(Service.STRING, "x")
            await asyncio.sleep(0.02)
        assert rig.child.starts == 4
        begun = time.monotonic()
        for _ in range(100):
            with pytest.raises(TempFail, match="table t does not answer: ended"):
                await rig.table.match(Service.STRING, "x")
        assert time.monotonic() - begun < 0.5
        assert rig.child.starts == 4
        assert "table t: ended; failed 4 times in a row: left alone for 60 s" in rig.log
        assert "t: exited with 3" in rig.log

    play(body, "dies_at_once")


def test_update_starts_one_that_was_left_alone():
    async def body(rig):
        await rig.says("left alone")
        await rig.table.update()
        assert await rig.table.lookup(Service.ALIAS, "x") == "value of x"

    play(body, "dies_at_once", "dies_at_once", "dies_at_once", "dies_at_once", "good")


def test_failures_are_forgotten_after_a_steady_life():
    async def body(rig):
        for _ in range(6):
            assert await rig.table.match(Service.STRING, "x")
            await asyncio.sleep(0.1)
            os.kill(rig.pid, signal.SIGKILL)
            await rig.works_again()
        assert "left alone" not in rig.log
        assert "t: killed by SIGKILL" in rig.log

    play(body, "good", patience=Patience(answer=5.0, steady=0.05, pauses=(0.0,)))


def test_close_ends_it_and_what_it_started_whatever_they_do():
    async def body(rig):
        await rig.says("child ")
        rig.pids = [rig.pid, int(rig.log.partition("child ")[2].split()[0])]

    rig = play(body, "stays")
    assert wait_for(lambda: all(map(gone, rig.pids)), 5)


def test_closing_fails_what_is_under_way():
    async def body(rig):
        assert await rig.table.registers(Service.ALIAS)
        question = asyncio.create_task(rig.table.lookup(Service.ALIAS, "x"))
        await asyncio.sleep(0.05)
        await rig.table.close()
        async with asyncio.timeout(3):  # not when its own time is over
            with pytest.raises(TempFail, match="was closed"):
                await question
        with pytest.raises(TempFail, match="it was closed"):
            await rig.table.lookup(Service.ALIAS, "x")

    play(body, "deaf", patience=Patience())


def test_a_program_that_is_closed_reads_the_end_of_its_input():
    async def body(rig):
        assert await rig.table.registers(Service.ALIAS)
        await rig.table.close()
        await rig.says("end of input")
        assert "killed" not in rig.log

    play(body, "polite")


def test_closing_while_it_starts():
    async def body(rig):
        await asyncio.sleep(0)
        await rig.table.close()
        assert not rig.programs._running

    play(body, "good")


def test_a_program_that_is_not_there_is_a_temporary_failure():
    async def body(rig):
        rig.child.start = lambda: rig.programs.start("t", "t", "/nowhere/table-x", [])
        with pytest.raises(TempFail, match="/nowhere/table-x: No such file"):
            await rig.table.match(Service.STRING, "x")

    play(body, "good", patience=Patience(pauses=()))


def test_without_somebody_to_start_it_nothing_is_answered():
    table = ProgramTable(name="t", program=NoProgram(), log=Log(io.StringIO()))
    with pytest.raises(TempFail, match="not open"):
        asyncio.run(table.lookup(Service.ALIAS, "x"))
