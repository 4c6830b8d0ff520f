"""The incoming side of a dispatcher: listening sockets, limits, the sessions, and what control asks of them.

The parent binds and hands sockets in. Accepting is done here rather than by the event loop's own server, because a
process without descriptors must neither spin nor stop for good, and because above the limit clients get a reply.
"""

import asyncio
import contextlib
import errno
import os
import random
import resource
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import Queue
from pillarbox.server.commands.hello import handshake_failed
from pillarbox.server.msgids import MessageIds
from pillarbox.server.names import ReverseNames
from pillarbox.server.services import Peer, Services
from pillarbox.server.session import TLS_HANDSHAKE, Session
from pillarbox.server.submission import Submission
from pillarbox.server.trace import Dates
from pillarbox.smtp import replies

ACCEPT_BATCH = 32  # connections taken before running sessions get their turn
RETRY_ACCEPT = 1.0  # seconds, when the process has no descriptors left
RESERVED_DESCRIPTORS = 64  # sockets to other roles, listening sockets, log, keys
DRAIN_DEADLINE = 30.0  # seconds for transactions under way when the server stops
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LOOPBACK = ("127.0.0.1", "::1")


def default_max_sessions() -> int:
    """What RLIMIT_NOFILE allows, with a quarter left to outgoing sessions."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - RESERVED_DESCRIPTORS) * 3 // 4)


class Server:
    """Implements `roles.dispatcher.Incoming`. Made within the running event loop that serves it.

    `tls_contexts`: listener id → context, from `server/tls`. `local_addresses`: of this machine, for `from local`.
    """

    def __init__(
        self,
        *,
        config: Config,
        lookup: Lookup,
        queue: Queue,
        log: Log,
        now: Callable[[], float],
        tls_contexts: Mapping[int, ssl.SSLContext],
        local_addresses: frozenset[str] = frozenset(_LOOPBACK),
        max_sessions: int | None = None,
        auth_delay: Callable[[], float] = random.random,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config, self._tls_contexts = config, tls_contexts
        self._log = log
        self._local_addresses = local_addresses
        self._max_sessions = default_max_sessions() if max_sessions is None else max_sessions
        self._sockets: list[tuple[int, socket.socket]] = []
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters: Counter[str] = Counter()
        self._submissions: dict[int, Submission] = {}
        self._paused = self._draining = False
        self._full = False  # said once, until there is room again
        self._no_descriptors: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event = asyncio.Event()
        self._empty.set()
        self._services = Services(
            lookup=lookup,
            queue=queue,
            log=log,
            msgids=MessageIds(queue=queue, background=self._background),
            names=ReverseNames(lookup=lookup, monotonic=self._loop.time, background=self._background),
            dates=Dates(now),
            random64=lambda: secrets.randbits(64) or 1,
            auth_delay=auth_delay,
            background=self._background,
            count=self._count,
        )

    # --- assembled by daemon ----------------------------------------------------------------------------------------

    def add_socket(self, listener_id: int, listening: socket.socket) -> None:
        """Accept on a socket that is bound and listening. `listener_id` is a `Listener.id` of the configuration."""
        listening.setblocking(False)
        self._sockets.append((listener_id, listening))
        if self._accepting():
            self._watch(listener_id, listening)

    def configure(self, config: Config, tls_contexts: Mapping[int, ssl.SSLContext]) -> None:
        """New connections get this generation; sessions keep theirs."""
        self._config, self._tls_contexts = config, tls_contexts

    async def drain(self, deadline: float = DRAIN_DEADLINE) -> None:
        """Stop: no new connections, 421 to idle sessions now and to the others after their transaction."""
        self._draining = True
        self._unwatch()
        for session in list(self._sessions):
            session.drain()
        try:
            async with asyncio.timeout(deadline):
                await self._empty.wait()
        except TimeoutError:
            for session in list(self._sessions):
                session.fail("shutdown")
        for task in list(self._tasks):
            task.cancel()

    # --- roles.dispatcher.Incoming ----------------------------------------------------------------------------------

    async def pause(self, paused: bool) -> bool:
        """Stop accepting, or go on. False where it was so already."""
        if self._paused == paused:
            return False
        self._paused = paused
        if paused:
            self._unwatch()
        elif self._accepting():
            self._watch_all()
        return True

    async def paused(self) -> bool:
        """Whether connections are refused to be accepted (`smtpctl show status`)."""
        return self._paused

    async def stats(self) -> dict[str, int]:
        """The reference's counters: `smtp.session` is what is open now, the others what came."""
        return {"smtp.session": len(self._sessions), **self._counters}

    async def submit(self, user: str, uid: int) -> int:
        """Begin a session of a local user; `uid` is for the log. Raises TempFail where none can be had."""
        if self._paused or self._draining or len(self._sessions) >= self._max_sessions:
            raise TempFail("smtp is paused or full")
        listener = next((x for x in self._config.listeners if x.socket), None)
        peer = Peer(
            address="local", local=True, loopback=True, hostname=self._config.hostname, username=user or str(uid)
        )
        session = self._session(listener or Listener(id=0, socket=True), peer, None)
        submission = Submission(session, self._loop)
        self._submissions[session.id] = submission
        self._count("smtp.session.local", 1)
        submission.begin()
        return session.id

    async def submit_write(self, handle: int, data: bytes) -> None:
        """What the local client says; returns when the session took it."""
        await self._submission(handle).write_to_session(data)

    async def submit_read(self, handle: int) -> bytes:
        """What the session says; b"" once it is over."""
        data = await self._submission(handle).read_from_session()
        if not data:
            self._submissions.pop(handle, None)
        return data

    async def submit_close(self, handle: int) -> None:
        """The local client went away."""
        submission = self._submissions.pop(handle, None)
        if submission is not None:
            submission.client_gone()

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        self._log.verbose = verbose

    # --- accepting --------------------------------------------------------------------------------------------------

    def _accepting(self) -> bool:
        return not (self._paused or self._draining or self._no_descriptors)

    def _watch(self, listener_id: int, listening: socket.socket) -> None:
        self._loop.add_reader(listening.fileno(), self._accept, listener_id, listening)

    def _watch_all(self) -> None:
        for listener_id, listening in self._sockets:
            self._watch(listener_id, listening)

    def _unwatch(self) -> None:
        for _, listening in self._sockets:
            if listening.fileno() >= 0:  # it may have been closed by its owner, the parent
                self._loop.remove_reader(listening.fileno())

    def _accept(self, listener_id: int, listening: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    self._log.warn(f"smtp: accept: {os.strerror(error.errno or 0)}")
                    return
                self._log.warn(f"Disabling incoming SMTP connections for a moment: {error.strerror}")
                self._unwatch()
                self._no_descriptors = self._loop.call_later(RETRY_ACCEPT, self._retry)
                return
            self._accepted(listener_id, listening, connection, address)

    def _retry(self) -> None:
        self._no_descriptors = None
        if self._accepting():
            self._watch_all()

    def _accepted(
        self, listener_id: int, listening: socket.socket, connection: socket.socket, address: tuple[str, int]
    ) -> None:
        connection.setblocking(False)
        listener = next((x for x in self._config.listeners if x.id == listener_id), None)
        context = self._tls_contexts.get(listener_id)
        if listener is None or (listener.tls is TlsMode.SMTPS and context is None):
            connection.close()  # of a configuration that is gone, or without keys
            return
        if len(self._sessions) >= self._max_sessions:
            self._turn_away(connection, listener)
            return
        self._full = False
        server = listening.getsockname()
        host = address[0].partition("%")[0]
        peer = Peer(
            address=host,
            local=host in self._local_addresses,
            loopback=server[0] in _LOOPBACK,
            server=server[0],
            port=server[1],
        )
        self._count("smtp.session.inet6" if connection.family == socket.AF_INET6 else "smtp.session.inet4", 1)
        session = self._session(listener, peer, context)
        session.begin()
        self._background(self._connect(session, connection))

    def _turn_away(self, connection: socket.socket, listener: Listener) -> None:
        if not self._full:
            self._full = True
            self._log.warn("smtp: client limit reached, turning clients away")
        if listener.tls is not TlsMode.SMTPS:
            with contextlib.suppress(OSError):  # it is closed anyway
                connection.send(replies.TOO_MANY_SESSIONS.wire)
        connection.close()

    async def _connect(self, session: Session, connection: socket.socket) -> None:
        smtps = session.listener.tls is TlsMode.SMTPS
        try:
            await self._loop.connect_accepted_socket(
                lambda: session,
                connection,
                ssl=session.tls_context if smtps else None,
                ssl_handshake_timeout=TLS_HANDSHAKE if smtps else None,
            )
        except (OSError, TimeoutError) as error:
            session.fail(handshake_failed(error))

    def _session(self, listener: Listener, peer: Peer, context: ssl.SSLContext | None) -> Session:
        session = Session(
            services=self._services,
            config=self._config,
            listener=listener,
            peer=peer,
            tls_context=context,
            closed=self._forget,
        )
        self._sessions.add(session)
        self._empty.clear()
        return session

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        if session.tls:
            self._count("smtp.smtps" if session.listener.tls is TlsMode.SMTPS else "smtp.tls", -1)
        if not self._sessions:
            self._empty.set()

    # --- small things -----------------------------------------------------------------------------------------------

    def _submission(self, handle: int) -> Submission:
        found = self._submissions.get(handle)
        if found is None:
            raise PermFail("no such session")
        return found

    def _count(self, name: str, change: int) -> None:
        self._counters[name] += change

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.exception("smtp: background work", error)
