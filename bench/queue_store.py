"""How fast and how large the queue is, in one process: `bench/queue_store.py DIR [messages] [size]`.

DIR should lie on a fresh ext4 image. Prints durable commits a second from 20 concurrent callers with the CPU of one,
the same with each message delivered at once (commit, hand over, settle), and the memory of 100,000 held envelopes.
"""

import argparse
import asyncio
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import uvloop

from pillarbox.conf.model import Config, SchedulerLimits
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result, Sealed, encode_envelope
from pillarbox.mail.seal import seal
from pillarbox.queue.queue import Queue
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.roles.delivery import Attempt
from pillarbox.roles.queue import NewMessage

KEY = bytes(32)


class Discards:
    """A deliverer that has delivered everything at once, reporting in batches as a peer would."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.done = 0
        self.target = 0
        self.reached = asyncio.Event()
        self.outcomes: list[Outcome] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def room(self, destination: str) -> int:
        return 1000

    def deliver(self, attempts: list[Attempt]) -> None:
        if not self.outcomes:
            task = asyncio.get_running_loop().create_task(self.report())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.outcomes += [Outcome(evpid=a.envelope.evpid, attempt=a.attempt, result=Result.OK) for a in attempts]

    async def report(self) -> None:
        await asyncio.sleep(0)
        outcomes, self.outcomes = self.outcomes, []
        await self.queue.settle(outcomes)
        self.done += len(outcomes)
        if self.target and self.done >= self.target:
            self.reached.set()

    async def until(self, count: int) -> None:
        self.target = count
        if self.done < count:
            await self.reached.wait()


class Silent:
    async def make(self, *args: object, **kwargs: object) -> None:
        return None


def sealed(msgid: int, domain: str) -> Sealed:
    envelope = Envelope(
        evpid=msgid << 32 | random.randrange(1, 2**32),
        kind=Kind.MTA,
        dispatcher="out",
        sender="sender@client.example.net",
        rcpt=f"someone@{domain}",
        dest=f"someone@{domain}",
        ctime=int(time.time()),
        smtpname="mail.example.org",
        helo="client.example.net",
        hostname="client.example.net",
        sockaddr="192.0.2.1",
    )
    data = encode_envelope(envelope)
    return Sealed(data, seal(KEY, data))


def make(folder: Path, limits: SchedulerLimits | None = None) -> tuple[Queue, SqliteStore]:
    def fatal(error: BaseException) -> None:
        raise SystemExit(f"fatal: {error}")

    store = SqliteStore(folder, monotonic=time.monotonic, on_fatal=fatal)
    queue = Queue(
        store=store,
        config=Config(hostname="mail.example.org", scheduler=limits or SchedulerLimits()),
        log=Log(sys.stderr),
        seal_key=KEY,
        bouncer=Silent(),
        now=time.time,
        monotonic=time.monotonic,
        on_fatal=fatal,
    )
    return queue, store


async def feed(queue: Queue, count: int, size: int, domains: int, callers: int) -> None:
    body = os.urandom(size)
    left = count

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            (msgid,) = await queue.reserve(1)
            domain = f"d{random.randrange(domains)}.example"
            message = NewMessage(msgid=msgid, size=size, body=body, envelopes=(sealed(msgid, domain),))
            await queue.commit(message)

    await asyncio.gather(*(caller() for _ in range(callers)))


def rss() -> float:
    """Resident megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def measure(folder: Path, count: int, size: int, deliver: bool, domains: int = 1) -> None:
    queue, _ = make(folder)
    discards = Discards(queue)
    if deliver:
        queue.register("mta", discards)
    await queue.start()
    started, cpu = time.perf_counter(), time.process_time()
    await feed(queue, count, size, domains, 20)
    if deliver:
        await discards.until(count)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    what = "commit, deliver, settle" if deliver else "commit"
    print(
        f"{what}: {count / seconds:.0f}/s, {cpu / count * 1e3:.3f} ms CPU a message ({size} bytes, {domains} domains)"
    )
    await queue.close()


async def hold(folder: Path, count: int) -> None:
    queue, _ = make(folder)
    await queue.start()
    await feed(queue, 1000, 4096, 1, 20)
    before = rss()
    await feed(queue, count, 1024, 1000, 100)
    print(f"{count} held: {rss() - before:+.1f} MB ({rss():.1f} in all)")
    await queue.close()
    started = time.perf_counter()
    queue, _ = make(folder)
    await queue.start()
    print(f"start with {count} held: {time.perf_counter() - started:.3f} s")
    after = shown = 0
    started = time.perf_counter()
    while rows := await queue.show(after, 1000):
        after, shown = rows[-1].envelope.evpid, shown + len(rows)
    print(f"show: {shown} in {time.perf_counter() - started:.1f} s, {rss():.1f} MB")
    await queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("messages", type=int, nargs="?", default=10000)
    parser.add_argument("size", type=int, nargs="?", default=4096)
    parser.add_argument("--hold", type=int, default=100_000)
    arguments = parser.parse_args()
    for number, (deliver, domains) in enumerate(((False, 1), (True, 1), (True, 1000))):
        folder = arguments.folder / f"queue{number}"
        uvloop.run(measure(folder, arguments.messages, arguments.size, deliver, domains))
        shutil.rmtree(folder)
    if arguments.hold:
        uvloop.run(hold(arguments.folder / "held", arguments.hold))


if __name__ == "__main__":
    main()
