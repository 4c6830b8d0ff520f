"""One connection: bytes from the transport to `smtp/server_protocol`, replies back, and the clocks.

The shell is dull: it reads, lets `dispatch` handle one event after the other, writes all replies of a batch at once,
and keeps the limits: one task at a time, nothing read ahead beyond `BUFFER_MAX` while it runs, no more replies while
the client does not read, and an end for who makes no progress.
"""

import asyncio
import math
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from pillarbox.conf.model import Config, Listener
from pillarbox.filters.chain import Chain
from pillarbox.roles.lookup import Client, ReverseName
from pillarbox.server import dispatch, filtering, mechanisms
from pillarbox.server.commands import hello
from pillarbox.server.events import SessionEvents
from pillarbox.server.halfclose import can_end_writing, end_writing
from pillarbox.server.services import Peer, Services
from pillarbox.server.transaction import Transaction
from pillarbox.smtp import replies
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.sasl.exchange import Exchange
from pillarbox.smtp.server_protocol import ServerProtocol
from pillarbox.smtp.states import State

IDLE = 300.0  # seconds for the next whole command, or the next PROGRESS bytes of a message (RFC 5321 §4.5.3.2.7)
LINGER = 30.0  # seconds for the last reply to leave
HEAR_OUT = 5.0  # seconds to read on behind a refusal that ends the connection
HEAR_OUT_MAX = 256 * 1024  # bytes that a client may still send in that time
TLS_HANDSHAKE = 60.0
BUFFER_MAX = 128 * 1024  # bytes read ahead of a command that is being worked on
PROGRESS = 1024
_BATCH = 20  # events handled before other sessions get their turn: with 50 busy ones some milliseconds
_OUTPUT_MAX = 16 * 1024
_HELD_LOG_MAX = 100


