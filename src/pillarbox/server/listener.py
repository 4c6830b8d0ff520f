"""The incoming side of a dispatcher: limits, the sessions, and what control asks of them.

The parent binds and hands sockets in; accepting is done by `server/doors`, and above the limit of sessions clients get
a reply. A session keeps the configuration that was valid when it came, whatever `configure` brings meanwhile.
"""

import asyncio
import random
import resource
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.errors import PermFail, TempFail
from pillarbox.filters.processors import Processors
from pillarbox.log import Log
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import Queue
from pillarbox.server import filtering
from pillarbox.server.admissions import Admissions
from pillarbox.server.arrivals import Arrival, Arrivals, say
from pillarbox.server.commands.hello import handshake_failed
from pillarbox.server.doors import Door, Doors, Serving
from pillarbox.server.msgids import MessageIds
from pillarbox.server.names import ReverseNames
from pillarbox.server.services import Peer, Services
from pillarbox.server.session import TLS_HANDSHAKE, Session
from pillarbox.server.submission import Submission
from pillarbox.server.trace import Dates
from pillarbox.smtp import replies

RESERVED_DESCRIPTORS = 64  # sockets to other roles, listening sockets, log, keys
DRAIN_DEADLINE = 30.0  # seconds for transactions under way when the server stops
_LOOPBACK = ("127.0.0.1", "::1")


