"""Limits as clients meet them: who is kept out, who is slowed down, and who is told to come back later."""

import asyncio
import socket
import struct

from pillarbox.conf.model import Config, Listener, Rate, SmtpOptions

from .memory import World, world
from .test_limits import Clock, run

LISTENER = Listener(id=1, hostname="mail.example.org")


def limited(**options: object) -> Config:
    return Config(hostname="host.example.org", listeners=(LISTENER,), smtp=SmtpOptions(**options))


async def fails(w: World, reply: str) -> None:
    c = await w.connect()
    assert await c.reply() == reply
    assert await c.closed()


def test_a_source_has_so_many_sessions_and_gets_another_when_one_ends():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        await w.greeted()
        await fails(w, "421 4.7.0 Too many connections from your address, try again later")
        assert "smtp refused address=127.0.0.1 limit=max-session-per-source" in w.log
        assert await c.send("QUIT") == "221 2.0.0 Bye"
        await w.until(lambda: len(w.server._sessions) == 1)
        await asyncio.sleep(0.05)  # lookup is told behind it
        await w.greeted()
        await fails(w, "421 4.7.0 Too many connections from your address, try again later")

    run(scenario, config=limited(max_session_per_source=2))


def test_the_server_has_so_many_sessions_in_all():
    async def scenario(w: World, _clock: Clock) -> None:
        await w.greeted()
        await fails(w, "421 4.3.2 Too many connections, try again later")

    run(scenario, config=limited(max_session=1))


def test_connections_that_come_too_fast_are_told_so_and_later_ones_not():
    async def scenario(w: World, clock: Clock) -> None:
        for _ in range(2):
            c = await w.greeted()
            await c.send("QUIT")
        await fails(w, "421 4.7.0 Too many connections from your address, try again later")
        await clock.advance(30)
        await w.greeted()

    run(scenario, config=limited(rates=(Rate(what="session-per-source", count=2, seconds=60),)))


def test_without_lookup_nobody_is_kept_out_and_all_are_counted_as_soon_as_it_is_back():
    async def scenario(w: World, _clock: Clock) -> None:
        w.lookup.fail = True
        c = await w.greeted()
        await w.greeted()
        w.lookup.fail = False
        w.server.lookup_attached()
        await w.until(lambda: w.lookup.admission._total == 2)
        await fails(w, "421 4.3.2 Too many connections, try again later")
        await c.send("QUIT")
        await w.until(lambda: w.lookup.admission._total == 1)

    run(scenario, config=limited(max_session=2))


def test_who_has_left_is_told_again_to_a_lookup_that_did_not_hear_it():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        w.lookup.fail = True
        await c.send("QUIT")
        await w.until(lambda: not w.server._sessions)
        await clock.advance(6)
        assert w.lookup.admission._total == 1
        w.lookup.fail = False
        await clock.advance(6)
        await w.until(lambda: w.lookup.admission._total == 0)

    run(scenario, config=limited(max_session=2))


def test_a_client_that_leaves_while_it_is_being_admitted_is_not_counted_for_ever():
    async def scenario(w: World, _clock: Clock) -> None:
        for _ in range(20):
            c = await w.connect()
            c.writer.transport.abort()
        await w.until(lambda: not w.server._sessions and not len(w.server._arrivals))
        await w.until(lambda: w.lookup.admission._total == 0)
        assert not w.server._tickets

    run(scenario, config=limited(max_session=50))


def test_mail_that_comes_too_fast_is_for_later():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        assert (await c.message()).startswith("250 ")
        assert await c.send("MAIL FROM:<s@x.example>") == "450 4.7.1 Too much mail in a short time, try again later"
        assert "smtp limited limit=mails-per-source address=127.0.0.1 user=<none>" in w.log
        await clock.advance(60)
        assert (await c.message()).startswith("250 ")

    run(scenario, config=limited(rates=(Rate(what="mails-per-source", count=1, seconds=60),)))


def test_recipients_that_are_too_many_are_for_later_and_the_others_are_served():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        commands = b"".join(b"RCPT TO:<u%d@example.org>\r\n" % n for n in range(5))
        said = (await c.send(commands, replies=5)).splitlines()
        assert [line[:3] for line in said] == ["250"] * 3 + ["450"] * 2
        await c.send("DATA")
        assert (await c.send(b"Subject: x\r\n\r\n.\r\n")).startswith("250 ")
        assert len(w.queue.committed[0].envelopes) == 3

    run(scenario, config=limited(rates=(Rate(what="rcpt-per-source", count=3, seconds=60),)))


def test_a_session_of_mistakes_ends_and_refused_recipients_are_none():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        for _ in range(10):
            assert (await c.send("RCPT TO:<ghost@example.org>")).startswith("550 ")
        assert (await c.send("FOO")).startswith("500 ")
        assert (await c.send("EXPN x")).startswith("5")
        assert await c.send("BAR") == "421 4.7.0 Too many failed commands"
        assert await c.closed()
        assert "smtp limited limit=max-failed-commands address=127.0.0.1" in w.log

    run(scenario, config=limited(max_failed_commands=3))


