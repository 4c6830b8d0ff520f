"""Clients that are slow, silent, too many, and a server that stops: with a clock that is moved, not waited for."""

import asyncio
import errno
import socket

from .memory import World, world


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time can be advanced."""

    offset = 0.0

    def time(self) -> float:
        return super().time() + self.offset

    async def advance(self, seconds: float) -> None:
        self.offset += seconds
        for _ in range(5):
            await asyncio.sleep(0)


def run(scenario, **arguments):
    async def inside():
        async with world(**arguments) as w:
            await scenario(w, asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(inside())


def test_a_silent_client_is_dropped_after_five_minutes():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        await clock.advance(299)
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        await clock.advance(299)
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        await clock.advance(301)
        assert w.log[-1] == "smtp disconnected reason=timeout"

    run(scenario)


def test_one_byte_a_minute_does_not_keep_a_session_alive():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        for _ in range(6):
            c.writer.write(b"N")
            await asyncio.sleep(0.01)
            await clock.advance(60)
        assert w.log[-1] == "smtp disconnected reason=timeout"

    run(scenario)


def test_a_message_that_drips_is_ended_and_one_that_flows_is_not():
    async def scenario(w: World, clock: Clock) -> None:
        for size, alive in ((10, False), (600, True)):
            c = await w.greeted()
            for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
                await c.send(line)
            c.writer.write(b"Subject: x\r\n\r\n")
            for _ in range(10):
                c.writer.write(b"x" * size + b"\r\n")
                await asyncio.sleep(0.01)
                await clock.advance(100)
            assert len(w.server._sessions) == alive

    run(scenario)


def test_a_client_that_does_not_read_is_not_answered_without_bound_and_dropped():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        c.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (session,) = w.server._sessions
        flood = b"HELP\r\n" * 20000

        async def pour() -> None:
            while True:
                c.writer.write(flood)
                await c.writer.drain()

        pouring = asyncio.ensure_future(pour())
        await w.until(lambda: session._write_blocked and session._read_paused)
        assert session._transport.get_write_buffer_size() < 300 * 1024
        assert session.core.buffered < 600 * 1024
        await clock.advance(301)
        assert w.log[-1] == "smtp disconnected reason=timeout"
        pouring.cancel()

    run(scenario)


def test_a_last_reply_that_is_not_read_does_not_keep_the_connection():
    async def scenario(w: World, clock: Clock) -> None:
        c = await w.greeted()
        c.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (session,) = w.server._sessions
        session._transport.write(b"x" * 8_000_000)
        session.resume_writing()
        c.writer.write(b"QUIT\r\n")
        await w.until(lambda: session._ending == "quit")
        await clock.advance(31)
        assert not w.server._sessions

    run(scenario)


def test_a_lookup_without_answer_does_not_keep_a_session_for_ever():
    async def scenario(w: World, clock: Clock) -> None:
        w.lookup.gate = asyncio.Event()
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        c.writer.write(b"RCPT TO:<alice@example.org>\r\n")
        await w.until(lambda: bool(w.lookup.asked))
        await clock.advance(301)
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_above_the_limit_clients_get_a_421_and_below_it_again_a_session():
    async def scenario(w: World, _clock: Clock) -> None:
        first = await w.greeted()
        second = await w.connect()
        assert (await second.reply()).startswith("421 4.3.2 ")
        assert await second.closed()
        await first.send("QUIT")
        await w.until(lambda: not w.server._sessions)
        await w.greeted()
        assert w.log.count("smtp: client limit reached, turning clients away") == 1

    run(scenario, max_sessions=1)


class NoDescriptors:
    """A listening socket in a process that can open nothing more."""

    def __init__(self, real: socket.socket) -> None:
        self.real, self.calls = real, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def accept(self) -> object:
        self.calls += 1
        if self.calls < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.real.accept()


def test_without_descriptors_accepting_rests_and_goes_on():
    async def scenario(w: World, clock: Clock) -> None:
        with socket.create_server(("127.0.0.1", 0)) as real:
            starved = NoDescriptors(real)
            w.server.add_socket("starved", 1, starved)  # type: ignore[arg-type]
            w.port = real.getsockname()[1]
            c = await w.connect()
            await w.until(lambda: starved.calls == 1)
            await asyncio.sleep(0.05)
            assert starved.calls == 1
            await clock.advance(1.1)
            await w.until(lambda: starved.calls == 2)
            await clock.advance(1.1)
            assert (await c.reply())[:3] == "220"
            await w.server.pause(True)

    run(scenario)


def test_pausing_leaves_new_clients_waiting_and_sessions_alone():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        assert await w.server.pause(True) and not await w.server.pause(True)
        waiting = await w.connect()
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        assert len(w.server._sessions) == 1
        assert await w.server.pause(False)
        assert (await waiting.reply())[:3] == "220"

    run(scenario)


def test_stopping_ends_idle_sessions_now_and_others_after_their_message():
    async def scenario(w: World, _clock: Clock) -> None:
        idle, busy = await w.greeted(), await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await busy.send(line)
        stopping = asyncio.ensure_future(w.server.drain(5))
        assert await idle.reply() == "421 4.3.2 Service shutting down"
        assert await idle.closed()
        assert (await busy.send(b"Subject: x\r\n\r\nb\r\n.\r\n"))[:3] == "250"
        assert await busy.reply() == "421 4.3.2 Service shutting down"
        await stopping
        assert len(w.queue.committed) == 1

    run(scenario)


def test_stopping_waits_only_so_long():
    async def scenario(w: World, clock: Clock) -> None:
        busy = await w.greeted()
        await busy.send("MAIL FROM:<s@x.example>")
        stopping = asyncio.ensure_future(w.server.drain(5))
        await asyncio.sleep(0)
        await clock.advance(6)
        await stopping
        assert await busy.closed()
        assert not w.server._sessions

    run(scenario)


def test_statistics_have_the_names_of_the_reference():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.greeted()
        assert await w.server.stats() == {"smtp.session": 1, "smtp.session.inet4": 1}
        await c.send("QUIT")
        await w.until(lambda: not w.server._sessions)
        assert await w.server.stats() == {"smtp.session": 0, "smtp.session.inet4": 1}

    run(scenario)


def test_a_client_that_is_gone_before_its_command_was_begun_leaves_nothing():
    async def scenario(w: World, clock: Clock) -> None:
        await w.greeted()
        (session,) = w.server._sessions
        session.data_received(b"MAIL FROM:<a@x.example>\r\nRCPT TO:<alice@example.org>\r\n")
        assert session._task is not None  # made, not run yet
        session.connection_lost(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        await w.until(lambda: not w.server._sessions)
        assert not w.lookup.asked

    run(scenario)
