"""Deliveries as their users, ordered by queue: the parent's part (`roles.delivery.Agent`).

Gives batches of one user to children of the delivery process, passes pieces of large bodies on unread, and keeps
every outcome until queue has acknowledged it. What a delivery does happens in `mda/child`.
"""

import asyncio
import contextlib
import itertools
import secrets
import signal
import socket
from collections.abc import Callable

import msgspec

from pillarbox.conf.model import Config, Local
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Outcome, Result
from pillarbox.mda.jobs import Batch, log_delivery, make_batches, outcome_of, status_text
from pillarbox.mda.process import DeliveryProcess
from pillarbox.mda.wire import CHUNK, LENGTH, TIME_LIMIT, Chunk, Ended, Report, Want, decode_from_child, frame
from pillarbox.roles.delivery import InFlight, LocalDelivery
from pillarbox.roles.queue import Queue

_PATIENCE = TIME_LIMIT + 30.0  # seconds of silence after which a child is ended
_END_WAIT = 10.0  # seconds for a child's end to be told after its socket closed
_READ_WAIT = 60.0
_SETTLE_WAIT = 60.0
_SETTLE_MAX = 500
_RETRY_MAX = 5.0
_FRAME_MAX = 65536


class Agent:
    """Implements `roles.delivery.Agent`. Nothing happens to what it was given unless `run()` is running.

    `libexec`: the directory of `mail.maildir` and `mail.lmtp`, which wrappers are given to run.
    """

    def __init__(
        self,
        *,
        config: Config,
        queue: Queue,
        log: Log,
        now: Callable[[], float],
        libexec: str,
        process: DeliveryProcess,
    ) -> None:
        self._config = config
        self._configs = {config.generation: config}
        self._queue = queue
        self._log = log
        self._now = now
        self._libexec = libexec
        self._process = process
        self._orders: asyncio.Queue[Batch] = asyncio.Queue()
        self._running: dict[tuple[int, int], LocalDelivery] = {}
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self._news = asyncio.Event()
        self._children = 0
        self._sessions: dict[str, tuple[int, int]] = {}  # user → (id in the log, deliveries under it)

    def add_config(self, config: Config) -> None:
        """Answer for one more: queue orders by it as soon as it is its own."""
        self._configs[config.generation] = config

    def use_config(self, generation: int) -> None:
        """Its limits are in force from now on."""
        self._config = self._configs[generation]

    def drop_config(self, generation: int) -> None:
        """No order goes by it any more."""
        self._configs.pop(generation, None)

    def generations(self) -> set[int]:
        """The configurations by which deliveries run."""
        return {delivery.generation for delivery in self._running.values()}

    async def deliver(self, deliveries: list[LocalDelivery]) -> None:
        """Note the orders; their outcomes go to `Queue.settle`. TempFail, with nothing noted: too many run already."""
        if self._children > 2 * self._config.mda.max_session:
            raise TempFail("mda: too many deliveries are running")
        known: dict[int, list[tuple[LocalDelivery, Local]]] = {}
        for delivery in deliveries:
            key = delivery.envelope.evpid, delivery.attempt
            if key in self._running or key in self._outcomes:
                continue  # ordered before, by a queue that has forgotten it; there is one outcome for both
            self._note(delivery)
            config = self._configs.get(delivery.generation)
            action = config.actions.get(delivery.envelope.dispatcher) if config is not None else None
            if isinstance(action, Local):
                known.setdefault(delivery.generation, []).append((delivery, action))
            else:  # gone from the configuration; it may come back before the message expires
                reason = f"Unknown action: {delivery.envelope.dispatcher}"
                self._finish(delivery, Report(index=0, result=Result.TEMPFAIL, text=reason))
        for generation, orders in known.items():
            for batch in make_batches(orders, self._configs[generation], self._libexec):
                self._children += 1
                self._orders.put_nowait(batch)

    async def in_flight(self) -> InFlight:
        """What runs, and outcomes that queue has not acknowledged."""
        return InFlight(running=tuple(self._running), outcomes=tuple(self._outcomes.values()))

    async def run(self) -> None:
        """Start batches and report outcomes, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._report_outcomes())
                while True:
                    batch = await self._orders.get()
                    group.create_task(self._run_batch(batch))
        finally:
            self._process.close()

    async def _run_batch(self, batch: Batch) -> None:
        """One child from its order to its end; every delivery of the batch has an outcome afterwards."""
        talk = _Talk(batch, self._queue, self._finish)
        try:
            reason = await talk.run(self._process)
        except OSError as error:
            reason = f"delivery process: {error.strerror}"
        except msgspec.MsgspecError:
            reason = "delivery process sent nonsense"
        finally:
            self._children -= 1
        for index in sorted(talk.open):
            self._finish(batch.deliveries[index], Report(index=index, result=Result.TEMPFAIL, text=reason))

    def _note(self, delivery: LocalDelivery) -> None:
        self._running[delivery.envelope.evpid, delivery.attempt] = delivery
        session, count = self._sessions.get(delivery.user) or (secrets.randbits(64), 0)
        self._sessions[delivery.user] = session, count + 1

    def _finish(self, delivery: LocalDelivery, report: Report) -> None:
        key = delivery.envelope.evpid, delivery.attempt
        del self._running[key]
        session, count = self._sessions.pop(delivery.user)
        self._outcomes[key] = outcome_of(delivery, report, session)
        self._news.set()
        if count > 1:
            self._sessions[delivery.user] = session, count - 1
        log_delivery(
            self._log,
            session,
            delivery.envelope,
            user=delivery.user,
            result=report.result,
            stat=status_text(report),
            now=self._now(),
        )

    async def _report_outcomes(self) -> None:
        """Tell queue, in order, again and again until it acknowledges."""
        pause = 0.1
        while True:
            await self._news.wait()
            outcomes = list(itertools.islice(self._outcomes.values(), _SETTLE_MAX))
            try:
                async with asyncio.timeout(_SETTLE_WAIT):
                    await self._queue.settle(outcomes)
            except (TempFail, PermFail, TimeoutError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX)
                continue
            pause = 0.1
            for outcome in outcomes:
                self._outcomes.pop((outcome.evpid, outcome.attempt), None)
            if not self._outcomes:
                self._news.clear()


class _Talk:
    """The conversation with one child. `open`: indexes of the jobs that have no report yet."""

    def __init__(self, batch: Batch, queue: Queue, finish: Callable[[LocalDelivery, Report], None]) -> None:
        self._batch = batch
        self._queue = queue
        self._finish = finish
        self._buffer = b""
        self.open = set(range(len(batch.jobs)))

    async def run(self, process: DeliveryProcess) -> str:
        """Give the jobs, take the reports. Returns why there are no more of them; OSError, MsgspecError."""
        ours, theirs = socket.socketpair()
        reason = ""
        with ours:
            ours.setblocking(False)
            with theirs:
                child, ended = process.fork(self._batch.start, theirs)
            try:
                await self._converse(ours)
            except TimeoutError:
                reason = "terminated; timeout"
                process.kill(child)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it ended; how is told by the delivery process
            except (OSError, msgspec.MsgspecError):
                process.kill(child)
                raise
            await self._hear_out(ours)
        if reason:
            return reason
        if not self.open:
            return ""
        try:
            async with asyncio.timeout(_END_WAIT):
                return _reason(await ended)
        except TimeoutError:
            return "delivery process does not answer"

    async def _converse(self, connection: socket.socket) -> None:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().sock_sendall(connection, b"".join(map(frame, self._batch.jobs)))
        while self.open:
            async with asyncio.timeout(_PATIENCE):
                if not await self._read(connection):
                    return

    async def _hear_out(self, connection: socket.socket) -> None:
        """What a child said before it ended counts: those messages would be delivered twice."""
        with contextlib.suppress(OSError, TimeoutError, msgspec.MsgspecError):
            async with asyncio.timeout(_END_WAIT):
                while self.open and await self._read(connection):
                    pass

    async def _read(self, connection: socket.socket) -> bool:
        """Act on what the child says next; False at its end."""
        data = await asyncio.get_running_loop().sock_recv(connection, 65536)
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if end > _FRAME_MAX:
                raise msgspec.DecodeError("frame too long")
            if len(self._buffer) < end:
                break
            message = decode_from_child(self._buffer[LENGTH.size : end])
            self._buffer = self._buffer[end:]
            if isinstance(message, Want):
                await asyncio.get_running_loop().sock_sendall(connection, frame(await self._piece(message)))
            elif message.index in self.open:
                self.open.discard(message.index)
                self._finish(self._batch.deliveries[message.index], message)
        return bool(data)

    async def _piece(self, want: Want) -> Chunk:
        """The next piece of a large body, as queue gives it."""
        if not 0 <= want.index < len(self._batch.deliveries):
            return Chunk(data=b"", lost=True)
        delivery = self._batch.deliveries[want.index]
        count = min(CHUNK, delivery.size - want.offset)
        try:
            async with asyncio.timeout(_READ_WAIT):
                data = await self._queue.read(delivery.envelope.msgid, want.offset, count)
        except (TempFail, PermFail, TimeoutError):
            data = b""
        return Chunk(data=data, lost=len(data) != count)


def _reason(ended: Ended) -> str:
    """What to say of deliveries whose child went away."""
    if ended.error:
        return ended.error
    signaled = ended.status & 0x7F
    if signaled == signal.SIGALRM:
        return "terminated; timeout"
    return f"terminated; signal {signaled}" if signaled else "exited abnormally"
