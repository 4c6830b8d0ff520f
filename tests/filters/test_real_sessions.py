"""Sessions with filters that are programs: what they decide, and what becomes of mail when they fail."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Listener, Proc, TlsMode
from pillarbox.filters.asked import MAX_REPORTS
from pillarbox.server.tls import build_contexts
from tests.server.filtering import TRY_AGAIN
from tests.server.memory import World
from tests.server.test_tls import material, trusting

from .real import Scripted, configuration, run
from .rig import Rig, command
from .rig import configuration as role_configuration

COMMANDS = {
    "ehlo": "EHLO x.example",
    "mail-from": "MAIL FROM:<s@x.example>",
    "rcpt-to": "RCPT TO:<alice@example.org>",
    "data": "DATA",
}


async def up_to(w: World, phase: str):
    """A session that stands before a phase, and the command of it."""
    c = await w.connect()
    assert (await c.reply())[:3] == "220"
    for name, line in COMMANDS.items():
        if name == phase:
            return c, line
        await c.send(line)
    raise AssertionError(phase)


def test_decisions_of_a_program(tmp_path: Path):
    rules = [
        {"phase": "mail-from", "param": "^spam@", "reply": "reject|553 5.1.8 not you"},
        {"phase": "rcpt-to", "param": "^old@", "reply": "rewrite|<alice@example.org>"},
        {"phase": "data", "reply": "junk"},
    ]
    one = Scripted(tmp_path, register=[f"filter|smtp-in|{p}" for p in ("mail-from", "rcpt-to", "data")], rules=rules)

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        assert await c.send("MAIL FROM:<spam@x.example>") == "553 5.1.8 not you"
        assert (await c.message(rcpt="old@example.org"))[:3] == "250"
        assert w.queue.text().startswith("X-Spam: Yes\n") and "for <alice@example.org>" in w.queue.text()

    run(scenario, configuration(one))


def test_a_chain_of_programs_changes_a_message_in_turn(tmp_path: Path):
    register = ["filter|smtp-in|data-line", "report|smtp-in|*"]
    first = Scripted(
        tmp_path, "f", register=register, dataline=[{"match": "^Subject", "emit": ["X-One: 1", "Subject: y"]}]
    )
    second = Scripted(tmp_path, "g", register=register, dataline=[{"append": ["..dotted", "the last"]}])

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        for _ in range(3):
            assert (await c.message())[:3] == "250"
            assert "\nX-One: 1\nSubject: y\n" in w.queue.text()
            assert w.queue.text().endswith("\n\nbody\n.dotted\nthe last\n")
        await c.send("QUIT")
        await w.until(lambda: any("link-disconnect" in line for line in second.read()))

    run(scenario, configuration(first, second))
    tokens = {line.split("|")[2] for line in first.read() if line.startswith("data-line")}
    assert len(tokens) == 1  # as recorded


@pytest.mark.parametrize("phase", list(COMMANDS))
@pytest.mark.parametrize(
    "how", [{"exit": 3}, {"raw": "hello there"}, {"raw": "filter-result|{S}|0123456789abcdef|proceed"}]
)
def test_one_that_dies_or_lies_is_451_and_is_back_for_the_next_try(tmp_path: Path, phase: str, how: dict):
    registered = [f"filter|smtp-in|{phase}", "report|smtp-in|link-identify", "report|smtp-in|link-connect"]
    one = Scripted(tmp_path, register=registered, rules=[{"phase": phase, "reply": how}])

    async def scenario(w: World, rig: Rig) -> None:
        c, line = await up_to(w, phase)
        asked = asyncio.ensure_future(c.send(line))
        await w.until(lambda: any(told.startswith(f"{phase}|") for told in one.read()))
        one.write(register=registered)
        assert await asked == TRY_AGAIN
        assert any(f"smtp filter-failed filter=f phase={phase}" in logged for logged in w.log)
        connections = sum(told.startswith("link-connect") for told in one.read())
        await w.until(lambda: sum(told.startswith("link-connect") for told in one.read()) > connections)
        if phase in ("rcpt-to", "data"):  # the transaction did not outlive it
            assert await c.send(line) == TRY_AGAIN
            assert (await c.send("RSET"))[:3] == "250"
        else:
            assert (await c.send(line))[:3] == "250"
        if phase != "ehlo":
            assert (await c.send("RSET"))[:3] == "250"
        assert (await c.message())[:3] == "250"

    run(scenario, configuration(one))


def test_fail_open_lets_mail_pass_meanwhile(tmp_path: Path):
    one = Scripted(tmp_path, register=["filter|smtp-in|rcpt-to"], rules=[{"phase": "rcpt-to", "reply": {"exit": 1}}])

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        assert (await c.message())[:3] == "250"
        assert any("filter=f phase=rcpt-to" in line and 'result="proceed"' in line for line in w.log)

    run(scenario, configuration(one, fail_open=True))


def test_one_that_does_not_answer_is_waited_for_as_long_as_the_configuration_says(tmp_path: Path):
    one = Scripted(tmp_path, register=["filter|smtp-in|noop"], rules=[{"phase": "noop", "reply": None}])

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        begun = time.monotonic()
        assert await c.send("NOOP") == TRY_AGAIN
        assert 0.9 < time.monotonic() - begun < 4

    run(scenario, configuration(one, timeout=1))


def test_one_that_is_stopped_within_a_message_costs_that_message(tmp_path: Path):
    one = Scripted(tmp_path, register=["filter|smtp-in|data-line"])

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        pid = (await rig.status()).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            c.writer.write(b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n.\r\n")
            assert await c.reply() == TRY_AGAIN
            assert not w.queue.committed
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await w.until(lambda: not w.server._services.processors._boxes[1].processor.why)
        async with asyncio.timeout(10):
            while (await c.message())[:3] != "250":
                await c.send("RSET")
                await asyncio.sleep(0.05)

    run(scenario, configuration(one, timeout=1))


def test_a_program_that_is_not_there_turns_mail_away_and_nothing_else(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pillarbox.filters.processors.PATIENCE", 0.2)
    gone = Scripted(tmp_path)

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.connect()
        assert await c.reply() == TRY_AGAIN
        assert await c.closed()

    run(scenario, configuration(gone, command="/nonexistent/filter"))


def test_nothing_may_be_sent_behind_starttls_however_long_a_filter_thinks(tmp_path: Path):
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=TlsMode.STARTTLS, filter="chain")
    one = Scripted(tmp_path, register=["filter|smtp-in|starttls"], rules=[])
    config = configuration(one, listener=listener)
    contexts = build_contexts(Config(hostname="x", listeners=(listener,)), {"srv": material("mail.example.org")}, {})

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        pid = (await rig.status()).pid
        os.kill(pid, signal.SIGSTOP)
        c.writer.write(b"STARTTLS\r\n")
        await w.until(lambda: any(session._task is not None for session in w.server._sessions))
        c.writer.write(b"EHLO injected.example\r\n")
        await w.until(lambda: any(session.core.buffered for session in w.server._sessions))
        os.kill(pid, signal.SIGCONT)
        assert (await c.reply()) == "503 5.5.1 Invalid command: No data may follow STARTTLS"
        assert await c.closed()
        c = await w.greeted()
        assert (await c.send("STARTTLS"))[:3] == "220"
        await c.start_tls(trusting())
        assert (await c.send("EHLO x.example"))[:3] == "250"

    run(scenario, config, contexts=contexts)


def test_a_large_message_goes_through_a_program(tmp_path: Path):
    one = Scripted(tmp_path, register=["filter|smtp-in|data-line"], log="/dev/null")
    body = "".join(f"{n:098d}\r\n" for n in range(10_000))

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        c.writer.write(f"Subject: large\r\n\r\n{body}.\r\n".encode())
        async with asyncio.timeout(30):
            answer = await c.reader.readline()
        assert answer[:3] == b"250"
        assert w.queue.text().endswith(body.replace("\r\n", "\n"))
        assert w.queue.committed[0].streamed

    run(scenario, configuration(one, timeout=30))


def test_filters_that_answer_each_other_s_reports_come_to_an_end(tmp_path: Path):
    config = role_configuration(*(Proc(name=name, command=command(tmp_path, "echoes")) for name in "fg"))

    async def scenario(w: World, rig: Rig) -> None:
        c = await w.greeted()
        await rig.says("it answers reports with reports: some are dropped")
        heard = [int((await c.send("NOOP"))[4:])]
        await asyncio.sleep(0.5)
        heard.append(int((await c.send("NOOP"))[4:]))
        assert MAX_REPORTS <= heard[0] <= heard[1] < 3 * MAX_REPORTS
        assert heard[1] - heard[0] < 2 * MAX_REPORTS
        assert [status.restarts for status in await rig.filters.show()] == [0, 0], "that is no failure"

    run(scenario, config)
