"""`python -m bench.crash`: does a crash in the middle of a load lose mail that was acknowledged?

Numbered messages go over several connections to a server that relays them to a recording sink. At some moment every
process of the server is killed; it is started again on the same disk, and what arrives is counted. With `--power-cut`
it is started on a copy of the disk image as written out so far: what a power failure leaves.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from contextlib import ExitStack

from bench.disk import Image
from bench.servers import PORT, REMOTE, SERVERS, SINK_PORT, Missing, Postfix, Server, settle
from tests import sandbox
from tests.system.load import RecordingSink, Sender, Tally


async def crash(server: Server, disk: Image, options: argparse.Namespace) -> Tally:
    """Load, kill, start again, wait until nothing more arrives."""
    tally, stop = Tally(), asyncio.Event()
    sink = await asyncio.start_server(RecordingSink(tally).serve, "127.0.0.1", SINK_PORT, backlog=500, limit=1 << 22)
    async with sink:
        await asyncio.to_thread(server.start)
        settle()
        os.sync()
        senders = [Sender(tally, n, PORT, (REMOTE,), size=options.size, again=True) for n in range(options.sessions)]
        tasks = [asyncio.create_task(sender.run(stop)) for sender in senders]
        wanted = random.randint(options.acks // 2, options.acks)
        end = time.monotonic() + 60
        while len(tally.acknowledged) < wanted and time.monotonic() < end:  # noqa: ASYNC110 - a moment, not an event
            await asyncio.sleep(0.002)
        server.kill_all()
        if options.power_cut:
            disk.cut_power()
        stop.set()
        await asyncio.wait(tasks, timeout=10)
        server.deliver = True
        await asyncio.to_thread(server.start)
        if options.held and isinstance(server, Postfix):
            server.release()
        tally.last = time.monotonic()
        while tally.lost and time.monotonic() < tally.last + options.quiet:  # noqa: ASYNC110 - the last of many
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
    return tally


def main() -> int:
    """Crash each server a few times; exit status 1 where Pillarbox lost a message."""
    parser = argparse.ArgumentParser(prog="bench.crash", description=__doc__)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--power-cut", action="store_true", help="start again on the disk as written out so far")
    parser.add_argument("--held", action="store_true", help="deliver nothing before the crash: all is queued then")
    parser.add_argument("--acks", type=int, default=1500, help="crash after at most this many acknowledgements")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--quiet", type=float, default=15, help="seconds without an arrival until the rest is lost")
    options = parser.parse_args()
    try:
        sandbox.enter()
    except sandbox.Refused as refused:
        print(f"bench.crash: {refused}", file=sys.stderr)
        return 2
    failed = False
    for _ in range(options.reps):
        for name in options.servers.split(","):
            with ExitStack() as stack:
                disk = stack.enter_context(Image(2048))
                server = SERVERS[name](disk.root / name, deliver=not options.held)
                stack.callback(server.stop)
                try:
                    tally = asyncio.run(crash(server, disk, options))
                except Missing as missing:
                    print(f"bench.crash: left out: {missing}")
                    continue
            print(
                f"{name}: acknowledged {len(tally.acknowledged)}, lost {len(tally.lost)}, doubled {tally.doubled}, "
                f"delivered without acknowledgement {len(set(tally.arrived) - tally.acknowledged)}",
                flush=True,
            )
            failed = failed or (name == "pillarbox" and bool(tally.lost))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