def test_mistakes_are_counted_by_source_over_all_its_sessions():
    async def scenario(w: World, _clock: Clock) -> None:
        for _ in range(2):
            c = await w.greeted()
            assert (await c.send("FOO")).startswith("500 ")
        assert await c.send("FOO") == "421 4.7.0 Too many failed commands"
        assert await c.closed()

    run(scenario, config=limited(rates=(Rate(what="failed-commands-per-source", count=2, seconds=60),)))


def test_refusals_are_late_and_nothing_else_is():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        c.writer.write(b"FOO\r\nNOOP\r\n")
        await asyncio.sleep(0.05)
        assert not c.reader._buffer  # type: ignore[attr-defined]
        await clock.advance(5)
        assert (await c.reply()).startswith("500 ")
        assert await c.reply() == "250 2.0.0 Ok"

    run(scenario, config=limited(tarpit=5))


def test_a_client_that_leaves_the_tarpit_leaves_nothing_behind():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        c.writer.write(b"FOO\r\n")
        await asyncio.sleep(0.05)
        connection = c.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        c.writer.transport.abort()
        await w.until(lambda: not w.server._sessions)

    run(scenario, config=limited(tarpit=60))


def test_a_message_has_to_be_there_in_time_however_it_flows():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        for _ in range(12):
            c.writer.write(b"x" * 70 * 100 + b"\r\n")
            await asyncio.sleep(0.01)
            await clock.advance(10)
        assert w.log[-1] == "smtp disconnected reason=timeout"
        c = await w.greeted()
        assert (await c.message()).startswith("250 ")
        await clock.advance(200)
        assert await c.send("NOOP") == "250 2.0.0 Ok"

    run(scenario, config=limited(max_data_time=100))


def test_a_message_that_was_there_in_time_is_answered_however_long_it_takes_us():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        await clock.advance(90)
        w.queue.gate = asyncio.Event()
        c.writer.write(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await w.until(lambda: any(session.committing for session in w.server._sessions))
        await clock.advance(20)
        w.queue.gate.set()
        assert (await c.reply()).startswith("250 ")
        assert len(w.queue.committed) == 1

    run(scenario, config=limited(max_data_time=100))


GREETING = Listener(id=1, hostname="mail.example.org", greet_delay=5)


def test_who_speaks_before_the_greeting_is_no_mail_server():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.connect()
        c.writer.write(b"EHLO spam.example\r\n")
        assert await c.reply() == "554 5.5.1 Protocol error: you spoke before the greeting"
        assert await c.closed()
        assert "smtp limited limit=greet-delay address=127.0.0.1" in w.log
        c = await w.connect()
        await asyncio.sleep(0.05)
        await clock.advance(4)
        assert not c.reader._buffer  # type: ignore[attr-defined]
        await clock.advance(1.1)
        assert await c.reply() == "220 mail.example.org ESMTP Pillarbox"
        assert (await c.send("EHLO client.example.net")).endswith("HELP")

    run(scenario, listener=GREETING)


def test_who_leaves_before_the_greeting_leaves_nothing_behind():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.connect()
        await w.until(lambda: len(w.server._sessions) == 1)
        c.writer.close()
        await w.until(lambda: not w.server._sessions)

    run(scenario, listener=GREETING)


def test_a_listener_may_be_without_limits():
    listener = Listener(id=1, hostname="mail.example.org", unlimited=True)
    rates = tuple(Rate(what=f"{what}-per-source", count=1, seconds=60) for what in ("session", "mails"))
    smtp = SmtpOptions(max_session=1, max_failed_commands=1, tarpit=60, rates=rates)

    async def scenario(w: World, _clock: Clock) -> None:
        for _ in range(3):
            c = await w.greeted()
            assert (await c.send("FOO")).startswith("500 ")
            assert (await c.message()).startswith("250 ")
        assert w.lookup.admission._total == 0

    run(scenario, config=Config(hostname="host.example.org", listeners=(listener,), smtp=smtp))


def test_bare_line_ends_are_mended_where_that_is_configured():
    async def inside() -> None:
        async with world(config=limited(bare_newline="normalize")) as w:
            c = await w.greeted()
            assert (await c.message("Subject: x\n\nbody\n.\nMAIL FROM:<x@y>\n\r\n")).startswith("250 ")
            assert w.queue.text().endswith("\n\nbody\n.\nMAIL FROM:<x@y>\n\n")
            assert len(w.queue.committed) == 1

    asyncio.run(inside())


def test_a_line_may_be_as_long_as_is_configured():
    async def inside() -> None:
        async with world(config=limited(max_line_length=998)) as w:
            c = await w.greeted()
            assert (await c.message(f"Subject: x\r\n\r\n{'x' * 998}\r\n")).startswith("250 ")
            answer = await c.message(f"Subject: x\r\n\r\n{'x' * 999}\r\n")
            assert answer == "550 5.6.0 Message refused: a line is too long"
            assert await c.send("NOOP") == "250 2.0.0 Ok"

    asyncio.run(inside())
