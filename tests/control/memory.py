"""The roles that control talks to, in memory, and a control socket served from a thread of its own."""

import asyncio
import contextlib
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from pillarbox import places
from pillarbox.control.commands import Commands
from pillarbox.control.server import Control, Limits, local_name
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind
from pillarbox.roles.filters import Status
from pillarbox.roles.parent import Reloaded
from pillarbox.roles.queue import QueueRow


def envelope(evpid: int, **fields: Any) -> Envelope:
    values: dict[str, Any] = {
        "kind": Kind.MDA,
        "dispatcher": "local",
        "sender": "alice@client.example.net",
        "rcpt": "alice@example.org",
        "dest": "alice@example.org",
        "ctime": 1_700_000_000,
        "smtpname": "mail.example.org",
        "helo": "client.example.net",
        "hostname": "localhost",
        "sockaddr": "127.0.0.1",
        "mda_user": "alice",
    }
    return Envelope(evpid=evpid, **{**values, **fields})


class MemoryQueue:
    """Envelopes by evpid, bodies by msgid."""

    def __init__(self) -> None:
        self.rows: dict[int, QueueRow] = {}
        self.bodies: dict[int, bytes] = {}
        self.held: set[str] = set()
        self.routes: list[tuple[str, str]] = []
        self.numbers: dict[str, int] = {}
        self.mta_lines: dict[str, list[str]] = {}
        self.broken = False
        self.levels: list[bool] = []

    def add(self, *envelopes: Envelope, body: bytes = b"Subject: q\r\n\r\nbody\r\n", **row: Any) -> None:
        for e in envelopes:
            self.rows[e.evpid] = QueueRow(
                **{"envelope": e, "expire": e.ctime + 345600, "next_try": int(time.time()), "state": "pending", **row}
            )
            self.bodies[e.msgid] = body

    def _which(self, which: int) -> list[int]:
        if not which:
            return list(self.rows)
        return [evpid for evpid in self.rows if which in (evpid, evpid >> 32)]

    async def show(self, after: int, count: int, msgid: int = 0) -> list[QueueRow]:
        if self.broken:
            raise TempFail("queue is being restarted")
        return [self.rows[e] for e in sorted(self._which(msgid)) if e > after][:count]

    async def envelope(self, evpid: int) -> QueueRow | None:
        return self.rows.get(evpid)

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        return self.bodies[msgid][offset : offset + count]

    async def schedule(self, which: int) -> int:
        return len(self._which(which))

    async def remove(self, which: int) -> int:
        return len([self.rows.pop(evpid) for evpid in self._which(which)])

    async def suspend(self, which: int, suspended: bool) -> int:
        changed = [evpid for evpid in self._which(which) if self.rows[evpid].suspended != suspended]
        for evpid in changed:
            self.rows[evpid] = msgspec.structs.replace(self.rows[evpid], suspended=suspended)
        return len(changed)

    async def pause(self, kind: str, paused: bool) -> bool:
        if (kind in self.held) == paused:
            return False
        self.held ^= {kind}
        return True

    async def paused(self) -> list[str]:
        return sorted(self.held)

    async def stats(self) -> dict[str, int]:
        return dict(self.numbers)

    async def show_mta(self, what: str) -> list[str]:
        if what == "paused":
            return [f"{source} -> {dest}" for source, dest in self.routes]
        return self.mta_lines.get(what, [])

    async def pause_mta_route(self, source: str, dest: str, paused: bool) -> None:
        if paused:
            self.routes.append((source, dest))
        else:
            self.routes.remove((source, dest))

    async def resume_route(self, route: int) -> None:
        return

    async def log_level(self, verbose: bool) -> None:
        self.levels.append(verbose)


class MemorySession:
    """One SMTP session: enough of a server for `sendmail`, refusing what its dispatcher says."""

    def __init__(self, dispatcher: "MemoryDispatcher", user: str, uid: int) -> None:
        self.dispatcher, self.user, self.uid = dispatcher, user, uid
        self.output: asyncio.Queue[bytes] = asyncio.Queue()
        self.output.put_nowait(b"220 mail.example.org ESMTP\r\n")
        self.buffer = bytearray()
        self.in_data = False
        self.commands: list[str] = []

    def feed(self, data: bytes) -> None:
        start = max(0, len(self.buffer) - 4)
        self.buffer += data
        while True:
            if self.in_data:
                # What precedes the body is taken for a line end, so that a lone dot may be its first line.
                end = self.buffer.find(b"\r\n.\r\n", start)
                if end < 0:
                    return
                body = bytes(self.buffer[2 : end + 2]).replace(b"\r\n..", b"\r\n.")
                del self.buffer[: end + 5]
                self.in_data, start = False, 0
                self.dispatcher.messages.append((self, body[1:] if body.startswith(b"..") else body))
                self.say("250 2.0.0 Message accepted for delivery")
                continue
            end = self.buffer.find(b"\r\n")
            if end < 0:
                return
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 2]
            self._command(line.decode("utf-8", "surrogateescape"))
            if self.in_data:
                self.buffer[:0] = b"\r\n"

    def _command(self, line: str) -> None:
        self.commands.append(line)
        for start, reply in self.dispatcher.replies.items():
            if line.startswith(start):
                self.say(reply)
                return
        match line.partition(" ")[0]:
            case "EHLO":
                self.say("250-mail.example.org Hello", "250-8BITMIME", "250 HELP")
            case "DATA":
                self.in_data = True
                self.say('354 Enter mail, end with "."')
            case "QUIT":
                self.say("221 2.0.0 Bye")
                self.output.put_nowait(b"")
            case _:
                self.say("250 2.0.0 Ok")

    def say(self, *lines: str) -> None:
        for line in lines:
            if not line:
                self.output.put_nowait(b"")
                return
            self.output.put_nowait(line.encode() + b"\r\n")


