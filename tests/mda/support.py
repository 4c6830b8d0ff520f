"""What the tests of local delivery share: a queue in memory, a real delivery process, directories a user may enter."""

import asyncio
import io
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pillarbox.conf.model import Config, Local
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome
from pillarbox.mda.agent import Agent
from pillarbox.mda.process import DeliveryProcess
from pillarbox.roles.delivery import LocalDelivery

AS_ROOT = os.geteuid() == 0
UID, GID = (65534, 65534) if AS_ROOT else (os.geteuid(), os.getegid())
BODY = b"Subject: t\r\n\r\nhello\r\nFrom here\r\n\r\nFrom there\r\n"
LOCAL_BODY = b"Subject: t\n\nhello\nFrom here\n\nFrom there\n"


class MemoryQueue:
    """Bodies to read, and outcomes as they are settled."""

    def __init__(self) -> None:
        self.bodies: dict[int, bytes] = {}
        self.outcomes: list[Outcome] = []
        self.refuse: list[Exception] = []
        self.largest = 0
        self.changed = asyncio.Event()

    async def settle(self, outcomes: list[Outcome]) -> None:
        self.changed.set()
        if self.refuse:
            raise self.refuse.pop(0)
        self.outcomes += outcomes

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        self.largest = max(self.largest, count)
        return self.bodies[msgid][offset : offset + count]


class World:
    """An agent with everything around it; `home` belongs to the user that deliveries run as."""

    def __init__(self, home: str, **actions: Local) -> None:
        self.home = home
        self.queue = MemoryQueue()
        self.text = io.StringIO()
        self.log = Log(self.text)
        self.config = Config(hostname="mx.example.org", actions=dict(actions), mda_wrappers={"w": "env W=1 %{mda}"})
        self.process = DeliveryProcess(log=self.log)
        self.agent = Agent(
            config=self.config,
            queue=self.queue,  # type: ignore[arg-type]
            log=self.log,
            now=time.time,
            libexec="/nonexistent",
            process=self.process,
        )

    def order(
        self, number: int, action: str, *, body: bytes = BODY, stream: bool = False, **more: object
    ) -> LocalDelivery:
        envelope = {
            "sender": "s@x.example",
            "rcpt": "alice@example.org",
            "dest": "alice@example.org",
            "mda_user": "alice",
        }
        delivery = {"user": "alice", "uid": UID, "gid": GID, "home": self.home}
        delivery |= {k: more.pop(k) for k in list(more) if k in delivery}
        envelope |= more  # type: ignore[arg-type]
        if stream:
            self.queue.bodies[number] = body
        return LocalDelivery(
            envelope=Envelope(
                evpid=number << 32 | 1,
                kind=Kind.MDA,
                dispatcher=action,
                ctime=int(time.time()),
                **envelope,  # type: ignore[arg-type]
            ),
            attempt=1,
            generation=0,
            size=len(body),
            body=b"" if stream else body,
            **delivery,  # type: ignore[arg-type]
        )

    async def until(self, test: Callable[[], bool]) -> None:
        """Wait until the outcomes that were settled satisfy `test`."""
        async with asyncio.timeout(20):
            while not test():
                self.queue.changed.clear()
                await self.queue.changed.wait()

    async def outcomes(self, count: int) -> list[Outcome]:
        """Wait until so many were settled; in the order of their envelopes."""
        await self.until(lambda: len(self.queue.outcomes) >= count)
        return sorted(self.queue.outcomes, key=lambda o: o.evpid)


def in_world(body: Callable[[World], Awaitable[None]], **actions: Local) -> None:
    """Run a test with a running agent."""
    home = tempfile.mkdtemp(prefix="pillarbox-mda-")
    os.chmod(home, 0o755)
    os.chown(home, UID, GID)

    async def run() -> None:
        world = World(home, **actions)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(world.agent.run())
            await body(world)
            task.cancel()

    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(home)


def read_tree(top: str) -> dict[str, bytes]:
    """The files under a directory by their relative paths."""
    return {str(path.relative_to(top)): path.read_bytes() for path in Path(top).rglob("*") if path.is_file()}


def deliver(*orders: Callable[[World], LocalDelivery], **actions: Local) -> tuple[list[Outcome], str, dict[str, bytes]]:
    """Deliver and return outcomes, log, and the files under the home."""
    seen: dict[str, bytes] = {}
    outcomes: list[Outcome] = []
    log = ""

    async def body(world: World) -> None:
        nonlocal outcomes, log
        await world.agent.deliver([order(world) for order in orders])
        outcomes = await world.outcomes(len(orders))
        log = world.text.getvalue()
        seen.update(read_tree(world.home))

    in_world(body, **actions)
    return outcomes, log, seen
