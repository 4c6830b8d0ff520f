"""Accepting, measured in turns: all servers run side by side; one after the other is loaded, for a second and a half.

What the machine does besides changes from second to second by more than what is to be compared. So the turns are short,
their order in a round is left to chance, and figures are compared within a round. Each server has a disk of its own;
before a turn everything is written out, so that nobody pays for what another left in memory.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.disk import fresh_disk
from bench.load import Source, finish
from bench.servers import PORT, REMOTE, SERVERS, Missing, Server, settle

ROUNDS = 3  # for each repetition that is asked for
_SECONDS = 1.5  # that a turn is to take
_WARMUP = 100  # messages
_PILOT = 500  # messages, whose rate says how many make a turn
_DISK = 8192  # MB: all that was accepted stays in the queue

Report = Callable[[str, float, float], None]  # of a turn: the server, messages a second, its CPU in ms a message


class Load:
    """What every turn sends: messages of `size` bytes, on connections that are kept or one a message."""

    def __init__(self, size: int, *, kept: bool) -> None:
        self._size, self._kept = size, kept

    def run(self, server: Server, messages: int) -> tuple[float, float]:
        """(messages a second, milliseconds of the server's CPU a message). Raises RuntimeError."""
        cpu, start = server.cpu(), time.perf_counter()
        finish(Source(REMOTE, messages, self._size, kept=self._kept, port=server.port))
        elapsed = time.perf_counter() - start
        return messages / elapsed, (server.cpu() - cpu) * 1000 / messages


def measure(
    names: Sequence[str], load: Load, *, rounds: int, share: int, report: Report, left_out: Callable[[str], None]
) -> None:
    """Measure these servers. `share`: a turn is so many times shorter. What fails is told to `left_out`."""
    with ExitStack() as stack:
        turns: list[tuple[str, Server, int]] = []
        for number, name in enumerate(names):
            try:
                server = _start(name, PORT + 2 * number, stack)
                load.run(server, _WARMUP)
                rate, _ = load.run(server, _PILOT)
            except (Missing, RuntimeError) as missing:
                left_out(f"{name}: {missing}")
                continue
            turns.append((name, server, max(_PILOT, int(rate * _SECONDS)) // share))
        for _ in range(rounds):
            for name, server, messages in random.sample(turns, len(turns)):
                os.sync()
                try:
                    report(name, *load.run(server, messages))
                except RuntimeError as failed:
                    left_out(f"{name}: {failed}")
                    return  # a round that is not whole cannot be compared


def _start(name: str, port: int, stack: ExitStack) -> Server:
    disk = stack.enter_context(fresh_disk(_DISK))
    server = SERVERS[name](disk.root / name, deliver=False, port=port)
    server.start()
    stack.callback(server.stop)
    settle()
    return server
