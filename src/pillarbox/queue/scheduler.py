"""Scheduling: which envelope is handed to which deliverer, when. Fair between destinations, bounded in memory.

Every destination that has something due is in a ring, and gets a turn of a few envelopes whenever its deliverer has
room. New mail goes from its commit to the ring without a read; what memory has no place for, or what waits for its
next try, is found again by the index on disk (destination, next try), and destinations by theirs (next due): start-up
walks nothing, and a long queue of one destination costs the others nothing.

What runs is volatile: nothing is written when an attempt starts, so an envelope is under way exactly as long as it is
in `_held`, and its row stays due on disk.
"""

import asyncio
import contextlib
import heapq
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable

from pillarbox.conf.model import Config
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope
from pillarbox.queue.flights import ASIDE, Destination, Flight
from pillarbox.queue.policy import Facts, expiry
from pillarbox.queue.store import Row, Store, StoredMessage
from pillarbox.roles.delivery import Attempt, Deliverer
from pillarbox.roles.queue import INLINE_BODY

KINDS = ("mda", "mta")
FETCHERS = 2
PAGE = 100  # envelopes read at a time
WAITING = 2000  # envelopes in memory that are not under way
BODIES = 32 << 20  # bytes of bodies in memory, waiting or under way; the rest is read when it is sent
DESTINATIONS = 2000  # in memory; beyond half of it, idle ones are forgotten at once
TURNS = 64  # before the loop gets to do other things
IDLE = 10.0  # seconds until an idle destination is forgotten
PARKED = 30  # seconds until a deliverer without room is asked again, should it forget to call `ready`
BLOCKED = 60  # seconds for which a parked destination is left on disk
RETRY_READ = 5  # seconds after a failed read
LOST = 5  # seconds before an attempt whose deliverer died is started again; four times as long each time after
LOST_MAX = 3600
LOSSES = 10_000  # envelopes whose losses are remembered
JUMP = 60  # seconds that clock and monotonic time may drift apart
HORIZON = 40 * 86400  # nothing is put off for longer: what seems to be was stored under a wrong clock
LONGEST_SLEEP = 30.0

Expire = Callable[[list[Row]], Awaitable[None]]


