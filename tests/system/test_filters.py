"""Whatever a filter does, every session gets a defined answer in bounded time, the other listener does not notice, and
nothing that was acknowledged is lost or delivered twice."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.system.filtering import DEFINED, TIMEOUT, Load, Site, arguments, check, load, site, unnoticed
from tests.system.load import read_maildir
from tests.system.reloading import Dialogue
from tests.system.server import Wiring, kill, wait_for
from tests.system.test_crash import role

WORKS = 6  # messages through the filter, after which it is said to work
# How each fault shows: at once, since the answer is wrong or the program gone, or when the time for an answer is over.
AT_ONCE = ["mail-from garbage", "data-line death", "commit unknown-decision"]
IN_TIME = ["mail-from deaf", "data-line flood", "commit mute"]
# The same, in other phases and ways.
MORE = [
    "mail-from death", "mail-from noise", "mail-from unknown-decision", "mail-from hung-up", "mail-from endless-line",
    "mail-from wrong-token", "data-line garbage", "commit death", "commit garbage", "mail-from mute", "mail-from flood",
    "data-line mute", "data-line deaf", "data-line endless-message",
]  # fmt: skip


async def works(it: Site, made: Load) -> None:
    """Mail is accepted through the filter."""
    assert await made.gets(WORKS, made.filtered), (
        made.filtered.codes,
        made.filtered.faults[:3],
        it.server.log()[-3000:],
    )


def marks(it: Site) -> list[str]:
    """What the filters of the delivered messages wrote into them."""
    texts = [path.read_text() for path in (it.mail / "Maildir/new").glob("*")]
    return [line.removeprefix("X-Filter: ") for text in texts for line in text.splitlines() if "X-Filter: " in line]


def test_mail_goes_through_the_filter_of_its_listener_only(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it) as made:
                await works(it, made)
                await made.gets(WORKS, made.plain)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        assert len(marks(it)) == len(made.filtered.acknowledged)
        assert set(made.filtered.codes) <= {"220", "250", "354", "221"}
        (row,) = [line for line in it.server.ctl("show", "filters").out.splitlines() if "faulty_filter" in line]
        assert "running" in row


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_filter_that_is_killed_or_stopped_is_started_again(
    folder: Path, wiring: Wiring, signum: signal.Signals
) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it) as made:
                for _ in range(3):
                    await works(it, made)
                    before = await asyncio.to_thread(it.filters)
                    for pid in before:
                        kill(pid, signum)
                    assert await asyncio.to_thread(lambda b=before: wait_for(lambda: _others(it, b), TIMEOUT + 15))  # type: ignore[misc]
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        for pid in it.filters():
            assert "T" not in _state(pid), "a stopped process is left"


def _others(it: Site, before: list[int]) -> bool:
    now = it.filters()
    return bool(now) and not set(now) & set(before)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize("order", AT_ONCE + IN_TIME + [pytest.param(more, marks=pytest.mark.long) for more in MORE])
def test_a_filter_that_misbehaves_puts_its_own_mail_off_and_no_other(folder: Path, wiring: Wiring, order: str) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it, size=20_000 if "data-line" in order else 4096) as made:
                await works(it, made)
                before, resident = await asyncio.to_thread(it.filters), await asyncio.to_thread(it.resident)
                it.order(order)
                assert await made.is_told("451"), (made.filtered.codes, it.server.log()[-3000:])
                it.order("")
                # One that leaves out some answers and gives others may go on.
                assert "mute" in order or await asyncio.to_thread(
                    lambda: wait_for(lambda: not set(it.filters()) & set(before), TIMEOUT + 15)
                )
                await works(it, made)
                assert await asyncio.to_thread(it.resident) < resident + 60
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        assert "250" in made.filtered.codes


@pytest.mark.parametrize("order", ["mail-from twice", "rcpt-to twice"])
def test_an_answer_too_many_harms_nobody(folder: Path, wiring: Wiring, order: str) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it) as made:
                await works(it, made)
                it.order(order)
                await made.gets(WORKS, made.plain)
                await asyncio.sleep(0.5)
                it.order("")
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)


def test_five_deaths_in_a_minute_leave_it_down_until_somebody_restarts_it(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it) as made:
                await works(it, made)
                it.order("mail-from death")
                assert await asyncio.to_thread(lambda: wait_for(lambda: _is(it, "down"), 60)), it.server.log()[-3000:]
                it.order("")
                accepted = len(made.filtered.acknowledged)
                assert await made.is_told("451")
                assert await made.gets(WORKS, made.plain)
                assert not await asyncio.to_thread(it.filters)
                assert len(made.filtered.acknowledged) == accepted
                result = await asyncio.to_thread(lambda: it.server.ctl("restart", "filter", "f"))
                assert result.exit == 0, result
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        assert [line for line in it.server.log().splitlines() if "filter f" in line and "5 times" in line]
        assert it.server.ctl("restart", "filter", "nobody").exit == 1


def _is(it: Site, state: str) -> bool:
    return any(line.startswith("f") and state in line for line in it.server.ctl("show", "filters").out.splitlines())


def test_a_reload_brings_a_filter_back_that_is_down(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        it.order("mail-from death")
        it.until(lambda: _send(it) == "451" and _is(it, "down"), 60)
        it.order("")
        assert it.server.ctl("reload").exit == 0
        it.until(lambda: _send(it) == "250")


def _send(it: Site) -> str:
    """The code of the last reply of a session with one message."""
    client = Dialogue(it.port)
    try:
        if not client.greeting.startswith("220"):
            return client.greeting[:3]
        client.say("EHLO client")
        for line in ("MAIL FROM:<s@client.example>", "RCPT TO:<local@bench.test>", "DATA"):
            if (reply := client.say(line))[:3] not in ("250", "354"):
                return reply[:3]
        return client.say("Subject: 0.0\r\n\r\nhello\r\n.")[:3]
    finally:
        client.close()


@pytest.mark.parametrize("order", ["mail-from death", "mail-from mute", "data-line death", "commit garbage"])
def test_fail_open_lets_mail_pass_where_the_filter_fails(folder: Path, wiring: Wiring, order: str) -> None:
    with site(folder, wiring, options="timeout 2s fail open") as it:

        async def run() -> Load:
            async with load(it) as made:
                await works(it, made)
                it.order(order)
                assert await asyncio.to_thread(lambda: wait_for(lambda: it.says("filter f"), 30)), it.server.log()[
                    -3000:
                ]
                await works(it, made)
                it.order("")
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        # Of a message that was half through, nobody knows the other half.
        halves = it.server.log().count("phase=data-line")
        assert made.filtered.codes["451"] <= halves, (made.filtered.codes, it.server.log()[-3000:])


def test_a_filter_that_cannot_be_started_stops_its_own_mail_only(folder: Path, wiring: Wiring) -> None:
    made = Site(folder, wiring)
    made.program.unlink()
    with made.server:
        made.until(lambda: _is(made, "down"), 60)
        assert _send(made) in ("451", "421")
        other = Dialogue(made.plain)
        other.say("EHLO client")
        assert other.message("0.1").startswith("250")
        other.close()
        assert made.says("filter f")


def test_the_filter_role_is_started_again_with_its_filters(folder: Path, machine: None) -> None:
    with site(folder, Wiring.MANY) as it:

        async def run() -> Load:
            async with load(it) as made:
                for _ in range(3):
                    await works(it, made)
                    (victim,), before = await asyncio.to_thread(lambda: (role(it.server, "filter\0"), it.filters()))
                    kill(victim, signal.SIGKILL)
                    assert await asyncio.to_thread(lambda b=before: wait_for(lambda: _others(it, b), 30))  # type: ignore[misc]
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)


def test_a_filter_role_that_hangs_is_replaced(folder: Path, machine: None) -> None:
    with site(folder, Wiring.MANY) as it:

        async def run() -> Load:
            async with load(it) as made:
                await works(it, made)
                (victim,) = await asyncio.to_thread(lambda: role(it.server, "filter\0"))
                kill(victim, signal.SIGSTOP)
                assert await made.is_told("451", 60), made.filtered.codes
                await made.gets(WORKS, made.plain)
                kill(victim, signal.SIGCONT)
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made, slowest=30.0)
        unnoticed(made)


def test_filters_end_with_a_server_that_is_killed(folder: Path, wiring: Wiring) -> None:
    it = Site(folder, wiring)
    it.server.start()
    it.until(it.filters)
    filters, roles = it.filters(), it.server.pids()
    assert it.server.process is not None
    try:
        it.server.process.kill()
        it.server.process.wait()
        assert wait_for(lambda: not [pid for pid in filters if _state(pid) not in ("", "Z")], 20)
    finally:
        for pid in {*filters, *roles}:
            kill(pid, signal.SIGKILL)
        it.server.process = None


def test_what_was_accepted_through_a_filter_outlives_a_server_that_is_killed(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:

        def again() -> None:
            it.server.kill_all()
            it.server.start()

        async def run() -> Load:
            async with load(it, hurt=True) as made:
                for _ in range(3):
                    await works(it, made)
                    await asyncio.to_thread(again)
                await works(it, made)
            return made

        made = asyncio.run(run())
        acknowledged = made.filtered.acknowledged | made.plain.acknowledged
        it.until(lambda: it.server.ctl("schedule", "all") and acknowledged <= _arrived(it), 60)


def _arrived(it: Site) -> set[str]:
    return set(read_maildir(it.mail / "Maildir").arrived)


def test_a_reload_changes_the_filter_under_load_and_nobody_is_put_off(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:

        async def run() -> Load:
            async with load(it) as made:
                for mark in ("2", "3", "4"):
                    await works(it, made)
                    it.mark = mark
                    it.server.conf.write_text(it.text())
                    result = await asyncio.to_thread(lambda: it.server.ctl("reload"))
                    assert result.exit == 0, (result, it.server.log()[-3000:])
                    assert await asyncio.to_thread(lambda m=mark: wait_for(lambda: m in marks(it), 30))  # type: ignore[misc]
                await works(it, made)
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        assert set(made.filtered.codes) <= {"220", "250", "354", "221"}, (made.filtered.codes, it.server.log()[-3000:])
        assert set(marks(it)) == {"1", "2", "3", "4"}
        it.until(lambda: len({_command(pid) for pid in it.filters()}) == 1, 60)  # the old ones have ended


def test_the_sessions_of_a_dispatcher_that_dies_are_over_for_who_follows_them(folder: Path, machine: None) -> None:
    heard = folder / "heard"
    heard.mkdir()
    heard.chmod(0o777)
    (log := heard / "log").touch(0o666)
    log.chmod(0o666)
    with site(folder, Wiring.MANY, more=f'proc ear "cat >> {heard}/log"\nreport smtp-in on ear\n') as it:
        client = Dialogue(it.port)
        client.say("EHLO client")
        it.until(lambda: "|link-identify|" in log.read_text())
        session = log.read_text().partition("|link-identify|")[2].partition("|")[0]
        assert f"|link-disconnect|{session}" not in log.read_text()
        for victim in role(it.server, "dispatcher"):
            kill(victim, signal.SIGKILL)
        it.until(lambda: f"|link-disconnect|{session}\n" in log.read_text())
        client.close()


def _command(pid: int) -> str:
    return arguments(pid).rpartition(" exec ")[2].strip()


def test_a_processor_of_events_that_does_not_read_is_not_waited_for(folder: Path, wiring: Wiring) -> None:
    more = 'proc deaf "sleep 1000"\nreport smtp on deaf\n'
    with site(folder, wiring, more=more) as it:

        async def run() -> Load:
            async with load(it, size=200_000) as made:
                await works(it, made)
                resident = await asyncio.to_thread(it.resident)
                await made.gets(150, made.filtered)
                assert await asyncio.to_thread(it.resident) < resident + 60
            return made

        made = asyncio.run(run())
        check(it, made)
        unnoticed(made)
        assert set(made.filtered.codes) <= {"220", "250", "354", "221"}, made.filtered.codes


def test_whoever_leaves_while_the_filter_thinks_leaves_nothing_behind(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        it.order("mail-from mute")
        for _ in range(30):
            client = Dialogue(it.port)
            client.say("EHLO client")
            client.socket.sendall(b"MAIL FROM:<s@client.example>\r\n")
            client.close()
        it.order("")
        it.until(lambda: _send(it) == "250")
        it.until(lambda: it.server.ctl("show", "stats").out.count("smtp.session=0\n") == 1)


def test_every_client_of_many_hears_of_a_filter_that_never_answers(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        assert _send(it) == "250"
        it.order("mail-from mute")

        async def one() -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(b"EHLO client\r\nMAIL FROM:<s@client.example>\r\n")
            codes: list[str] = []
            async with asyncio.timeout(TIMEOUT + 20):
                while len(codes) < 3:
                    line = await reader.readuntil(b"\r\n")
                    codes += [line[:3].decode()] if line[3:4] == b" " else []
            writer.close()
            return codes[-1]

        async def run() -> list[str]:
            return await asyncio.gather(*(one() for _ in range(200)))

        assert set(asyncio.run(run())) <= {"451", "421"} & DEFINED
        assert it.server.process is not None
        assert it.server.process.poll() is None
        if os.geteuid() == 0:
            assert it.filters() or _is(it, "down") or wait_for(it.filters, 30)
