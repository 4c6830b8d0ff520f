"""A queue on a folder, with a clock to advance, deliverers that keep what they get, and a bouncer that remembers."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pillarbox.conf.model import Config, Relay
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result, Sealed, encode_envelope
from pillarbox.mail.seal import seal
from pillarbox.queue.queue import Queue
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.roles.bounce import BounceKind, PendingBounce, ReadBody, WriteBody
from pillarbox.roles.delivery import Attempt
from pillarbox.roles.queue import NewMessage

KEY = b"k" * 32
T0 = 1_700_000_000
DAY = 86400
PATIENCE = 10.0

_suffix = itertools.count(1)


class Clock:
    """Epoch and monotonic time that stand still unless advanced; `jump` sets the epoch alone."""

    def __init__(self) -> None:
        self.epoch = float(T0)
        self.ticks = 1000.0

    def now(self) -> float:
        return self.epoch

    def monotonic(self) -> float:
        return self.ticks

    def advance(self, seconds: float) -> None:
        self.epoch += seconds
        self.ticks += seconds

    def jump(self, seconds: float) -> None:
        self.epoch += seconds


class Keeps:
    """A deliverer that keeps attempts until the test decides. `rooms`: destination → room, else `default`."""

    def __init__(self, default: int = 1000) -> None:
        self.default = default
        self.rooms: dict[str, int] = {}
        self.attempts: list[Attempt] = []
        self.history: list[Attempt] = []

    def room(self, destination: str) -> int:
        held = sum(a.destination == destination for a in self.attempts)
        return max(0, self.rooms.get(destination, self.default) - held)

    def deliver(self, attempts: list[Attempt]) -> None:
        assert attempts
        self.attempts += attempts
        self.history += attempts

    def take(self) -> list[Attempt]:
        taken, self.attempts = self.attempts, []
        return taken


class Tells:
    """A bouncer that answers with a message to the sender; `fails`: TempFail so many times first."""

    def __init__(self) -> None:
        self.asked: list[tuple[BounceKind, list[PendingBounce]]] = []
        self.fails = 0
        self.nobody = False
        self.stream = False
        self.original = b""

    async def make(
        self,
        kind: BounceKind,
        pending: list[PendingBounce],
        read_body: ReadBody,
        *,
        msgid: int,
        write_body: WriteBody,
    ) -> NewMessage | None:
        if self.fails:
            self.fails -= 1
            raise TempFail("no answer")
        self.asked.append((kind, pending))
        self.original = await read_body(0, pending[0].size)
        if self.nobody:
            return None
        envelope = make_envelope(msgid, dest=pending[0].envelope.sender, sender="", kind=Kind.MDA)
        if self.stream:
            await write_body(b"DSN ")
            await write_body(b"body\r\n")
            return NewMessage(msgid=msgid, size=10, streamed=True, envelopes=(sealed(envelope),))
        return NewMessage(msgid=msgid, size=5, body=b"DSN\r\n", envelopes=(sealed(envelope),))


def make_envelope(msgid: int, dest: str = "bob@far.example", **fields: Any) -> Envelope:
    defaults: dict[str, Any] = {
        "kind": Kind.MTA,
        "dispatcher": "out",
        "sender": "alice@example.org",
        "rcpt": dest,
        "ctime": T0,
    }
    return Envelope(evpid=msgid << 32 | next(_suffix), dest=dest, **{**defaults, **fields})


def sealed(envelope: Envelope) -> Sealed:
    data = encode_envelope(envelope)
    return Sealed(data, seal(KEY, data))


class Witnesses:
    """Remembers what became of deliveries: (dest, result), or (dest, "expired")."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def ended(self, envelope: Envelope, outcome: Outcome) -> None:
        self.told.append((envelope.dest, outcome.result.value))

    def expired(self, envelope: Envelope) -> None:
        self.told.append((envelope.dest, "expired"))


class Rig:
    """What a test has in hand. `config` may be given; `fatal` collects what would end the role."""

    def __init__(self, folder: Path, clock: Clock, config: Config, paused: tuple[str, ...]) -> None:
        self.clock = clock
        self.output = io.StringIO()
        self.fatal: list[BaseException] = []
        self.mta, self.mda, self.bouncer, self.witness = Keeps(), Keeps(), Tells(), Witnesses()
        self.store = SqliteStore(folder, monotonic=clock.monotonic, on_fatal=self.fatal.append)
        self.queue = Queue(
            store=self.store,
            config=config,
            log=Log(self.output),
            seal_key=KEY,
            bouncer=self.bouncer,
            now=clock.now,
            monotonic=clock.monotonic,
            on_fatal=self.fatal.append,
            paused=paused,
            witness=self.witness,
        )
        self.queue.register("mta", self.mta)
        self.queue.register("mda", self.mda)

    @property
    def log(self) -> list[str]:
        return self.output.getvalue().splitlines()

    async def send(self, *dests: str, body: bytes = b"Subject: x\r\n\r\nhello\r\n", **fields: Any) -> int:
        """Commit a message for these destinations; returns its msgid."""
        (msgid,) = await self.queue.reserve(1)
        fields.setdefault("ctime", int(self.clock.now()))
        envelopes = tuple(sealed(make_envelope(msgid, dest, **fields)) for dest in dests or ("bob@far.example",))
        await self.queue.commit(NewMessage(msgid=msgid, size=len(body), body=body, envelopes=envelopes))
        return msgid

    async def settle(self, attempts: list[Attempt], result: Result, **fields: Any) -> None:
        await self.queue.settle(
            [Outcome(evpid=a.envelope.evpid, attempt=a.attempt, result=result, **fields) for a in attempts]
        )

    async def attempts(self, count: int, of: Keeps | None = None) -> list[Attempt]:
        """The next `count` attempts handed over."""
        deliverer = of or self.mta
        await until(lambda: len(deliverer.attempts) >= count)
        taken = deliverer.take()
        assert len(taken) == count
        return taken

    async def advance(self, seconds: float) -> None:
        """Move the clock and let the queue notice."""
        self.clock.advance(seconds)
        self.queue.wake()
        await calm(self)

    async def holds(self, envelopes: int, messages: int) -> None:
        """Wait until the store holds so many."""
        async with asyncio.timeout(PATIENCE):
            while await self.store.counts() != (envelopes, messages):  # noqa: ASYNC110 - it is on disk
                await asyncio.sleep(0.001)

    async def stored(self) -> int:
        return (await self.store.counts())[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(0.001)


async def calm(rig: Rig) -> None:
    """Wait until the queue has nothing to do: a read round trip behind which nothing is scheduled or being read."""
    for _ in range(6):
        await rig.store.counts()
        await asyncio.sleep(0)
    await until(lambda: not rig.queue.scheduler.is_busy)
    await rig.store.counts()


@asynccontextmanager
async def rig(
    folder: Path,
    *,
    clock: Clock | None = None,
    config: Config | None = None,
    paused: tuple[str, ...] = (),
    start: bool = True,
) -> AsyncIterator[Rig]:
    made = Rig(folder, clock or Clock(), config or make_config(), paused)
    try:
        if start:
            await made.queue.start()
        yield made
    finally:
        await made.queue.close()


def make_config(**fields: Any) -> Config:
    return Config(hostname="mail.example.org", actions={"out": Relay(name="out")}, **fields)


def run(main: Callable[[], Coroutine[Any, Any, None]] | Awaitable[None]) -> None:
    """Run an async test; none takes longer than a minute."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await (main() if callable(main) else main)

    asyncio.run(bounded())