class Session(asyncio.Protocol):
    """A client of one listener, with the configuration that was valid when it came."""

    def __init__(
        self,
        *,
        services: Services,
        config: Config,
        listener: Listener,
        peer: Peer,
        tls_context: ssl.SSLContext | None = None,
        closed: "Callable[[Session], None]",
    ) -> None:
        self.services, self.config, self.listener, self.peer = services, config, listener, peer
        self.tls_context = tls_context
        self.id = services.random64()
        self.name = listener.hostname or config.hostname
        self.state = State.CONNECTED
        self.core = ServerProtocol()
        self.tx: Transaction | None = None
        self.exchange: Exchange | None = None
        self.command = ""  # the last one, as the log shows it
        self.auth_refused = False  # lines that are no commands may be the password that belonged to it
        self.chunk_refusal: Reply | None = None  # the answer to a chunk that is being skipped
        self.verb: Verb | None = None  # of the command that is not answered yet
        self.helo = ""
        self.extended = False
        self.tls = ""  # VERSION:CIPHER:BITS
        self.verified = False
        self.username = peer.username
        self.authenticated = peer.address == "local"
        self.mechanisms: tuple[str, ...] | None = None  # of AUTH, once it was asked which
        self.failed_logins = 0
        self.hostname: str | None = peer.hostname
        self.introduced = False  # to filters and listeners, if there are any
        self.events: SessionEvents | None = None  # None: nobody listens
        self.chain: Chain | None = None  # None: there are no filters
        self.junk = False  # a filter says so, of all that comes
        self.failures = 0  # commands refused, recipients not among them
        self.early: asyncio.Event | None = None  # set by what comes while we wait for that
        self.mails = 0
        self.committing = False
        self.draining = False
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._work: Coroutine[Any, Any, Reply | None] | None = None  # what the task does
        self._out: list[bytes] = []
        self._held: list[tuple[str, dict[str, object]]] | None = []
        self._name: asyncio.Future[ReverseName] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active = self._loop.time()
        self._progress = 0
        self._message_due = math.inf  # when a message must be complete
        self._read_paused = self._write_blocked = self._eof = False
        self._ending = ""  # reason, once it ends
        self._unheard = False  # the reply that ends it may come while the client is still sending
        self._hearing = False  # and is read on behind it
        self._ignored = 0  # bytes that came behind it
        self._lost = False

    # --- what dispatch and the commands use -------------------------------------------------------------------------

    def send(self, reply: Reply) -> None:
        """Put a reply into the next write."""
        self._out.append(reply.wire)
        if self.events is not None:
            self.events.replied(reply, self.tx.msgid if self.tx is not None else None)
        if reply.closes:
            self._ending = "quit"
            self._unheard = reply not in (replies.BYE, replies.SHUTTING_DOWN)

    def start(self, work: Coroutine[Any, Any, Reply | None]) -> None:
        """Handle no further event before this is done; its reply is the answer to the command."""
        self._work = work
        self._task = self._loop.create_task(self._perform(work))

    async def precede(self, work: Coroutine[Any, Any, Reply | None]) -> tuple[bool, Reply | None]:
        """Do this before there is a connection to answer by: does the session go on, and what would be its reply?

        As with a command, the session does not end under it, but ends it: what it has told others of stays true.
        """
        reply: Reply | None = None

        async def perform() -> None:
            nonlocal reply
            reply = await dispatch.guard(self, work)

        self._work = work
        self._task = task = self._loop.create_task(perform())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if not self._lost:
            self._task = self._work = None
        return not self._lost and reply is None, reply

    def event(self, what: str, **fields: object) -> None:
        """Log a line of this session; lines wait for the first, which waits for the reverse name."""
        if self._held is None:
            self.services.log.event(self.id, what, **fields)
        else:
            self._held.append((what, fields))
            if len(self._held) > _HELD_LOG_MAX:
                self._log_connected("")

    async def reverse_name(self) -> str:
        """The client's name, "" where it has none."""
        if self.hostname is None:
            self.hostname = (await self.client_name()).confirmed
        return self.hostname

    async def client_name(self) -> ReverseName:
        """What DNS says about the client, believed or not."""
        if self._name is None:
            return ReverseName(name=self.hostname or "", fcrdns="pass")
        return await asyncio.shield(self._name)

    async def offered_mechanisms(self) -> tuple[str, ...]:
        """The mechanisms of AUTH, asked for once."""
        if self.mechanisms is None:
            found = self.tls_object()
            self.mechanisms = await mechanisms.offered(self.services.lookup, self.config, self.listener, found)
        return self.mechanisms

    def client(self, hostname: str) -> Client:
        """Who asks, for the ruleset."""
        return Client(
            listener=self.listener.id,
            smtpname=self.name,
            address=self.peer.address,
            local=self.peer.local,
            hostname=hostname,
            tag=self.listener.tag,
            helo=self.helo,
            tls=bool(self.tls),
            username=self.username,
        )

    def reset(self) -> None:
        """Forget the transaction (RSET, EHLO, the end of the connection)."""
        tx, self.tx = self.tx, None
        if tx is not None:
            if tx.stream is not None:
                (tx.stream.close if self._lost else tx.stream.abandon)()
            if tx.appended:
                self.services.background(dispatch.discard(self.services.queue, tx.msgid))
            if self.events is not None:
                self.events.over(tx.committed)
            if self.chain is not None:
                self.chain.end_transaction()
        self._message_due = math.inf
        self.core.end_chunks()

    def note_progress(self, size: int) -> None:
        """A piece of a message came: enough of them keep the session alive."""
        self._progress += size
        if self._progress >= PROGRESS:
            self._progress = 0
            self._active = self._loop.time()

    def expect_message(self) -> None:
        """A message begins: it may be slow, but not for ever."""
        self._message_due = self._loop.time() + self.config.smtp.max_data_time
        if self._timer is not None and self._message_due < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._message_due, self._on_timer)

    def message_came(self) -> None:
        """All of it came in time. What we do with it is another matter: if we hung up now, it would come again."""
        self._message_due = math.inf

    def note_command(self) -> None:
        """A whole command came."""
        self._progress = 0
        self._active = self._loop.time()

    def pause_reading(self) -> None:
        """Leave what follows in the socket."""
        if not self._read_paused and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()

    def flush(self) -> None:
        """Write what was sent so far."""
        if self._transport is None or not self._out:
            return
        if not self._lost:
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
        self._out.clear()

    async def start_tls(self) -> None:
        """The server's side of the handshake on the running connection; raises OSError (which `ssl.SSLError` is)."""
        assert self._transport is not None and self.tls_context is not None
        transport = await self._loop.start_tls(
            self._transport,
            self,
            self.tls_context,
            server_side=True,
            ssl_handshake_timeout=TLS_HANDSHAKE,
        )
        if transport is None or self._lost:
            raise ConnectionResetError("connection lost")
        self._transport = transport
        self._read_paused = self._write_blocked = False
        self._active = self._loop.time()

    def tls_object(self) -> ssl.SSLObject:
        """The session's TLS state."""
        assert self._transport is not None
        found: ssl.SSLObject = self._transport.get_extra_info("ssl_object")
        return found

    def fail(self, reason: str) -> None:
        """End at once: nothing more can be said to this client."""
        if reason == "timeout" and self.events is not None and not self._lost:
            self.events.reports.timeout()
        self._ending = self._ending if self._ending not in ("", "quit") else reason
        if self._transport is not None:
            self._transport.abort()
        self._finish_connection()

    def drain(self) -> None:
        """The server stops: end now, or after the transaction (RFC 5321 §3.8)."""
        self.draining = True
        self._pump()

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The client was accepted: the clock runs, and its name is asked for."""
        self._timer = self._loop.call_later(IDLE, self._on_timer)
        if self.hostname is not None:
            self._connected(self.hostname)
            return
        self._name = self.services.names.ask(self.peer.address)
        if self._name.done():
            self._connected(self._name.result().confirmed)
        else:
            self._name.add_done_callback(lambda name: self._connected(name.result().confirmed))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS of a smtps listener included: greet, once our name is known."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        if self._lost:  # timed out within the handshake
            self._transport.abort()
            return
        if self._ending:  # the server stops
            self.flush()
            self._end()
            return
        if transport.get_extra_info("ssl_object") is not None:
            hello.secured(self)
        if self.listener.hostnames or self.listener.greet_delay or filtering.concerns(self):
            self.start(dispatch.greet(self))
        else:
            self.send(replies.banner(self.name))
            self.flush()

    def data_received(self, data: bytes) -> None:
        """Feed the protocol; handle what is complete unless a command is being worked on."""
        if self._ending:
            self._ignore(len(data))
            return
        self.core.receive(data)
        if self.early is not None:
            self.early.set()
        if self._task is None and not self._write_blocked:
            self._pump()
        elif self.core.buffered > BUFFER_MAX:
            self.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more; what it asked is still answered, where the transport can."""
        self._eof = True
        if self.early is not None:
            self.early.set()
        if self._task is None:
            self._pump()
        return not self.tls and self._task is not None

    def pause_writing(self) -> None:
        """The client does not read."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """It does again."""
        self._write_blocked = False
        if self._task is None:
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, for whatever reason."""
        if not self._ending:
            self._ending = "disconnect" if exc is None else f'"io-error: {_reason(exc)}"'
        self._finish_connection()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Handle events until one needs time, the client is slow, or it is another session's turn."""
        for _ in range(_BATCH):
            if self._task is not None or self._write_blocked or self._ending:
                break
            event = self.core.next_event()
            if event is None:
                break
            dispatch.handle(self, event)
            if len(self._out) > 1 and sum(map(len, self._out)) > _OUTPUT_MAX:
                self.flush()
        else:
            self._loop.call_soon(self._pump)
            self.pause_reading()
            self.flush()
            return
        if self._task is None and not self._ending and not self._write_blocked:
            self._settle()
        self.flush()
        if self._ending:
            self._end()
        elif self.core.buffered > BUFFER_MAX:
            self.pause_reading()
        elif self._read_paused and self._task is None and not self._write_blocked and self._transport is not None:
            self._read_paused = False
            self._transport.resume_reading()

    def _settle(self) -> None:
        """Everything that came is answered."""
        if self.draining and self.tx is None:
            self.send(replies.SHUTTING_DOWN)
        elif self._eof:
            self._ending = "disconnect"

    async def _perform(self, work: Coroutine[Any, Any, Reply | None]) -> None:
        reply = await dispatch.guard(self, work)
        if self._lost:
            return
        self._task = self._work = None
        if reply is not None:
            dispatch.answer(self, reply)
        self._active = self._loop.time()
        self._pump()

    def _connected(self, hostname: str) -> None:
        """The reverse name is known."""
        self.hostname = hostname
        self._log_connected(hostname)

    def _log_connected(self, hostname: str) -> None:
        """The first line of a session, and those that waited for it."""
        held, self._held = self._held, None
        if held is None:
            return
        self.event("smtp connected", address=self.peer.logged, host=hostname or "<unknown>")
        for what, fields in held:
            self.event(what, **fields)

    def _on_timer(self) -> None:
        """Looked at now and then rather than moved with each command."""
        if self._task is not None and self.chain is not None:
            self._active = self._loop.time()  # it waits for us: filters may take longer than a client
        due = min(self._active + IDLE, self._message_due)
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._on_timer)
        else:
            self.fail("timeout")

    def _end(self) -> None:
        """Close once everything is written, and the client was heard out; not for ever."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._eof or self.draining or not (self._unheard and can_end_writing(self._transport)):
            self._close()
        elif not self._hearing:
            # To close with input unread resets the connection, and a client far away may then never see the reply.
            self._hearing = True
            with suppress(OSError):  # it is gone already, as the next read will find
                end_writing(self._transport)
            self._transport.resume_reading()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(HEAR_OUT, self._close)

    def _close(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()
        self._timer = self._loop.call_later(LINGER, self.fail, "timeout")

    def _ignore(self, size: int) -> None:
        """What comes behind our last word."""
        self._ignored += size
        if self._ignored > HEAR_OUT_MAX and self._transport is not None:
            self._transport.abort()  # to close TLS would be to read on

    def _finish_connection(self) -> None:
        """Once, whatever ended it."""
        if self._lost:
            return
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            if not self.committing:
                self._task.cancel()
            self._task.add_done_callback(self._last_work_done)
        self.event("smtp disconnected", reason=self._ending)
        if self._task is None:
            self._retire()

    def _last_work_done(self, _task: asyncio.Task[None]) -> None:
        """Called also where the task was cancelled before its first step, and so never ran."""
        if self._work is not None:
            self._work.close()
        self._retire()

    def _retire(self) -> None:
        """Nothing runs for this session any more."""
        self.reset()
        if self.events is not None:
            self.events.disconnected()
        if self.chain is not None:
            self.chain.close()
        self._transport = None
        self._closed(self)


def _reason(exc: Exception) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
