"""Load: Postfix's `smtp-source` in several processes, and `smtp-sink` to relay to."""

import subprocess
import time
from collections.abc import Callable

from bench.servers import PORT, SINK_PORT
from tests.system.server import bound_ports, wait_for

SESSIONS = 20
# Several processes, started apart: one opens all its sessions in one burst, which overflows a short listen backlog.
_PROCESSES, _APART = 4, 0.015
_SINK = f"127.0.0.1:{SINK_PORT}"
_DEADLINE = 180.0  # seconds a run may take


class Source:
    """`messages` messages of `size` bytes to `rcpt` over SESSIONS connections, kept or one a message."""

    def __init__(self, rcpt: str, messages: int, size: int, *, kept: bool, port: int = PORT) -> None:
        self.processes = []
        for number in range(_PROCESSES):
            share = messages // _PROCESSES + (number < messages % _PROCESSES)
            argv = ["/usr/sbin/smtp-source", "-4", "-C", "20", "-s", str(SESSIONS // _PROCESSES), "-m", str(share)]
            argv += ["-l", str(size), "-M", "client.bench.test", "-f", "sender@client.bench.test", "-t", rcpt]
            argv += [*(["-d"] if kept else []), f"127.0.0.1:{port}"]
            self.processes.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
            time.sleep(_APART)

    def running(self) -> bool:
        """Are messages still to be sent?"""
        return any(process.poll() is None for process in self.processes)

    def problem(self) -> str:
        """What a process complained about, "" when all ended well."""
        for process in self.processes:
            if process.poll():
                assert process.stderr is not None
                return process.stderr.read().decode(errors="replace").strip()[-300:] or f"exit {process.returncode}"
        return ""

    def stop(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


class Sink:
    """`smtp-sink`, which ends by itself after `messages` messages."""

    def __init__(self, messages: int) -> None:
        self.process = subprocess.Popen(
            [
                "/usr/sbin/smtp-sink",
                "-u",
                "nobody",
                "-m",
                "1000",
                "-M",
                str(messages),
                f"127.0.0.1:{SINK_PORT}",
                "1000",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: SINK_PORT in bound_ports(), 5)

    def running(self) -> bool:
        """Are messages still to come?"""
        return self.process.poll() is None

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def finish(source: Source, undelivered: Callable[[], bool] = lambda: False) -> None:
    """Wait until all is sent and delivered. Raises RuntimeError."""
    end = time.monotonic() + _DEADLINE
    try:
        while source.running() or undelivered():
            if problem := source.problem():
                raise RuntimeError(problem)
            if time.monotonic() > end:
                raise RuntimeError(f"not done after {_DEADLINE:.0f} s")
            time.sleep(0.005)
        if problem := source.problem():
            raise RuntimeError(problem)
    finally:
        source.stop()