class MemoryDispatcher:
    """Takes submissions. `replies`: what it answers to commands that begin so; "" closes."""

    def __init__(self) -> None:
        self.replies: dict[str, str] = {}
        self.messages: list[tuple[MemorySession, bytes]] = []
        self.numbers: dict[str, int] = {}
        self.sessions: dict[int, MemorySession] = {}
        self.closed: list[int] = []
        self.is_paused = False
        self.restarting = False
        self.levels: list[bool] = []

    async def pause(self, paused: bool) -> bool:
        changed = self.is_paused != paused
        self.is_paused = paused
        return changed

    async def paused(self) -> bool:
        return self.is_paused

    async def stats(self) -> dict[str, int]:
        return dict(self.numbers)

    async def submit(self, user: str, uid: int) -> int:
        if self.restarting:
            raise TempFail("dispatcher is being restarted")
        handle = len(self.sessions) + 1
        self.sessions[handle] = MemorySession(self, user, uid)
        return handle

    async def submit_write(self, handle: int, data: bytes) -> None:
        self.sessions[handle].feed(data)

    async def submit_read(self, handle: int) -> bytes:
        return await self.sessions[handle].output.get()

    async def submit_close(self, handle: int) -> None:
        self.closed.append(handle)
        self.sessions[handle].output.put_nowait(b"")

    async def log_level(self, verbose: bool) -> None:
        self.levels.append(verbose)


class MemoryLookup:
    """Knows one table; nothing else is asked of it here."""

    async def update_table(self, name: str) -> bool:
        return name == "al"

    async def log_level(self, verbose: bool) -> None:
        return


class MemoryFilters:
    """Has a few processors."""

    def __init__(self) -> None:
        self.rows = [Status(name="f", command="/f", state="running", pid=7)]
        self.restarted: list[str] = []
        self.verbose = False

    async def show(self) -> list[Status]:
        return self.rows

    async def restart(self, name: str) -> bool:
        self.restarted.append(name)
        return name in {row.name for row in self.rows}

    async def log_level(self, verbose: bool) -> None:
        self.verbose = verbose


class MemorySystem:
    """Notes that it was told to stop, and what it should remember."""

    def __init__(self) -> None:
        self.stopped = False
        self.reloaded = Reloaded()
        self.remembered: list[tuple[object, ...]] = []
        self.config = "match from local for local reject\n"
        self.generation = 0

    async def configuration(self, offset: int) -> tuple[int, str]:
        return self.generation, self.config[offset : offset + 10]

    async def stop(self) -> None:
        self.stopped = True

    async def reload(self) -> Reloaded:
        return self.reloaded

    async def remember_pause(self, kind: str, paused: bool) -> None:
        self.remembered.append((kind, paused))

    async def remember_route(self, source: str, dest: str, paused: bool) -> None:
        self.remembered.append((source, dest, paused))

    async def log_level(self, verbose: bool) -> None:
        return


class Server:
    """A control role on a socket in a temporary state directory, its loop in a thread."""

    def __init__(self, state: Path, *, owner: int, limits: Limits | None = None) -> None:
        self.state = state
        self.socket = places.control_socket(str(state))
        self.queue = MemoryQueue()
        self.dispatchers = [MemoryDispatcher(), MemoryDispatcher()]
        self.filters = MemoryFilters()
        self.system = MemorySystem()
        self.output = io.StringIO()
        self.log = Log(self.output)
        self._owner, self._limits = owner, limits
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def messages(self) -> list[tuple[MemorySession, bytes]]:
        return [message for dispatcher in self.dispatchers for message in dispatcher.messages]

    def reply(self, command: str, reply: str) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.replies[command] = reply

    def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.socket)
        os.chmod(self.socket, 0o666)
        listener.listen(128)
        listener.setblocking(False)
        self._thread.start()
        self.control = self.call(self._make()).result(10)
        self.call(self.control.start(listener)).result(10)

    async def _make(self) -> Control:
        commands = Commands(
            queue=self.queue,  # type: ignore[arg-type]
            dispatchers=self.dispatchers,  # type: ignore[arg-type]
            lookup=MemoryLookup(),  # type: ignore[arg-type]
            filters=self.filters,  # type: ignore[arg-type]
            has_filters=lambda: True,
            system=self.system,  # type: ignore[arg-type]
            log=self.log,
            now=time.monotonic,
        )
        return Control(
            commands=commands,
            dispatchers=self.dispatchers,  # type: ignore[arg-type]
            log=self.log,
            owner=self._owner,
            user_name=local_name,
            limits=self._limits,
        )

    def call(self, coroutine: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        self.call(self.control.close()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        os.unlink(self.socket)


@contextlib.contextmanager
def state_directory() -> Iterator[Path]:
    """Short (a socket's path is at most 107 bytes) and open to all users, as the real one."""
    with tempfile.TemporaryDirectory(prefix="pb") as name:
        state = Path(name)
        state.chmod(0o711)
        (state / "offline").mkdir()
        (state / "offline").chmod(0o1733)
        yield state


@contextlib.contextmanager
def serving(*, owner: int | None = None, limits: Limits | None = None) -> Iterator[Server]:
    """A server; whoever runs the tests owns it unless said otherwise."""
    with state_directory() as state:
        server = Server(state, owner=os.getuid() if owner is None else owner, limits=limits)
        server.start()
        try:
            yield server
        finally:
            server.stop()