def default_max_sessions() -> int:
    """What RLIMIT_NOFILE allows, with a quarter left to outgoing sessions."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - RESERVED_DESCRIPTORS) * 3 // 4)


class Server:
    """Implements `roles.dispatcher.Incoming`. Made within the running event loop that serves it.

    `tls_contexts`: listener id → context, from `server/tls`. `local_addresses`: of this machine, for `from local`.
    `holder`: this dispatcher, for the limits that lookup counts. `processors`: of filters and reports; it gets to
    know the configurations here.
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
        processors: Processors,
        local_addresses: frozenset[str] = frozenset(_LOOPBACK),
        max_sessions: int | None = None,
        auth_delay: Callable[[], float] = lambda: random.uniform(1.0, 2.0),
        holder: str = "dispatcher",
        control_socket: str = "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._serving = Serving(config, tls_contexts, local_addresses)
        self._log = log
        self._processors = processors
        self._processors.add(config)
        self._max_sessions = default_max_sessions() if max_sessions is None else max_sessions
        self._doors = Doors(accepted=self._accepted, log=log)
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters: Counter[str] = Counter()
        self._submissions: dict[int, Submission] = {}
        self._paused = self._draining = False
        self._full = False  # said once, until there is room again
        self._empty: asyncio.Event = asyncio.Event()
        self._empty.set()
        self._admissions = Admissions(lookup=lookup, holder=holder, background=self._background)
        self._tickets: dict[Session, int] = {}
        self._arrivals = Arrivals(
            lookup=lookup,
            admissions=self._admissions,
            log=log,
            random64=_random64,
            ready=self._ready,
            background=self._background,
        )
        self._services = Services(
            lookup=lookup,
            queue=queue,
            log=log,
            msgids=MessageIds(queue=queue, background=self._background),
            names=ReverseNames(lookup=lookup, monotonic=self._loop.time, background=self._background),
            dates=Dates(now),
            processors=processors,
            control_socket=control_socket,
            admissions=self._admissions,
            random64=_random64,
            auth_delay=auth_delay,
            background=self._background,
            count=self._count,
        )

    # --- assembled by daemon ----------------------------------------------------------------------------------------

    def add_socket(self, address: str, listener_id: int, listening: socket.socket) -> None:
        """Accept on a socket that is bound and listening. `address`: its name, `listener_id`: who is served there."""
        self._doors.open(Door(address, listening, listener_id, self._serving))

    def configure(
        self,
        config: Config,
        tls_contexts: Mapping[int, ssl.SSLContext],
        *,
        listening: Mapping[str, int],
        local_addresses: frozenset[str],
    ) -> None:
        """New connections get this generation; sessions keep theirs. `listening`: listener ids by socket address.

        A socket whose address is not in it is closed once those who wait there were taken.
        """
        self._processors.add(config)
        self._serving = Serving(config, tls_contexts, local_addresses)
        self._doors.replace(self._serving, listening)

    def generations(self) -> set[int]:
        """Of which configurations there are sessions, or may be."""
        serving = {session.config.generation for session in self._sessions}
        return serving | self._arrivals.generations() | self._doors.generations()

    def retire(self, generation: int) -> None:
        """The time of a configuration is over: 421 to its idle sessions now, to the others after their transaction."""
        self._arrivals.send_away(generation)
        for session in list(self._sessions):
            if session.config.generation == generation:
                session.drain()

    async def drain(self, deadline: float = DRAIN_DEADLINE) -> None:
        """Stop: no new connections, 421 to idle sessions now and to the others after their transaction."""
        self._draining = True
        self._doors.shut("draining")
        self._arrivals.send_away()
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

    def lookup_attached(self) -> None:
        """There is a lookup, perhaps one that has just started: it counts our sessions."""
        self._background(self._admissions.reconnected())

    # --- roles.dispatcher.Incoming ----------------------------------------------------------------------------------

    async def pause(self, paused: bool) -> bool:
        """Stop accepting, or go on. False where it was so already."""
        if self._paused == paused:
            return False
        self._paused = paused
        (self._doors.shut if paused else self._doors.reopen)("paused")
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
        config = self._serving.config
        listener = next((x for x in config.listeners if x.socket), None)
        peer = Peer(address="local", local=True, loopback=True, hostname=config.hostname, username=user or str(uid))
        session = self._session(config, listener or Listener(id=0, socket=True), peer, None)
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
        """`smtpctl log verbose|brief`; verbose begins with how much is going on."""
        self._log.verbose = verbose
        self._log.debug(f"smtp: {len(self._sessions)} sessions, {len(asyncio.all_tasks())} tasks")

    # --- accepting --------------------------------------------------------------------------------------------------

    def _accepted(self, door: Door, connection: socket.socket, address: tuple[str, int]) -> None:
        connection.setblocking(False)
        serving = door.serving
        listener = serving.listener(door.listener_id)
        if listener is None or (listener.tls is TlsMode.SMTPS and listener.id not in serving.tls_contexts):
            connection.close()  # without keys
            return
        server = door.socket.getsockname()
        arrival = Arrival(
            serving=serving,
            listener=listener,
            connection=connection,
            address=_host(address[0]),
            client_port=address[1],
            server=_host(server[0]),
            port=server[1],
        )
        if self._has_room(arrival):
            self._arrivals.take(arrival)

    def _has_room(self, arrival: Arrival) -> bool:
        """Whether we can serve one more; if not, it was told so."""
        reply = None
        if self._draining:  # who came last to a socket that is let go
            reply = replies.SHUTTING_DOWN
        elif len(self._sessions) + len(self._arrivals) >= self._max_sessions:
            reply = replies.TOO_MANY_SESSIONS
            if not self._full:
                self._log.warn("smtp: client limit reached, turning clients away")
        self._full = reply is replies.TOO_MANY_SESSIONS
        if reply is not None:
            say(arrival, reply)
            arrival.connection.close()
        return reply is None

    def _ready(self, arrival: Arrival) -> None:
        """A client gets a session."""
        if not self._has_room(arrival):
            self._admissions.leave(arrival.ticket)
            return
        serving, host = arrival.serving, arrival.address
        peer = Peer(
            address=host,
            local=host in serving.local_addresses,
            loopback=arrival.server in _LOOPBACK,
            server=arrival.server,
            port=arrival.port,
            client_port=arrival.client_port,
        )
        self._count("smtp.session.inet6" if ":" in host else "smtp.session.inet4", 1)
        context = serving.tls_contexts.get(arrival.listener.id)
        session = self._session(serving.config, arrival.listener, peer, context)
        if arrival.ticket:
            self._tickets[session] = arrival.ticket
        session.begin()
        self._background(self._connect(session, arrival.connection))

    async def _connect(self, session: Session, connection: socket.socket) -> None:
        smtps = session.listener.tls is TlsMode.SMTPS
        if smtps and filtering.concerns(session) and not await self._introduce(session, connection):
            return
        try:
            await self._loop.connect_accepted_socket(
                lambda: session,
                connection,
                ssl=session.tls_context if smtps else None,
                ssl_handshake_timeout=TLS_HANDSHAKE if smtps else None,
            )
        except (OSError, TimeoutError) as error:
            session.fail(handshake_failed(error))

    async def _introduce(self, session: Session, connection: socket.socket) -> bool:
        """Have filters decide before a handshake costs anything: whoever is refused could not be told why."""
        welcome = False
        try:
            welcome, refusal = await session.precede(filtering.introduce(session))
            if refusal is not None:
                session.event("smtp failed-command", command='""', result=f'"{refusal.text}"')
                session.fail("quit")
        finally:
            if not welcome:
                connection.close()
        return welcome

    def _session(self, config: Config, listener: Listener, peer: Peer, context: ssl.SSLContext | None) -> Session:
        session = Session(
            services=self._services,
            config=config,
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
        self._admissions.leave(self._tickets.pop(session, 0))
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


def _host(address: str) -> str:
    """Without a scope; an IPv4 client of a socket for both families (one that was bound for us) is that."""
    host = address.partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host


def _random64() -> int:
    return secrets.randbits(64) or 1
