"""Sockets that are let go, and listeners that change under them."""

import asyncio
import contextlib
import errno
import socket

from pillarbox.conf.model import Config, Listener
from pillarbox.server import doors

from .memory import Dialogue, World
from .test_limits import Clock, run


def config(generation: int, hostname: str = "new.example.org") -> Config:
    return Config(hostname="h", generation=generation, listeners=(Listener(id=5, hostname=hostname),))


def test_a_listener_that_changes_greets_by_its_new_options_on_the_same_socket():
    async def scenario(w: World, _clock: Clock) -> None:
        old = await w.connect()
        assert await old.reply() == "220 mail.example.org ESMTP Pillarbox"
        w.configure(config(1), listening={"door": 5})
        new = await w.connect()
        assert await new.reply() == "220 new.example.org ESMTP Pillarbox"
        assert w.server.generations() == {0, 1}
        await old.send("QUIT")
        await w.until(lambda: w.server.generations() == {1})

    run(scenario)


def test_a_socket_that_is_let_go_takes_who_waits_and_nobody_new():
    async def scenario(w: World, clock: Clock) -> None:
        await w.server.pause(True)
        waiting = [await w.connect() for _ in range(50)]
        w.configure(config(1), listening={})
        assert w.server.generations() == {0}, "those who wait will need it"
        with socket.socket() as late:
            late.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                late.connect(("127.0.0.1", w.port))
            for client in waiting:
                assert await client.reply() == "220 mail.example.org ESMTP Pillarbox"
            await clock.advance(doors.LAST_CALL + 0.1)
            assert not late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "neither refused nor let in"
            assert len(w.server._sessions) == 50
        with socket.socket() as later:
            assert later.connect_ex(("127.0.0.1", w.port)) == errno.ECONNREFUSED
        for client in waiting:
            assert await client.send("QUIT") == "221 2.0.0 Bye"
        await w.until(lambda: not w.server.generations())

    run(scenario)


def test_a_socket_that_is_let_go_while_there_are_no_descriptors_waits_for_them():
    class Starved:
        """A listening socket in a process that can open nothing more, for the first two times."""

        def __init__(self, real: socket.socket) -> None:
            self.real, self.calls = real, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def accept(self) -> object:
            self.calls += 1
            if self.calls < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

    async def scenario(w: World, clock: Clock) -> None:
        await w.server.pause(True)
        with socket.create_server(("127.0.0.1", 0)) as real:
            w.server.add_socket("starved", 1, Starved(real))  # type: ignore[arg-type]
            client = Dialogue(*await asyncio.open_connection(*real.getsockname()))
            w.configure(config(1), listening={"door": 5})
            for _ in range(4):
                await clock.advance(doors.RETRY_ACCEPT + 0.1)
                await asyncio.sleep(0.01)
            assert (await client.reply())[:3] == "220"
            await w.until(lambda: real.fileno() < 0)

    run(scenario)


def test_who_comes_last_to_a_server_that_ends_is_told_so():
    async def scenario(w: World, clock: Clock) -> None:
        await w.server.pause(True)
        waiting = await w.connect()
        w.configure(config(1), listening={})
        await w.server.drain(0.1)
        assert await waiting.reply() == "421 4.3.2 Service shutting down"

    run(scenario)


def test_sessions_of_a_configuration_whose_time_is_over_hear_421_after_their_message():
    async def scenario(w: World, _clock: Clock) -> None:
        idle, busy = await w.greeted(), await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await busy.send(line)
        w.configure(config(1), listening={"door": 5})
        new = await w.greeted()
        w.server.retire(0)
        assert await idle.reply() == "421 4.3.2 Service shutting down"
        assert await idle.closed()
        assert (await busy.send(b"Subject: x\r\n\r\nb\r\n.\r\n"))[:3] == "250"
        assert await busy.reply() == "421 4.3.2 Service shutting down"
        assert await new.send("NOOP") == "250 2.0.0 Ok"
        assert w.server.generations() == {1}

    run(scenario)