class Scheduler:
    """See the module. Times: `now()` epoch seconds, `monotonic()` seconds. `expire` stores that envelopes expired."""

    def __init__(
        self,
        *,
        store: Store,
        config: Config,
        log: Log,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        expire: Expire,
        paused: Iterable[str] = (),
    ) -> None:
        self.config = config
        self.deliverers: dict[str, Deliverer] = {}
        self.paused = set(paused)
        self.running = 0
        self._running_of = dict.fromkeys(KINDS, 0)
        self.started = False
        self._store = store
        self._log = log
        self._now = now
        self._monotonic = monotonic
        self._expire = expire
        self._held: dict[int, Flight] = {}
        self._weight = 0  # bytes of bodies of everything held
        self._known: dict[str, Destination] = {}
        self._rings: dict[str, deque[Destination]] = {kind: deque() for kind in KINDS}
        self._alarms: list[tuple[int, str]] = []  # (epoch, destination)
        self._next_scan: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._lost: list[tuple[int, int, Flight]] = []  # a heap: (epoch, attempt, whose deliverer died)
        self._losses: dict[int, int] = {}
        self._to_fetch: asyncio.Queue[Destination] = asyncio.Queue()
        self._alarm = asyncio.Event()
        self._planned = False
        self._ticking = False
        # Unique across restarts, so that a late report of an earlier life is never taken for one of this.
        self._next_attempt = secrets.randbits(61)
        self._offset = now() - monotonic()
        self._since = int(now())  # envelopes not tried since are tried before they expire
        self._clock_checked = False
        self._next_eviction = 0.0

    # What happened.

    @property
    def in_memory(self) -> int:
        """Envelopes in memory, waiting or under way."""
        return len(self._held)

    @property
    def is_busy(self) -> bool:
        """Is anything planned, or asked of the store, that may lead to deliveries without time passing?"""
        if self._planned or self._ticking or self._alarm.is_set():
            return True
        return any(d.fetching or d.resting for d in self._known.values())

    def flight(self, evpid: int) -> Flight | None:
        """The envelope, if it is in memory."""
        return self._held.get(evpid)

    def under_way(self, evpid: int, attempt: int) -> Flight | None:
        """The attempt, if it is the one under way."""
        flight = self._held.get(evpid)
        return flight if flight is not None and attempt > 0 and flight.attempt == attempt else None

    def add(self, message: StoredMessage, envelopes: list[Envelope]) -> None:
        """New mail, just committed."""
        facts = Facts.of(message)
        now = int(self._now())
        for stored, envelope in zip(message.envelopes, envelopes, strict=True):
            if stored.evpid in self._held:
                continue  # a read was quicker
            destination = self._room_for(stored.destination)
            if destination is None:
                continue
            if self._has_place(destination, message, now):
                body = message.body if message.size <= INLINE_BODY else b""
                self._hold(Flight(envelope, destination, facts, body), destination)
            else:
                destination.note(stored.next_try)
            self._list(destination)

    def _room_for(self, key: str) -> Destination | None:
        """The destination, or None: memory is full, or nobody delivers to it now; a scan will find it on disk."""
        kind = key[:3]
        destination = self._known.get(key)
        if destination is not None:
            destination.resting = False
            return destination
        if len(self._known) < DESTINATIONS and self.started and kind in self.deliverers and kind not in self.paused:
            return self._destination(key)
        if self._next_scan[kind]:
            self._next_scan[kind] = 0
            self._alarm.set()
        return None

    def _has_place(self, destination: Destination, message: StoredMessage, now: int) -> bool:
        """May new mail stay in memory? Not while older mail for it waits on disk, nor when nobody would take it."""
        if destination.kind in self.paused or (destination.parked and len(destination.waiting) >= PAGE):
            return False
        if destination.due is not None and destination.due <= now:
            return False
        if len(self._held) - self.running >= WAITING or self._weight + len(message.body) > BODIES:
            return False
        return bool(message.body) or message.size > INLINE_BODY

    def _hold(self, flight: Flight, destination: Destination) -> None:
        self._held[flight.envelope.evpid] = flight
        self._weight += flight.weight
        destination.waiting.append(flight)

    def adopt(self, row: Row, attempt: int) -> None:
        """An attempt of an earlier life of the queue that is still under way."""
        if row.envelope.evpid in self._held:
            return
        destination = self._destination(row.destination)
        facts = Facts.of(row)
        flight = Flight(row.envelope, destination, facts, b"")
        flight.start(attempt, int(self._now()))
        self._count(destination.kind, 1)
        self._held[row.envelope.evpid] = flight

    def ended(self, flight: Flight, again: int | None) -> None:
        """The outcome of an attempt is stored. `again`: when it is due next, None: it is gone."""
        self._release(flight)
        self._losses.pop(flight.envelope.evpid, None)
        destination = flight.destination
        if again is not None:
            self._note(destination, again)
        self._list(destination)

    def lost(self, pairs: Iterable[tuple[int, int]]) -> None:
        """The peer that held these attempts is gone. They become due again; see `Queue.lost`."""
        for evpid, attempt in pairs:
            flight = self.under_way(evpid, attempt)
            if flight is not None and flight.settling is not None:
                # Its outcome came before; should it not be stored, nobody repeats it.
                flight.settling.add_done_callback(lambda _, pair=(evpid, attempt): self.lost([pair]))  # type: ignore[misc]
            elif flight is not None:
                self._stop(flight)
                flight.attempt = ASIDE  # held, so that no read brings it back at once
                again = int(self._now()) + self._pause_after_loss(evpid)
                heapq.heappush(self._lost, (again, attempt, flight))
                self._ring_at(again, flight.destination.key)

    def _pause_after_loss(self, evpid: int) -> int:
        """Seconds. Should it be this envelope that its deliverers die of, they get to live longer and longer."""
        if len(self._losses) >= LOSSES:
            self._losses.clear()
        before = self._losses.get(evpid, 0)
        self._losses[evpid] = before + 1
        return int(min(LOST * 4**before, LOST_MAX))

    def forget(self, evpids: Collection[int]) -> None:
        """These were removed or suspended: those waiting are not started, attempts under way run on."""
        for evpid in evpids:
            flight = self._held.get(evpid)
            if flight is not None and flight.attempt == 0:
                with contextlib.suppress(ValueError):
                    flight.destination.waiting.remove(flight)
                self._release(flight)
        for destination in self._known.values():
            if destination.skip is not None:
                destination.skip.update(evpids)

    def look_again(self, destinations: Iterable[str]) -> None:
        """Something of these became due on disk."""
        now = int(self._now())
        for key in set(destinations):
            destination = self._room_for(key)
            if destination is not None:
                destination.rewind(now)
                self._list(destination)

    def ready(self, key: str) -> None:
        """A deliverer has room for this destination again."""
        destination = self._known.get(key)
        if destination is None:
            self.look_again([key])  # it may have been forgotten while it was parked
        else:
            destination.parked = False
            self._list(destination)

    def pause(self, kind: str, paused: bool) -> bool:
        """Stop or go on with a kind of delivery. False where it was so already."""
        if paused == (kind in self.paused):
            return False
        if paused:
            self.paused.add(kind)
        else:
            self.paused.discard(kind)
            self._next_scan[kind] = 0
            self._alarm.set()
            self._plan()
        return True

    def _release(self, flight: Flight) -> None:
        evpid = flight.envelope.evpid
        if self._held.pop(evpid, None) is None:
            return
        self._weight -= flight.weight
        destination = flight.destination
        if flight.attempt > 0:
            self._stop(flight)
        if destination.skip is not None:
            destination.skip.add(evpid)
        destination.idle_since = self._monotonic()

    def _stop(self, flight: Flight) -> None:
        flight.destination.running -= 1
        self._count(flight.destination.kind, -1)
        self._plan()

    def _count(self, kind: str, more: int) -> None:
        self.running += more
        self._running_of[kind] += more

    # Destinations.

    def _destination(self, key: str) -> Destination:
        destination = self._known.get(key)
        if destination is None:
            destination = self._known[key] = Destination(key)
            destination.idle_since = self._monotonic()
        destination.resting = False
        return destination

    def _note(self, destination: Destination, when: int) -> None:
        """Something on disk is due at `when`: ring then."""
        destination.note(when)
        self._ring_at(when, destination.key)

    def _ring_at(self, when: int, key: str) -> None:
        if not self._alarms or when < self._alarms[0][0]:
            self._alarm.set()
        heapq.heappush(self._alarms, (when, key))

    def _list(self, destination: Destination) -> None:
        """Give it a turn, if there may be something to do."""
        destination.resting = False
        if destination.listed or destination.parked:
            return
        if destination.waiting or (destination.due is not None and destination.due <= self._now()):
            destination.listed = True
            self._rings[destination.kind].append(destination)
            self._plan()

    def _plan(self) -> None:
        if self.started and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._pump)

    # Turns.

    def _pump(self) -> None:
        """Give turns, alternating between the kinds, until nobody can go on or others should run."""
        self._planned = False
        turns = 0
        moved = True
        while moved:
            moved = False
            for kind in KINDS:
                ring = self._rings[kind]
                if not ring or kind in self.paused or kind not in self.deliverers:
                    continue
                if self._free(kind) <= 0:
                    continue  # the next outcome goes on
                if turns >= TURNS:
                    self._plan()
                    return
                turns += 1
                moved = True
                self._turn(ring.popleft(), self.deliverers[kind])

    def _free(self, kind: str) -> int:
        """How many more may be started. A fifth is kept for the other kind: hosts that hang do not stop local mail."""
        most = self.config.scheduler.max_inflight
        return min(most - self.running, most - most // 5 - self._running_of[kind])

    def _turn(self, destination: Destination, deliverer: Deliverer) -> None:
        destination.listed = False
        room = min(deliverer.room(destination.key), self._free(destination.kind))
        if room <= 0:
            self._park(destination)
            return
        if destination.waiting:
            attempts = self._start(destination, room)
            self._list(destination)
            deliverer.deliver(attempts)
        elif not destination.fetching and destination.due is not None and destination.due <= self._now():
            destination.fetching = True
            self._to_fetch.put_nowait(destination)

    def _park(self, destination: Destination) -> None:
        """Wait for `ready`. Those who cannot go on do not keep others out of memory."""
        destination.parked = True
        self._ring_at(int(self._now()) + PARKED, destination.key)
        if destination.waiting and len(self._held) - self.running > WAITING // 2:
            while destination.waiting:
                self._release(destination.waiting.pop())
            destination.rewind(int(self._now()))

    def _start(self, destination: Destination, room: int) -> list[Attempt]:
        """The envelopes of one turn: some, and the rest of the last one's message, so that it stays together."""
        now = int(self._now())
        waiting = destination.waiting
        attempts: list[Attempt] = []
        while waiting and len(attempts) < room:
            if len(attempts) >= self.config.scheduler.max_schedule and (
                waiting[0].envelope.msgid != attempts[-1].envelope.msgid
            ):
                break
            self._next_attempt += 1
            attempts.append(waiting.popleft().start(self._next_attempt, now))
        self._count(destination.kind, len(attempts))
        return attempts

    # Reading.

    async def run(self) -> None:
        """Schedule until cancelled."""
        self.started = True
        for destination in self._known.values():
            self._list(destination)
        self._plan()  # what was listed before had to wait for this
        async with asyncio.TaskGroup() as group:
            for _ in range(FETCHERS):
                group.create_task(self._fetch_on())
            group.create_task(self._watch_clock())

    async def _fetch_on(self) -> None:
        while True:
            destination = await self._to_fetch.get()
            try:
                await self._fetch(destination)
            except TempFail as error:
                self._log.warn(f"scheduler: {destination.key}: {error}")
                self._note(destination, int(self._now()) + RETRY_READ)
            finally:
                destination.fetching = False
                destination.skip = None
                destination.idle_since = self._monotonic()
            self._list(destination)

    async def _fetch(self, destination: Destination) -> None:
        """Read the next page of a destination into memory; expire what is too old and was tried."""
        if len(self._held) - self.running >= WAITING:
            destination.due = int(self._now()) + 1
            self._ring_at(destination.due, destination.key)
            return
        limit = min(PAGE, self.deliverers[destination.kind].room(destination.key))
        if limit <= 0:
            self._park(destination)
            return
        destination.skip = set()
        version, destination.due, destination.unknown = destination.version, None, False
        budget = max(0, BODIES - self._weight)
        try:
            page = await self._store.due(destination.key, destination.cursor, limit, budget)
        except TempFail:
            destination.due = int(self._now()) + RETRY_READ
            raise
        now = int(self._now())
        expired: list[Row] = []
        for row in page.rows:
            if row.next_try > now:
                self._note(destination, row.next_try)
                break
            # Unless something was put before it meanwhile, everything up to this row is dealt with.
            if destination.version == version:
                destination.cursor = (row.next_try, row.envelope.evpid)
            self._take(destination, row, now, expired)
        else:
            if page.rest is not None:  # not note(): the cursor stands before it
                destination.due = page.rest if destination.due is None else min(destination.due, page.rest)
                self._ring_at(destination.due, destination.key)
        for when, evpid in page.damaged:
            self._log.warn(f"scheduler: {destination.key}: envelope {evpid:016x} cannot be read and is passed over")
            if when <= now and destination.version == version:
                destination.cursor = max(destination.cursor, (when, evpid))
        if expired:
            await self._expire_all(destination, expired)

    def _take(self, destination: Destination, row: Row, now: int, expired: list[Row]) -> None:
        evpid = row.envelope.evpid
        if evpid in self._held or destination.skip is None or evpid in destination.skip:
            return
        flight = Flight(row.envelope, destination, Facts.of(row), row.body)
        if row.tried >= self._since and expiry(row.envelope, self.config) <= now:
            flight.attempt = ASIDE
            self._held[evpid] = flight
            self._weight += flight.weight
            expired.append(row)
        else:
            self._hold(flight, destination)

    async def _expire_all(self, destination: Destination, rows: list[Row]) -> None:
        try:
            await self._expire(rows)
        except TempFail:
            destination.rewind(int(self._now()) + RETRY_READ)
            raise
        finally:
            for row in rows:
                flight = self._held.get(row.envelope.evpid)
                if flight is not None and flight.attempt == ASIDE:
                    self._release(flight)

    # Time.

    def wake(self) -> None:
        """Look at the clock now."""
        self._alarm.set()

    async def _watch_clock(self) -> None:
        while True:
            self._alarm.clear()
            self._ticking = True
            try:
                await self._tick()
            except TempFail as error:
                self._log.warn(f"scheduler: {error}")
            self._ticking = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next()):
                    await self._alarm.wait()

    def _until_next(self) -> float:
        """Seconds to the next thing to do."""
        now = self._now()
        times = [t for kind, t in self._next_scan.items() if kind not in self.paused]
        if self._alarms:
            times.append(self._alarms[0][0])
        if self._known:
            times.append(now + IDLE / 2)
        return min(LONGEST_SLEEP, max(0.1, min(times, default=now + LONGEST_SLEEP) - now))

    async def _tick(self) -> None:
        await self._notice_jump()
        now = self._now()
        while self._lost and self._lost[0][0] <= now:
            _, _, flight = heapq.heappop(self._lost)
            self._release(flight)
            self.look_again([flight.destination.key])
        while self._alarms and self._alarms[0][0] <= now:
            _, key = heapq.heappop(self._alarms)
            destination = self._known.get(key)
            if destination is not None:
                destination.parked = False
                self._list(destination)
        self._evict()
        for kind in KINDS:
            if kind not in self.paused and self._next_scan[kind] <= now:
                await self._scan(kind)

    async def _notice_jump(self) -> None:
        """After a clock was set, and at the start: everything is looked at again, and tried before it expires."""
        now = self._now()
        offset = now - self._monotonic()
        jumped = abs(offset - self._offset) > JUMP
        if jumped:
            self._log.info(f"queue: the clock was set by {offset - self._offset:+.0f} s")
            self._offset = offset
            self._since = int(now)
            self._next_scan = dict.fromkeys(KINDS, 0.0)
            self._lost = [(0, attempt, flight) for _, attempt, flight in self._lost]
            self.look_again(list(self._known))
        if jumped or not self._clock_checked:
            self._clock_checked = True
            self.look_again(await self._store.stranded(int(now), int(now) + HORIZON))

    async def _scan(self, kind: str) -> None:
        """Find destinations that are due and not in memory."""
        if len(self._known) >= DESTINATIONS:
            self._next_scan[kind] = self._now() + 1
            return
        now = int(self._now())
        self._next_scan[kind] = float("inf")
        limit = len(self._known) + PAGE
        try:
            keys = await self._store.destinations(kind, now, limit)
            full = len(keys) == limit
            following = None if full else await self._store.next_destination(kind, now)
        except TempFail:
            self._next_scan[kind] = now + RETRY_READ
            raise
        for key in keys:
            destination = self._destination(key)
            if destination.unknown and not destination.fetching:
                destination.due = now
                self._list(destination)
        if full:
            self._next_scan[kind] = 0
        elif following is not None:
            self._next_scan[kind] = min(self._next_scan[kind], following)

    def _evict(self) -> None:
        """Forget destinations with nothing in memory; on disk they are noted as due when their next envelope is."""
        monotonic, now = self._monotonic(), self._now()
        crowded = len(self._known) > DESTINATIONS // 2
        if not crowded and monotonic < self._next_eviction:
            return
        self._next_eviction = monotonic + IDLE / 2
        for destination in list(self._known.values()):
            if not destination.idle or destination.listed or destination.resting:
                continue
            if destination.due is not None and destination.due <= now and not destination.parked:
                continue
            if crowded or monotonic - destination.idle_since >= IDLE:
                self._rest(destination, int(now) + BLOCKED if destination.parked else 0)

    def _rest(self, destination: Destination, not_before: int) -> None:
        destination.resting = True

        def rested(done: "asyncio.Future[int | None]") -> None:
            if done.cancelled() or done.exception() is not None:
                destination.resting = False
                return
            due = done.result()
            if due is not None:
                self._next_scan[destination.kind] = min(self._next_scan[destination.kind], due)
            if destination.resting and destination.idle and self._known.get(destination.key) is destination:
                del self._known[destination.key]
            elif due is not None:
                self._note(destination, due)

        self._store.rest(destination.key, not_before).add_done_callback(rested)
