"""The control role: answers `smtpctl`, lets local users submit mail.

A connection is a series of requests, each with one bounded answer (`wire`); what they do is in `commands`. Peers are
known by the kernel's word (SO_PEERCRED): root and the user that the server runs as may do everything, all others submit
mail. Each wait on a peer has a deadline, each user a limit of connections.
"""

import asyncio
import pwd
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pillarbox.control import wire
from pillarbox.control.commands import Commands
from pillarbox.control.submit import relay_session
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.roles.deadlines import RELOAD_ASKED
from pillarbox.roles.dispatcher import Incoming

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections, and seconds to wait for a peer, for another role, and for a submission's next bytes."""

    per_user: int = 32
    strangers: int = 256  # connections of all users without rights together
    request: float = 60.0
    answer: float = 30.0
    call: float = 120.0
    reload: float = RELOAD_ASKED + 10.0  # less than smtpctl waits
    submission: float = 300.0


class Control:
    """Serves one listening control socket.

    `owner`: the uid that, beside root, may do everything. `user_name` says who a uid is (`local_name`); it is called
    in a thread.
    """

    def __init__(
        self,
        *,
        commands: Commands,
        dispatchers: list[Incoming],
        log: Log,
        owner: int,
        user_name: Callable[[int], str],
        limits: Limits | None = None,
    ) -> None:
        self._commands = commands
        self._dispatchers = dispatchers
        self._log = log
        self._owner = owner
        self._user_name = user_name
        self._limits = limits or Limits()
        self._connections: Counter[int] = Counter()
        self._refused: set[int] = set()
        self._sessions: set[asyncio.Task[None]] = set()
        self._submissions = 0
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve a socket that is bound and listens."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def close(self) -> None:
        """Take no more connections and end those that there are."""
        if self._server is not None:
            self._server.close()
        sessions = [task for task in self._sessions if task is not asyncio.current_task()]
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    def sessions(self) -> int:
        """Connections now (`control.session`)."""
        return self._connections.total()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its acceptance to its end."""
        uid = _peer_uid(writer)
        if not self._admit(uid):
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            while await self._exchange(reader, writer, uid):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the peer went away or does not go on
        finally:
            self._sessions.discard(task)
            self._leave(uid)
            await self._hang_up(writer)

    def _admit(self, uid: int) -> bool:
        trusted = self._may_all(uid)
        strangers = sum(count for user, count in self._connections.items() if not self._may_all(user))
        if self._connections[uid] < self._limits.per_user and (trusted or strangers < self._limits.strangers):
            self._connections[uid] += 1
            return True
        if uid not in self._refused:  # once until the user has none left: a flood must not fill the log
            self._refused.add(uid)
            self._log.warn(f"too many connections to control socket from user with uid {uid}")
        return False

    def _leave(self, uid: int) -> None:
        self._connections[uid] -= 1
        if not self._connections[uid]:
            del self._connections[uid]
            self._refused.discard(uid)

    def _may_all(self, uid: int) -> bool:
        return uid in (0, self._owner)

    async def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        """Close; what a peer does not take in time is dropped with the connection."""
        writer.close()
        try:
            async with asyncio.timeout(self._limits.answer):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> bool:
        """One request and its answer; False ends the connection."""
        try:
            request = await self._read(reader)
        except wire.Bad as error:
            self._log.debug(f"control: uid {uid}: {error}")
            await self._write(writer, wire.Failed(str(error)))
            return False
        if isinstance(request, wire.Submit):
            await self._submit(reader, writer, uid)
            return False
        answer = await self._answer(request) if self._may_all(uid) else wire.Denied()
        await self._write(writer, answer)
        return True

    async def _answer(self, request: wire.Request) -> wire.Answer:
        try:
            seconds = self._limits.reload if isinstance(request, wire.Reload) else self._limits.call
            async with asyncio.timeout(seconds):
                return await self._commands.answer(request, sessions=self.sessions())
        except (TempFail, PermFail) as error:
            return wire.Failed(str(error))
        except TimeoutError:
            return wire.Failed("no answer in time")

    async def _read(self, reader: asyncio.StreamReader) -> wire.Request:
        async with asyncio.timeout(self._limits.request):
            length = wire.body_length(await reader.readexactly(wire.HEADER), wire.REQUEST_MAX)
            return wire.decode_request(await reader.readexactly(length))

    async def _write(self, writer: asyncio.StreamWriter, answer: wire.Answer) -> None:
        writer.write(wire.frame(answer))
        async with asyncio.timeout(self._limits.answer):
            await writer.drain()

    async def _submit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> None:
        """Give the connection to an SMTP session of this user."""
        session = await self._open_session(uid)
        if isinstance(session, wire.Failed):
            await self._write(writer, session)
            return
        dispatcher, handle = session
        writer.write(wire.frame(wire.Done()))
        await relay_session(reader, writer, dispatcher=dispatcher, handle=handle, deadline=self._limits.submission)

    async def _open_session(self, uid: int) -> tuple[Incoming, int] | wire.Failed:
        """A session in the first dispatcher, by turns, that takes it."""
        try:
            async with asyncio.timeout(self._limits.call):
                user = await asyncio.to_thread(self._user_name, uid)
                for _ in self._dispatchers:
                    self._submissions += 1
                    dispatcher = self._dispatchers[self._submissions % len(self._dispatchers)]
                    try:
                        if await dispatcher.paused():
                            return wire.Failed(wire.SMTP_PAUSED)
                        return dispatcher, await dispatcher.submit(user, uid)
                    except TempFail as error:
                        self._log.debug(f"control: submission: {error}")
        except PermFail as error:
            return wire.Failed(str(error))
        except TimeoutError:
            self._log.warn("control: no dispatcher took a submission in time")
        return wire.Failed(wire.TOO_BUSY)


def local_name(uid: int) -> str:
    """The name of a local user; one that nobody knows is called by the number. May block."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """Who connected, by the kernel's word."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])
