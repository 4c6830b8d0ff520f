"""Sessions whose filters do not answer, or not in time: 451 within a deadline, or on without them (`fail open`)."""

import asyncio
import socket
import struct

import pytest

from pillarbox.errors import PermFail
from pillarbox.filters.outbox import ROOM
from pillarbox.roles.filters import Decision, Processor, Question, Result
from pillarbox.roles.lookup import FilterOutcome
from pillarbox.smtp.sasl.exchange import Circumstances
from pillarbox.smtp.sasl.mechanisms import MECHANISMS
from tests.filters.memory import MemoryFilters, decide

from .filtering import EVERY_EVENT, TRY_AGAIN, builtin, run, with_filters
from .memory import World

PHASES = "connect helo ehlo starttls auth mail-from rcpt-to data data-line rset quit noop help wiz commit"
NO_ARGUMENTS = "500 5.5.4 Invalid command arguments: command does not accept arguments."


STEPS = {
    "ehlo": "EHLO x.example",
    "mail-from": "MAIL FROM:<s@x.example>",
    "rcpt-to": "RCPT TO:<alice@example.org>",
    "data": "DATA",
    "noop": "NOOP",
    "rset": "RSET",
    "quit": "QUIT",
}


async def up_to(w: World, phase: str):
    c = await w.connect()
    await c.reply()
    for name, line in STEPS.items():
        if name == phase:
            return c, line
        await c.send(line)
    raise AssertionError(phase)


@pytest.mark.parametrize("phase", ["ehlo", "mail-from", "rcpt-to", "data"])
@pytest.mark.parametrize("how", ["dies", "deadline"])
def test_a_filter_that_does_not_answer_is_451_in_every_phase(phase, how):
    filters = MemoryFilters()
    played = filters.add(
        "f", lambda _: [], phases=phase, events="filter-response", timeout=0.05 if how == "deadline" else 60.0
    )

    async def scenario(w: World) -> None:
        c, line = await up_to(w, phase)
        c.writer.write(line.encode() + b"\r\n")
        await w.until(lambda: bool(played.questions))
        if how == "dies":
            await filters.set(played, life=0, why="it ended")
        assert await c.reply() == TRY_AGAIN
        why = '"it ended"' if how == "dies" else '"no answer within 0.05 s"'
        assert f'smtp filter-failed filter=f phase={phase} reason={why} result="{TRY_AGAIN}"' in w.log
        if how == "dies":  # and it fails at once while it is down
            assert await c.send(line) == TRY_AGAIN

    run(scenario, with_filters("f"), filters)
    if how == "deadline":
        assert f"filter-response {phase}|reject|{TRY_AGAIN}" in played.events


def test_at_connect_that_is_the_end_of_the_connection():
    filters = MemoryFilters()
    filters.add("f", lambda _: [], phases="connect", timeout=0.05)

    async def scenario(w: World) -> None:
        c = await w.connect()
        assert await c.reply() == TRY_AGAIN
        assert await c.closed()

    run(scenario, with_filters("f"), filters)


@pytest.mark.parametrize("phase", ["connect", "ehlo", "mail-from", "rcpt-to", "data", "commit"])
def test_fail_open_goes_on_without_it(phase):
    filters = MemoryFilters()
    filters.add("f", lambda _: [], phases=phase, timeout=0.05, fail_open=True)
    second = filters.add("g", phases=phase)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.message())[:3] == "250"
        assert any(f"filter=f phase={phase}" in line and 'result="proceed"' in line for line in w.log)

    run(scenario, with_filters("f", "g"), filters)
    assert [p for p, _ in second.questions] == [phase]  # the others of the chain are asked all the same


def test_a_transaction_does_not_outlive_a_processor_and_the_session_does():
    filters = MemoryFilters()
    played = filters.add("f", phases="rcpt-to", events=EVERY_EVENT)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"
        before, played.told = played.told, []
        await filters.set(played, life=2)
        assert await c.send("RCPT TO:<bob@example.org>") == TRY_AGAIN
        await w.until(lambda: len(played.events) > 3)
        assert played.events[:3] == [
            f"{r.event} {r.text}" for r in before if getattr(r, "event", "").startswith("link-")
        ]
        await c.send("RSET")
        assert (await c.message())[:3] == "250"

    run(scenario, with_filters("f"), filters)


