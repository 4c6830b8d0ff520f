"""Messages a second that the delivery agent alone puts durably into one user's Maildir.

    python bench/maildir_delivery.py DIRECTORY [--messages 3000] [--size 4096] [--users 1] [--uid 65534]

Runs `Deliveries`, `Agent` and its delivery process with a queue in memory. DIRECTORY should be on the disk to be
measured: a fresh ext4 image (mount one with `-o loop`) gives figures that compare. As root, each delivery runs under
--uid; otherwise under the caller.
"""

import argparse
import asyncio
import io
import os
import sys
import time
from collections import deque
from typing import Any

from pillarbox.conf.model import Config, Local
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result
from pillarbox.mda.agent import Agent
from pillarbox.mda.deliveries import Deliveries
from pillarbox.mda.process import DeliveryProcess
from pillarbox.roles.delivery import Attempt
from pillarbox.roles.lookup import User


class Directory:
    """Answers the one question that a delivery asks of lookup."""

    def __init__(self, home: str, uid: int, gid: int) -> None:
        self._home, self._uid, self._gid = home, uid, gid

    async def user(self, generation: int, table: str, name: str) -> User:
        return User(name=name, uid=self._uid, gid=self._gid, home=f"{self._home}/{name}")


class Source:
    """The queue: hands out attempts while there is room, and counts outcomes."""

    def __init__(self, total: int, size: int, users: int) -> None:
        line = b"x" * 70 + b"\r\n"
        body = b"Subject: bench\r\n\r\n" + line * ((size - 18) // len(line))
        self.left = deque(range(1, total + 1))
        self.done, self.bad, self.total = 0, 0, total
        self.body, self.users = body, users
        self.finished = asyncio.Event()
        self.deliveries: Deliveries | None = None

    async def settle(self, outcomes: list[Outcome]) -> None:
        self.done += len(outcomes)
        self.bad += sum(o.result is not Result.OK for o in outcomes)
        assert self.deliveries is not None
        self.deliveries.settled(outcomes)
        self.pump("")
        if self.done >= self.total:
            self.finished.set()

    def pump(self, _: str) -> None:
        assert self.deliveries is not None
        for user in range(self.users):
            room = self.deliveries.room(f"u{user}")
            attempts = [self._attempt(self.left.popleft(), f"u{user}") for _ in range(min(room, len(self.left)))]
            if attempts:
                self.deliveries.deliver(attempts)

    def _attempt(self, number: int, user: str) -> Attempt:
        address = f"{user}@example.org"
        envelope = Envelope(
            evpid=number << 32 | 1,
            kind=Kind.MDA,
            dispatcher="local",
            sender="s@example.net",
            rcpt=address,
            dest=address,
            ctime=int(time.time()),
            mda_user=user,
        )
        return Attempt(envelope=envelope, attempt=1, destination=user, size=len(self.body), body=self.body)


async def measure(options: argparse.Namespace) -> float:
    uid, gid = (options.uid, options.uid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    for user in range(options.users):
        home = f"{options.directory}/u{user}"
        os.makedirs(home, exist_ok=True)
        os.chown(home, uid, gid)
    config = Config(hostname="bench", actions={"local": Local(name="local", method="maildir")})
    log = Log(io.StringIO() if options.quiet else sys.stderr)
    # Only what a delivery asks of them.
    source: Any = Source(options.messages, options.size, options.users)
    process = DeliveryProcess(log=log)
    agent = Agent(config=config, queue=source, log=log, now=time.time, libexec="", process=process)
    lookup: Any = Directory(options.directory, uid, gid)
    source.deliveries = deliveries = Deliveries(
        config=config, lookup=lookup, agent=agent, settle=source.settle, ready=source.pump, log=log, now=time.time
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(agent.run()), group.create_task(deliveries.run())]
        begin = time.monotonic()
        source.pump("")
        await source.finished.wait()
        took = time.monotonic() - begin
        for task in tasks:
            task.cancel()
    assert not source.bad, f"{source.bad} deliveries failed"
    return float(options.messages / took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--uid", type=int, default=65534)
    parser.add_argument("--log", dest="quiet", action="store_false", help="show log lines")
    options = parser.parse_args()
    rate = asyncio.run(measure(options))
    print(f"{rate:.0f} messages/s into Maildir ({options.size} bytes, {options.users} users)")


if __name__ == "__main__":
    main()
