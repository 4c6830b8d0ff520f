"""`python -m bench`: measure Pillarbox, and Postfix and OpenSMTPD where they are, and print medians and ratios."""

import argparse
import functools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import filters, latency, turns
from bench.disk import fresh_disk
from bench.idle import Idle, raise_descriptors
from bench.load import Sink, Source, finish
from bench.servers import LOCAL, PORT, REMOTE, SERVERS, Missing, Pillarbox, Server, settle
from tests import sandbox

_WARMUP = 100  # messages
_MEMORY_DISPATCHERS = 2
_CONNECTIONS = 1500  # of a run that measures latency
_FILTERED = 3000  # messages of a run with filters


@dataclass(frozen=True)
class Scenario:
    """What is measured until the last message is delivered, by relaying or into a Maildir."""

    name: str
    kind: str
    messages: int
    size: int = 4096


# Durable accept: messages stay in the queue.
ACCEPTING = {
    "accept, 4 KB, kept connections": turns.Load(4096, kept=True),
    "accept, 4 KB, one a connection": turns.Load(4096, kept=False),
    "accept, 64 KB, kept connections": turns.Load(65536, kept=True),
}
SCENARIOS = [
    Scenario("relay end to end, 4 KB", "relay", 2000),
    Scenario("Maildir end to end, 4 KB", "maildir", 2000),
]
Rates = dict[str, dict[str, list[float]]]  # row → server → figures


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--servers", default=",".join(SERVERS), help="of " + ", ".join(SERVERS))
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a fifth of the messages, twice: to see that it works")
    parser.add_argument("--histogram", action="store_true", help="print how long connections took, of every run")
    options = parser.parse_args()
    if not Path("/usr/sbin/smtp-source").exists():
        print("bench: needs smtp-source and smtp-sink (Debian: postfix): tools/setup peers, as root", file=sys.stderr)
        return 1
    if os.geteuid() == 0:
        sandbox.enter()
    else:
        print("bench: not root: Pillarbox alone, in one process, on the disk of the temporary folder", file=sys.stderr)
    names = options.servers.split(",")
    reps, share = (2, 5) if options.quick else (options.reps, 1)
    rates: Rates = defaultdict(lambda: defaultdict(list))
    for title, load in ACCEPTING.items():
        if options.only in title:
            _measure_accepting(title, load, names, rates, rounds=reps * turns.ROUNDS, share=share)
    for scenario in SCENARIOS:
        if options.only in scenario.name:
            for _ in range(reps):
                for name in names:
                    _measure(name, scenario, scenario.messages // share, rates)
    if options.only in "memory":
        for name in names:
            _measure_memory(name, rates)
    if options.only in "latency":
        for _ in range(reps):
            for way in latency.WAYS:
                for name in names:
                    _measure_latency(name, way, _CONNECTIONS // share, rates, show=options.histogram)
    if options.only in "filters":
        for _ in range(reps):
            for name in names:
                _measure_filters(name, _FILTERED // share, rates)
    print(table(rates, names))
    if options.only in "filters":
        print(filters.aims(rates))
    return 0


def _measure_accepting(
    title: str, load: turns.Load, names: Sequence[str], rates: Rates, *, rounds: int, share: int
) -> None:
    def report(name: str, rate: float, cpu: float) -> None:
        rates[f"{title}: messages/s"][name].append(rate)
        rates[f"{title}: CPU ms/message"][name].append(cpu)

    def left_out(why: str) -> None:
        _once(f"bench: left out: {why}")

    turns.measure(names, load, rounds=rounds, share=share, report=report, left_out=left_out)


def _measure(name: str, scenario: Scenario, messages: int, rates: Rates) -> None:
    """One run on a fresh disk. What fails is said and left out."""
    with ExitStack() as stack:
        disk = stack.enter_context(fresh_disk())
        server = SERVERS[name](disk.root / name, deliver=True)
        try:
            server.start()
            stack.callback(server.stop)
            settle()
            rate, cpu = _run(server, scenario, messages)
        except Missing as missing:
            _once(f"bench: left out: {missing}")
            return
        except RuntimeError as failed:
            print(f"bench: {name}, {scenario.name}: {failed}", file=sys.stderr)
            return
    rates[f"{scenario.name}: messages/s"][name].append(rate)
    rates[f"{scenario.name}: CPU ms/message"][name].append(cpu)


def _run(server: Server, scenario: Scenario, messages: int) -> tuple[float, float]:
    """(messages a second, milliseconds of the server's CPU a message)."""
    rcpt = LOCAL.replace("alice", server.user) if scenario.kind == "maildir" else REMOTE
    before = 0
    if scenario.kind == "maildir":
        finish(Source(rcpt, _WARMUP, scenario.size, kept=True))
        before = _WARMUP
    sink = Sink(messages) if scenario.kind == "relay" else None
    try:
        cpu, start = server.cpu(), time.perf_counter()
        source = Source(rcpt, messages, scenario.size, kept=True)

        def undelivered() -> bool:
            return sink.running() if sink is not None else server.delivered() < messages + before

        finish(source, undelivered)
        elapsed = time.perf_counter() - start
        return messages / elapsed, (server.cpu() - cpu) * 1000 / messages
    finally:
        if sink is not None:
            sink.stop()


def _measure_latency(name: str, way: str, count: int, rates: Rates, *, show: bool) -> None:
    try:
        run = latency.measure(name, way, count)
    except (Missing, RuntimeError) as failed:
        _once(f"bench: latency of {name}, {way}, left out: {failed}")
        return
    row = f"latency, one 4 KB message a connection, {way}"
    rates[f"{row}: connections/s"][name].append(run.rate)
    rates[f"{row}: median ms"][name].append(run.quantile(0.5))
    rates[f"{row}: p99 ms"][name].append(run.quantile(0.99))
    rates[f"{row}: CPU ms/connection"][name].append(run.cpu)
    if show:
        print(f"{name}, {way}:\n{latency.histogram(run.taken)}")


def _measure_filters(name: str, messages: int, rates: Rates) -> None:
    """Every setting in turn, so that what the machine does meanwhile falls on all alike."""
    for setting in filters.SETTINGS:
        if name not in setting.servers:
            continue
        try:
            rate, cpu = filters.measure(name, setting, messages)
        except (Missing, RuntimeError) as failed:
            _once(f"bench: {setting.name}, {name}, left out: {failed}")
            continue
        rates[setting.row][name].append(rate)
        rates[f"{setting.name}: CPU ms/message"][name].append(cpu)


def _measure_memory(name: str, rates: Rates) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(fresh_disk(1024))
        raise_descriptors(500)
        server = SERVERS[name](disk.root / name, deliver=False)
        if isinstance(server, Pillarbox):
            server.dispatchers = _MEMORY_DISPATCHERS
        try:
            server.start()
            stack.callback(server.stop)
            settle(2)
            idle = server.memory()
            connections = Idle(PORT, at_once=1)  # OpenSMTPD's listen backlog is 5
            stack.callback(connections.close)
            connections.open(500)
            settle(2)
            busy = server.memory()
        except (Missing, RuntimeError, OSError) as failed:
            _once(f"bench: memory of {name} left out: {failed}")
            return
    rates["memory idle: MB (PSS)"][name].append(idle)
    rates["memory, 500 idle connections: MB (PSS)"][name].append(busy)
    rates["memory of an idle connection: KB"][name].append((busy - idle) * 1024 / 500)


@functools.cache
def _once(line: str) -> None:
    """Say a line the first time."""
    print(line, file=sys.stderr)


def table(rates: Rates, names: Sequence[str]) -> str:
    """Medians with the range, and Pillarbox's ratio to each of the others: the median of the ratios of each round."""
    measured = [name for name in names if any(name in row for row in rates.values())]
    others = [name for name in measured if name != "pillarbox"]
    lines = ["| | " + " | ".join(measured) + "".join(f" | ÷ {name}" for name in others) + " |"]
    lines.append("|---" * (1 + len(measured) + len(others)) + "|")
    for row, figures in rates.items():
        cells = [_cell(figures[name]) if name in figures else "" for name in measured]
        cells += [_ratio(figures["pillarbox"], figures[other]) for other in others]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(ours: Sequence[float], others: Sequence[float]) -> str:
    """Figures at the same place are of the same round; where one is missing, the medians are compared."""
    if not ours or not others or not min(others):
        return ""
    if len(ours) != len(others):
        return f"{statistics.median(ours) / statistics.median(others):.2f}"
    ratios = [one / other for one, other in zip(ours, others, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{statistics.median(ratios):.2f}" + (f" ({low:.2f}-{high:.2f})" if len(ratios) > 4 else "")


def _cell(values: Sequence[float]) -> str:
    digits = 0 if statistics.median(values) >= 20 else 2
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