def test_one_that_is_started_again_while_the_next_one_thinks_about_mail_does_not_know_of_it():
    thinking: list[Question] = []
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from rcpt-to")
    slow = filters.add("g", lambda q: thinking.append(q) or [], phases="mail-from")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"MAIL FROM:<s@x.example>\r\n")
        await w.until(lambda: bool(thinking))
        await filters.set(played, life=2)
        await filters.say(slow, Result(thinking[0].session, thinking[0].token, Decision.PROCEED))
        assert (await c.reply())[:3] == "250"
        assert await c.send("RCPT TO:<alice@example.org>") == TRY_AGAIN

    run(scenario, with_filters("f", "g"), filters)
    assert [phase for phase, _ in played.questions] == ["mail-from"]


def test_a_processor_without_a_say_in_the_transaction_is_not_missed():
    filters = MemoryFilters()
    played = filters.add("f", phases="connect", events="tx-mail")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        await filters.set(played, life=2)
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"

    run(scenario, with_filters("f"), filters)


def test_a_session_that_outlives_the_filter_role_is_filtered_on():
    filters = MemoryFilters()
    played = filters.add("f", decide("mail-from", "reject", "550 no"), phases="mail-from")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        processors = w.server._services.processors
        processors.lost()
        assert await c.send("MAIL FROM:<s@x.example>") == TRY_AGAIN
        known, played.processor = played.processor, Processor(number=1, name="f", failed=True, why="it ended")
        processors.attached()
        await w.until(lambda: len(filters.joined) > 1)
        assert await c.send("MAIL FROM:<s@x.example>") == TRY_AGAIN
        await filters.set(played, life=2, known=True, phases=known.phases)
        assert await c.send("MAIL FROM:<s@x.example>") == "550 no"

    run(scenario, with_filters("f"), filters)


def test_sessions_wait_for_processors_to_register():
    filters = MemoryFilters()
    played = filters.add("f", decide("connect", "reject", "550 no"), phases="connect")
    registered, played.processor = played.processor, filters.add("x").processor

    async def scenario(w: World) -> None:
        filters.played[1].processor = type(registered)(number=1, name="f")
        c = await w.connect()
        await asyncio.sleep(0)
        await filters.set(played, life=1, known=True, phases=registered.phases, number=1, name="f")
        assert await c.reply() == "550 no"

    played.processor = type(registered)(number=1, name="f")
    run(scenario, with_filters("f"), filters)


def test_who_waits_too_long_for_them_is_turned_away(monkeypatch):
    monkeypatch.setattr("pillarbox.filters.processors.PATIENCE", 0.05)
    filters = MemoryFilters()
    filters.down = True

    async def scenario(w: World) -> None:
        c = await w.connect()
        assert await c.reply() == TRY_AGAIN and await c.closed()
        assert any("filter=f phase=connect" in line and "not registered" in line for line in w.log)

    run(scenario, with_filters("f"), filters)


def test_a_client_that_leaves_while_a_filter_thinks_leaves_nothing_behind():
    filters = MemoryFilters()
    played = filters.add("f", lambda _: [], phases="mail-from", events="link-disconnect")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"MAIL FROM:<s@x.example>\r\n")
        await w.until(lambda: bool(played.questions))
        connection = c.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.writer.transport.abort()
        await w.until(lambda: not w.server._sessions)
        await w.until(lambda: "link-disconnect" in played.events)
        question = next(q for q in played.told if isinstance(q, Question))
        await filters.say(
            played, Result(question.session, question.token, Decision.PROCEED)
        )  # too late: nobody is there

    run(scenario, with_filters("f"), filters)


def test_pipelined_commands_wait_for_the_answer_and_keep_their_order():
    asked: list[Question] = []
    filters = MemoryFilters()
    played = filters.add("f", lambda q: asked.append(q) or [], phases="mail-from")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"MAIL FROM:<s@x.example>\r\nRCPT TO:<alice@example.org>\r\nRSET\r\nNOOP\r\n")
        await w.until(lambda: bool(asked))
        assert not w.lookup.asked
        await filters.say(played, Result(asked[0].session, asked[0].token, Decision.REJECT, "550 no"))
        assert [(await c.reply())[:3] for _ in range(4)] == ["550", "503", "250", "250"]

    run(scenario, with_filters("f"), filters)


