"""The queue role: what dispatchers, parent and control ask of it (`roles.queue.Queue`), tied to store and scheduler.

Mail comes by `commit` and goes by `settle`; between the two the `scheduler` hands it to the deliverers, and `bounces`
tells senders. Every change is durable before its call returns, and is carried through when the caller goes away.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec

from pillarbox.conf.model import Config
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result, decode_envelope
from pillarbox.mail.seal import verify
from pillarbox.queue import policy
from pillarbox.queue.bounces import Bounces
from pillarbox.queue.flights import Flight
from pillarbox.queue.policy import Facts, Verdict
from pillarbox.queue.scheduler import Scheduler
from pillarbox.queue.store import Later, Row, Store, StoredEnvelope, StoredMessage
from pillarbox.roles.bounce import Bouncer
from pillarbox.roles.delivery import Deliverer, InFlight, Witness
from pillarbox.roles.queue import NewMessage, QueueRow

BLOCK = 4096  # message ids reserved at a time
_BLOCKS = 2**31 // BLOCK - 1
BATCH = 500  # envelopes changed in one transaction by an operator's command
SHOWN = 1000  # envelopes in one page at most
SWEEP = 3600.0  # seconds
CLOSING = 30.0  # seconds that the store is given to finish

_COUNTED = {
    Result.OK: "scheduler.delivery.ok",
    Result.TEMPFAIL: "scheduler.delivery.tempfail",
    Result.PERMFAIL: "scheduler.delivery.permfail",
    Result.LOOP: "scheduler.delivery.loop",
}


class Queue:
    """`roles.queue.Queue`. To be made in the running loop; then `register` deliverers, `recover`, `start`.

    `seal_key`: the key that lookup seals envelopes with. `now()`: epoch seconds, `monotonic()`: seconds. `paused`:
    "mda" and "mta" as the server was told to start. `on_fatal`: called when the role must end. `witness`: who else
    wants to know what became of deliveries.
    """

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        log: Log,
        seal_key: bytes,
        bouncer: Bouncer,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        on_fatal: Callable[[BaseException], None],
        paused: Iterable[str] = (),
        witness: Witness | None = None,
    ) -> None:
        self._witness = witness
        self._store = store
        self._log = log
        self._key = seal_key
        self._now = now
        self._on_fatal = on_fatal
        self._config = config
        self._counters: Counter[str] = Counter()
        self._incoming = 0
        self._ids: list[int] = []
        self._block = secrets.randbelow(_BLOCKS) + 1  # the next to be handed out; not 0, which is no message
        self._reserving = asyncio.Lock()
        self._recovered = asyncio.Event()  # until then nobody knows what an outcome belongs to
        self._running: asyncio.Task[None] | None = None
        self.scheduler = Scheduler(
            store=store,
            config=config,
            log=log,
            now=now,
            monotonic=monotonic,
            expire=self._expire,
            paused=paused,
        )
        self._bounces = Bounces(store=store, intake=self, bouncer=bouncer, log=log, monotonic=monotonic)

    # Assembly.

    def register(self, kind: str, deliverer: Deliverer) -> None:
        """Who delivers "mda" or "mta"."""
        self.scheduler.deliverers[kind] = deliverer

    def configure(self, config: Config) -> None:
        """A new configuration applies to everything from now on: ttl, warnings, limits."""
        self._config = self.scheduler.config = config

    def ready(self, destination: str) -> None:
        """A deliverer has room again for a destination it had none for."""
        self.scheduler.ready(destination)

    async def recover(self, held: list[InFlight]) -> None:
        """Before `start`: what the peers still hold from an earlier life of the queue.

        Attempts that run are not started again; outcomes that were not acknowledged are settled now, once: a row
        remembers the last attempt settled, and an envelope that ended is gone.
        """
        reported: dict[int, Outcome] = {}
        for peer in held:
            for evpid, attempt in peer.running:
                row = await self._row(evpid)
                if row is not None and row.attempt != attempt:
                    self.scheduler.adopt(row, attempt)
            reported.update((outcome.evpid, outcome) for outcome in peer.outcomes)
        for outcome in reported.values():
            row = await self._row(outcome.evpid)
            if row is not None and row.attempt != outcome.attempt:
                self.scheduler.adopt(row, outcome.attempt)
        self._recovered.set()
        await self.settle(list(reported.values()))

    async def start(self) -> None:
        """Begin to schedule, to bounce and to sweep; goes on until `close`."""
        self._recovered.set()
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run(), name="queue")
            self._running.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.exception("queue: the scheduler ended", error)
            self._on_fatal(error)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scheduler.run())
            group.create_task(self._bounces.run())
            group.create_task(self._sweep())

    async def close(self) -> None:
        """Stop scheduling, commit what was begun, let the store go."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        async with asyncio.timeout(CLOSING):
            await self._store.close()

    def wake(self) -> None:
        """Look at the clocks now (it was moved)."""
        self.scheduler.wake()
        self._bounces.wake()

    def lost(self, pairs: Iterable[tuple[int, int]]) -> None:
        """The peer that ran these (evpid, attempt) is gone without an outcome.

        They are due again after a few seconds, with their retry count and error as they were: it was not the
        destination that failed. A late outcome of such an attempt is ignored, its number is never used again.
        """
        self.scheduler.lost(pairs)

    # Incoming.

    async def reserve(self, count: int) -> list[int]:
        """Message ids, from a random one on in a row: a new message then goes behind the last one in every tree.

        Measured in groups of eight: 2.0 pages of log a message, against 3.1 with blocks in random places.
        """
        if not 0 <= count <= BLOCK:
            raise TempFail(f"queue: {count} message ids at once")
        async with self._reserving:
            while len(self._ids) < count:
                # 31 bits: an evpid fits SQL's signed 64. A block of which anything is in use is left alone.
                first, self._block = self._block * BLOCK, self._block % _BLOCKS + 1
                if await self._store.unused(first, first + BLOCK - 1):
                    self._ids = list(range(first + BLOCK - 1, first - 1, -1)) + self._ids
            return [self._ids.pop() for _ in range(count)]

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """Add to the body of a message that is not committed yet."""
        if offset == 0:
            self._store.check_space()
        await self._store.append(msgid, offset, chunk)

    async def discard(self, msgid: int) -> None:
        """Forget what was appended."""
        await self._store.discard(msgid)

    def commit(self, message: NewMessage) -> "asyncio.Future[None]":
        """Verify and store a message; it goes to the scheduler when it is durable."""
        return self.accept(message, 0, ())

    def accept(self, message: NewMessage, answers_msgid: int, answers: tuple[int, ...]) -> "asyncio.Future[None]":
        """As `commit`; the pending bounces that the message answers are removed in the same transaction."""
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            stored, envelopes = self._stored(message, answers_msgid, answers)
        except PillarboxError as refused:
            accepted.set_exception(refused)
            return accepted
        self._incoming += len(envelopes)

        def committed(done: "asyncio.Future[None]") -> None:
            # Whether or not the caller still waits: the mail is ours.
            self._incoming -= len(envelopes)
            if done.cancelled():
                accepted.cancel()
            elif (error := done.exception()) is not None:
                _answer(accepted, error)
            else:
                self.scheduler.add(stored, envelopes)
                _answer(accepted, None)

        self._store.commit(stored).add_done_callback(committed)
        return accepted

    def _stored(
        self, message: NewMessage, answers_msgid: int, answers: tuple[int, ...]
    ) -> tuple[StoredMessage, list[Envelope]]:
        """What the store gets, and its envelopes; TempFail where the message cannot be taken."""
        envelopes = self._open(message)
        if not message.streamed and len(message.body) != message.size:
            raise TempFail(f"queue: {message.msgid:08x}: {len(message.body)} bytes of {message.size} arrived")
        self._store.check_space()
        now = int(self._now())
        stored = StoredMessage(
            msgid=message.msgid,
            size=message.size,
            envelopes=tuple(
                StoredEnvelope(e.evpid, policy.destination_of(e), now, sealed.data)
                for e, sealed in zip(envelopes, message.envelopes, strict=True)
            ),
            body=message.body,
            streamed=message.streamed,
            eight_bit=message.eight_bit,
            smtputf8=message.smtputf8,
            require_tls=message.require_tls,
            answers=answers,
            answers_msgid=answers_msgid,
        )
        return stored, envelopes

    def _open(self, message: NewMessage) -> list[Envelope]:
        """The envelopes, if all are sealed by lookup and belong to this message."""
        if not message.envelopes:
            raise TempFail(f"queue: {message.msgid:08x}: a message without envelopes")
        envelopes = []
        for sealed in message.envelopes:
            if not verify(self._key, sealed.data, sealed.mac):
                raise TempFail(f"queue: {message.msgid:08x}: an envelope with a wrong seal was refused")
            envelope = decode_envelope(sealed.data)
            if envelope.msgid != message.msgid:
                raise TempFail(f"queue: {message.msgid:08x}: an envelope of {envelope.msgid:08x} was refused")
            envelopes.append(envelope)
        return envelopes

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        """A piece of a body."""
        return await self._store.read(msgid, offset, count)

    # Outcomes.

    async def settle(self, outcomes: list[Outcome]) -> None:
        """Store what became of attempts. One that is not under way was settled before, or is not ours any more.

        What is reported to a queue that has just been restarted waits until it has asked what is under way: it would
        take it for something settled, and send the message again.
        """
        await self._recovered.wait()
        flights: list[tuple[Flight, Outcome, Verdict]] = []
        waits: list[Awaitable[list[bool]]] = []
        now = int(self._now())
        for outcome in outcomes:
            flight = self.scheduler.under_way(outcome.evpid, outcome.attempt)
            if flight is None:
                continue
            if flight.settling is not None:  # repeated while the first report is on its way to the disk
                waits.append(flight.settling)
            elif not any(f is flight for f, _, _ in flights):
                verdict = policy.settle(flight.envelope, flight.facts, outcome, self._config, now)
                flights.append((flight, outcome, verdict))
        if flights:
            waits.append(self._store_outcomes(flights))
        for wait in waits:
            await asyncio.shield(wait)

    def _store_outcomes(self, flights: "list[tuple[Flight, Outcome, Verdict]]") -> "asyncio.Future[list[bool]]":
        future = self._store.settle([verdict.change for _, _, verdict in flights])
        for flight, _, _ in flights:
            flight.settling = future

        def settled(done: "asyncio.Future[list[bool]]") -> None:
            if done.cancelled() or done.exception() is not None:
                for flight, _, _ in flights:
                    flight.settling = None  # the deliverer repeats it
                return
            for (flight, outcome, verdict), there in zip(flights, done.result(), strict=True):
                later = verdict.change.next_try if isinstance(verdict.change, Later) and there else None
                self.scheduler.ended(flight, later)
                self._counters[_COUNTED[outcome.result]] += 1
                if there:
                    self._tell(flight.envelope, verdict)
            if self._witness is not None:  # last: a fault of theirs must not hold up mail
                for (flight, outcome, verdict), there in zip(flights, done.result(), strict=True):
                    if there:
                        self._witness.ended(flight.envelope, outcome)
                        if verdict.expired:
                            self._witness.expired(flight.envelope)

        future.add_done_callback(settled)
        return future

    def _tell(self, envelope: Envelope, verdict: Verdict) -> None:
        """Log and count what was stored."""
        if verdict.expired:
            self._counters["scheduler.envelope.expired"] += 1
            self._log_end(envelope, "Expire", policy.EXPIRED)
        if verdict.no_return_path:
            self._log.warn(policy.NO_RETURN_PATH)
        if verdict.change.bounce is not None:
            self._counters["queue.bounce"] += 1
            self._bounces.add(envelope.msgid)

    async def _expire(self, rows: list[Row]) -> None:
        """Envelopes whose time is over, found by the scheduler."""
        now = int(self._now())
        verdicts = [policy.expire(row.envelope, Facts.of(row), self._config, now) for row in rows]
        done = await asyncio.shield(self._store.settle([verdict.change for verdict in verdicts]))
        for row, verdict, there in zip(rows, verdicts, done, strict=True):
            if there:
                self._tell(row.envelope, verdict)
                if self._witness is not None:
                    self._witness.expired(row.envelope)

    def _log_end(self, envelope: Envelope, what: str, status: str) -> None:
        agent = "delivery" if envelope.kind is Kind.MDA else "relay"
        rcpt = "-" if envelope.rcpt == envelope.dest else envelope.rcpt
        delay = duration(int(self._now()) - envelope.ctime)
        self._log.info(
            f"{agent}: {what} for {envelope.evpid:016x}: from=<{envelope.sender or '@'}>, to=<{envelope.dest}>, "
            f"rcpt=<{rcpt}>, delay={delay}, stat={status}"
        )

    # Control.

    async def show(self, after: int, count: int, msgid: int = 0) -> list[QueueRow]:
        """A page of envelopes in order of evpid."""
        rows = await self._store.rows(after, min(count, SHOWN), msgid)
        return [self._shown(row) for row in rows]

    async def envelope(self, evpid: int) -> QueueRow | None:
        """One envelope."""
        row = await self._row(evpid)
        return None if row is None else self._shown(row)

    async def _row(self, evpid: int) -> Row | None:
        if not 2**32 <= evpid < 2**63:
            return None
        rows = await self._store.rows(0, 1, evpid)
        return rows[0] if rows else None

    def _shown(self, row: Row) -> QueueRow:
        envelope = row.envelope
        flight = self.scheduler.flight(envelope.evpid)
        inflight = flight is not None and flight.attempt > 0
        if flight is not None and inflight:
            envelope = msgspec.structs.replace(envelope, last_try=flight.started)
        return QueueRow(
            envelope=envelope,
            expire=policy.expiry(envelope, self._config),
            next_try=row.next_try,
            state="inflight" if inflight else "pending",
            suspended=row.suspended,
        )

    async def schedule(self, which: int) -> int:
        """Try now what is not under way."""
        count = 0
        async for rows in self._pages(which):
            evpids = [e for e in rows if (flight := self.scheduler.flight(e)) is None or flight.attempt <= 0]
            changed = await asyncio.shield(self._store.schedule(evpids, int(self._now())))
            self.scheduler.look_again(changed.values())
            count += len(changed)
        return count

    async def remove(self, which: int) -> int:
        """Delete; an attempt under way runs on, and its outcome finds nothing."""
        count = 0
        async for evpids in self._pages(which):
            future = self._store.remove(evpids)
            future.add_done_callback(self._removed)
            count += len(await asyncio.shield(future))
        return count

    def _removed(self, done: "asyncio.Future[list[Envelope]]") -> None:
        if done.cancelled() or done.exception() is not None:
            return
        envelopes = done.result()
        self.scheduler.forget([envelope.evpid for envelope in envelopes])
        self._counters["scheduler.envelope.removed"] += len(envelopes)
        for envelope in envelopes:
            self._log_end(envelope, "Remove", "Removed by administrator")

    async def suspend(self, which: int, suspended: bool) -> int:
        """Hold or release."""
        count = 0
        async for evpids in self._pages(which):
            changed = await asyncio.shield(self._store.suspend(evpids, suspended))
            if suspended:
                self.scheduler.forget(list(changed))
            else:
                self.scheduler.look_again(changed.values())
            count += len(changed)
        return count

    async def _pages(self, which: int) -> AsyncIterator[list[int]]:
        """The evpids meant, a batch at a time."""
        after = 0
        while True:
            rows = await self._store.rows(after, BATCH, which)
            if rows:
                after = rows[-1].envelope.evpid
                yield [row.envelope.evpid for row in rows]
            if len(rows) < BATCH:
                return

    async def pause(self, kind: str, paused: bool) -> bool:
        """Stop or go on scheduling a kind."""
        return self.scheduler.pause(kind, paused)

    async def paused(self) -> list[str]:
        """The kinds that are paused."""
        return sorted(self.scheduler.paused)

    async def stats(self) -> dict[str, int]:
        """The reference's names for what we count. Its `ramqueue` is everything queued: ours is on disk."""
        envelopes, messages = await self._store.counts()
        return {
            "queue.evpcache.size": self.scheduler.in_memory,
            "scheduler.envelope": envelopes,
            "scheduler.envelope.incoming": self._incoming,
            "scheduler.envelope.inflight": self.scheduler.running,
            "scheduler.ramqueue.envelope": envelopes,
            "scheduler.ramqueue.message": messages,
            "scheduler.ramqueue.update": 0,
            **self._counters,
        }

    async def _sweep(self) -> None:
        """Remove orphan bodies, now and every hour."""
        while True:
            try:
                swept = await self._store.sweep()
                if swept:
                    self._log.info(f"queue: {swept} orphan bodies removed")
            except TempFail as error:
                self._log.warn(f"queue: sweep: {error}")
            await asyncio.sleep(SWEEP)


def duration(seconds: int) -> str:
    """`1d2h3m4s`, leading zero units left out, as the reference writes delays."""
    seconds = max(0, seconds)
    if not seconds:
        return "0s"
    parts = ((seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def _answer(waiting: "asyncio.Future[None]", error: BaseException | None) -> None:
    """Tell who waits, unless they have gone."""
    if waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
