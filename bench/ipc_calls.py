"""What a call between roles costs: round trips a second over a socketpair, and CPU a call at each end.

python bench/ipc_calls.py [CALLS] [CONCURRENT] [BYTES]
"""

import asyncio
import os
import resource
import socket
import sys
import time
from typing import Any, Protocol

import uvloop

from pillarbox.daemon import ipc
from pillarbox.log import stderr_log


class Echo(Protocol):
    async def take(self, number: int, body: bytes) -> int: ...


INTERFACE = ipc.Interface({"echo": Echo})


class Service:
    async def take(self, number: int, body: bytes) -> int:
        return number


async def serve(connection: socket.socket) -> None:
    ended = asyncio.Event()
    handlers = {("echo", "take"): Service().take}
    await asyncio.get_running_loop().create_connection(
        lambda: ipc.Link(
            peer="client", interface=INTERFACE, serve=handlers, log=stderr_log(), lost=lambda _: ended.set()
        ),
        sock=connection,
    )
    await ended.wait()


async def ask(connection: socket.socket, calls: int, concurrent: int, size: int) -> float:
    port = ipc.Port("echo")
    _, port.link = await asyncio.get_running_loop().create_connection(
        lambda: ipc.Link(peer="echo", interface=INTERFACE, serve={}, log=stderr_log()), sock=connection
    )
    echo: Any = ipc.proxy(INTERFACE, "echo", port)
    body = os.urandom(size)

    async def worker() -> None:
        for number in range(calls // concurrent):
            await echo.take(number, body)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrent)))
    return time.perf_counter() - started


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    calls, concurrent, size = [int(a) for a in sys.argv[1:]] + [40000, 20, 4096][len(sys.argv) - 1 :]
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        before = cpu()
        uvloop.run(serve(theirs))
        print(f"served: {(cpu() - before) / calls * 1e6:.1f} us CPU a call", flush=True)
        os._exit(0)
    theirs.close()
    before = cpu()
    took = uvloop.run(ask(ours, calls, concurrent, size))
    print(f"{calls / took:.0f} calls/s; asked: {(cpu() - before) / calls * 1e6:.1f} us CPU a call")
    ours.close()
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