def test_a_late_answer_is_not_taken_for_the_next_one():
    asked: list[Question] = []
    filters = MemoryFilters()
    played = filters.add("f", lambda q: asked.append(q) or [], phases="noop", timeout=0.1)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send("NOOP") == TRY_AGAIN
        c.writer.write(b"NOOP\r\n")
        await w.until(lambda: len(asked) == 2)
        for decision, text in ((Decision.REJECT, "550 late"), (Decision.PROCEED, "")):
            question = asked[decision is Decision.PROCEED]
            await filters.say(played, Result(question.session, question.token, decision, text))
        assert (await c.reply())[:3] == "250"

    run(scenario, with_filters("f"), filters)


def test_a_processor_that_does_not_read_holds_up_its_sessions_only_until_their_deadline():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from", events="protocol-client", timeout=0.1)
    other = filters.add("g", phases="mail-from")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        played.reading.clear()
        line = "NOOP " + "x" * 2000
        answers = [await c.send(line) for _ in range(ROOM // 2000 + 5)]
        assert answers[0] == "250 2.0.0 Ok" and answers[-1] == TRY_AGAIN
        played.reading.set()
        await w.until(lambda: not w.server._services.processors._boxes[1].full)
        assert await c.send("NOOP") == "250 2.0.0 Ok"

    run(scenario, with_filters("f", "g"), filters)
    assert not other.questions


def test_one_that_does_not_read_and_may_be_left_out_is():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from", events="protocol-client", timeout=0.05, fail_open=True)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        played.reading.clear()
        (session,) = w.server._sessions
        while not session.chain.congested:
            assert (await c.send("NOOP " + "x" * 2000))[:3] == "250"
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        assert await c.send("MAIL FROM:<s@x.example>") == "250 2.0.0 Ok"
        assert sum('it did not read for 0.05 s" result="proceed"' in line for line in w.log) == 2
        played.reading.set()

    run(scenario, with_filters("f"), filters)


@pytest.mark.parametrize(("line", "closes"), [("BDAT 6", True), ("MAIL FROM:<s@x.example>", False)])
def test_what_follows_a_chunk_that_could_not_be_looked_at_is_no_command(line, closes):
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from", events="protocol-client", timeout=0.1)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        played.reading.clear()
        noop = "NOOP " + "x" * 2000
        while await c.send(noop) != TRY_AGAIN:
            pass
        answer = await c.send(f"{line}\r\nRSET\r\n".encode(), replies=1)
        assert answer[0] in "45" and played.processor.life
        assert await c.closed() if closes else await c.reply() == TRY_AGAIN
        played.reading.set()

    run(scenario, with_filters("f"), filters)


def test_a_password_that_could_not_be_looked_at_ends_its_exchange_and_is_not_logged():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from", events="protocol-client", timeout=0.1)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        played.reading.clear()
        while await c.send("NOOP " + "x" * 2000) != TRY_AGAIN:
            pass
        (session,) = w.server._sessions
        session.exchange = MECHANISMS["PLAIN"](Circumstances(nonce="", bindings={}, plus=False))
        assert await c.send("AGFsaWNlAHNlY3JldA==") == TRY_AGAIN
        assert session.exchange is None and not any("AGFs" in line for line in w.log)
        played.reading.set()
        assert (await c.send("NOOP"))[:3] == "250"

    run(scenario, with_filters("f"), filters)


@pytest.mark.parametrize("error", [PermFail("no such thing"), ValueError("a mistake of ours")])
def test_nobody_comes_in_where_connect_could_not_be_decided(error):
    async def scenario(w: World) -> None:
        async def fails(_: object) -> FilterOutcome:
            raise error

        w.lookup.filter = fails  # type: ignore[method-assign]
        c = await w.connect()
        assert (await c.reply())[0] in "45" and await c.closed()

    run(scenario, with_filters(builtins=(builtin("connect", "rdns", "reject", "550 no"),)))


def test_a_filter_may_take_longer_than_a_client_and_the_session_waits(monkeypatch):
    monkeypatch.setattr("pillarbox.server.session.IDLE", 0.1)
    asked: list[Question] = []
    filters = MemoryFilters()
    played = filters.add("f", lambda q: asked.append(q) or [], phases="noop")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"NOOP\r\n")
        await w.until(lambda: bool(asked))
        await asyncio.sleep(0.3)
        await filters.say(played, Result(asked[0].session, asked[0].token, Decision.PROCEED))
        assert (await c.reply())[:3] == "250"
        await w.until(lambda: "reason=timeout" in w.log[-1])  # and then the client has its own time

    run(scenario, with_filters("f"), filters)
