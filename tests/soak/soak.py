"""A soak: honest load for some minutes, with and without clients that misbehave beside it, and what it left behind."""

import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.honest import Load, Window
from tests.soak.priority import prefer, preferred
from tests.system.certificates import write_pair
from tests.system.load import Tally, read_maildir
from tests.system.server import BIN, Server, Wiring, free_port, tree, wait_for
from tests.system.test_crash import make_server
from tests.system.test_limits import memory

ATTACKERS = 200
_TOP = Path(__file__).resolve().parents[2]
_TASKS = re.compile(r"debug: smtp: (\d+) sessions?, (\d+) tasks?")


@dataclass(frozen=True)
class Plan:
    """How long: `rounds` of a quiet and an attacked window, after one that is only there to warm up."""

    rounds: int
    quiet: float  # seconds
    attacked: float
    vanishing: bool = False  # with clients that vanish without a word, which the server keeps for five minutes
    settle: float = 30.0  # seconds until everything must be gone


@dataclass(frozen=True)
class Footprint:
    """What a server at rest holds, all of its processes together."""

    processes: int
    descriptors: Counter[str]  # by what they are
    tasks: int  # of dispatchers
    kilobytes: int

    def __str__(self) -> str:
        return (
            f"{self.processes} processes, {self.descriptors.total()} descriptors, {self.tasks} tasks, "
            f"{self.kilobytes / 1024:.1f} MB"
        )


@dataclass
class Outcome:
    """What a soak found."""

    before: Footprint
    after: Footprint
    windows: list[Window]
    tally: Tally
    arrived: Counter[str]
    problems: list[str]
    misbehaved: Counter[str] = field(default_factory=Counter)

    def p99(self, *, attacked: bool) -> float:
        """Seconds: the median of the windows' 99th percentiles, which one bad moment of the machine does not move."""
        return statistics.median(w.quantile(0.99) for w in self.windows if w.attacked == attacked)

    def cpu(self, *, attacked: bool) -> float:
        """What the server used in these windows, in processors."""
        return statistics.median(w.cpu for w in self.windows if w.attacked == attacked)

    def __str__(self) -> str:
        lines = [
            f"before: {self.before}",
            f"after:  {self.after}",
            f"{len(self.tally.acknowledged)} honest messages, {self.misbehaved.total()} connections that misbehaved: "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.misbehaved.items())),
        ]
        for window in self.windows:
            lines.append(
                f"{'attacked' if window.attacked else 'quiet':8} {len(window.seconds):5} messages: "
                f"median {window.quantile(0.5) * 1000:.1f} ms, p99 {window.quantile(0.99) * 1000:.1f} ms, "
                f"CPU {window.cpu * 100:.0f} %"
            )
        lines.append(
            f"p99 {self.p99(attacked=False) * 1000:.1f} ms quiet, {self.p99(attacked=True) * 1000:.1f} attacked; "
            f"CPU {self.cpu(attacked=False) * 100:.0f} % quiet, {self.cpu(attacked=True) * 100:.0f} attacked"
        )
        return "\n".join(lines)


def soak(folder: Path, wiring: Wiring, plan: Plan) -> Outcome:
    """Run it. Raises AssertionError with the log where the server does not come to rest."""
    port, smtps = free_port(), free_port()
    server = _server(folder, wiring, port, smtps)
    tally = Tally()
    with server, preferred():
        prefer(server.pids())
        load = Load(port, tally)
        warm = asyncio.run(_rounds(server, load, Plan(1, 1, 4, plan.vanishing), (port, smtps)))
        before = at_rest(server, plan)
        load.windows.clear()
        misbehaved = warm + asyncio.run(_rounds(server, load, plan, (port, smtps)))
        after = at_rest(server, plan)
        assert wait_for(lambda: tally.acknowledged <= set(read_maildir(_maildir(folder)).arrived), 60, every=1)
        arrived = read_maildir(_maildir(folder)).arrived
        assert not re.search(r"Traceback|internal error", server.log()), server.log()[-3000:]
    return Outcome(before, after, load.windows, tally, arrived, load.problems, misbehaved)


def _server(folder: Path, wiring: Wiring, port: int, smtps: int) -> Server:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    server = make_server(folder, wiring, free_port(), port)
    write_pair(folder / "cert", folder / "key", "mail.bench.test")
    pki = f'pki "mx" cert "{folder}/cert"\npki "mx" key "{folder}/key"\n'
    plain = server.config.replace("hostname mail.bench.test", 'hostname mail.bench.test tls pki "mx"')
    server.config = f'{pki}{plain}listen on 127.0.0.1 port {smtps} smtps pki "mx"\n'
    server.conf.write_text(server.config)
    return server


def _maildir(folder: Path) -> Path:
    return folder / "mail/Maildir"


async def _rounds(server: Server, load: Load, plan: Plan, ports: tuple[int, int]) -> Counter[str]:
    """Quiet and attacked windows in turn, so that both see the machine as it is."""
    stop, done = asyncio.Event(), Counter[str]()
    load.begin(attacked=False)
    running = asyncio.create_task(load.run(stop))
    load.windows.clear()
    for _ in range(plan.rounds):
        await _window(server, load, plan.quiet, attacked=False)
        with attackers(ports, plan, done):
            await _between(load, 2)  # they all come at once
            await _window(server, load, plan.attacked, attacked=True)
        await _between(load, 1)  # and leave at once
    stop.set()
    await running
    return done


async def _window(server: Server, load: Load, seconds: float, *, attacked: bool) -> None:
    load.begin(attacked=attacked)
    window, used, start = load.windows[-1], _cpu(server), time.monotonic()
    await asyncio.sleep(seconds)
    window.cpu = (_cpu(server) - used) / (time.monotonic() - start)


async def _between(load: Load, seconds: float) -> None:
    """Some time that belongs to no window."""
    load.begin(attacked=False)
    await asyncio.sleep(seconds)
    load.windows.pop()


@contextlib.contextmanager
def attackers(ports: tuple[int, int], plan: Plan, done: Counter[str]) -> Iterator[None]:
    """The clients that misbehave; what they did is added to `done`."""
    argv = [str(BIN / "python"), "-m", "tests.soak.clients", *map(str, ports), str(ATTACKERS)]
    argv += ["vanish"] if plan.vanishing else []
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_TOP, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        told, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        done.update(json.loads(told))
    finally:
        process.kill()
        process.wait()


def at_rest(server: Server, plan: Plan) -> Footprint:
    """Wait until there are no sessions and no mail, and until nothing gets less any more."""

    def idle() -> bool:
        shown = server.ctl("show", "stats").out
        return "smtp.session=0\n" in shown and not server.queue()

    assert wait_for(idle, plan.settle, every=0.5), (
        f"sessions stay\n{server.ctl('show', 'stats').out}{_open(server.log())}"
    )
    last, end = _footprint(server), time.monotonic() + 15
    while time.monotonic() < end:
        time.sleep(1.5)
        now = _footprint(server)
        if (
            now.descriptors.total() >= last.descriptors.total()
            and now.tasks >= last.tasks
            and now.processes >= last.processes
        ):
            return now
        last = now
    return last


def _open(log: str) -> str:
    """The log lines of sessions that did not end."""
    sessions: dict[str, list[str]] = {}
    for line in log.splitlines():
        session, _, what = line.partition(" smtp ")
        sessions.setdefault(session, []).append(what)
        if what.startswith("disconnected"):
            del sessions[session]
    return "\n".join(f"{session}: {lines[-4:]}" for session, lines in sessions.items() if lines[-1])


def _footprint(server: Server) -> Footprint:
    assert server.process is not None
    pids = tree(server.process.pid)
    descriptors = Counter[str]()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                descriptors[re.sub(r"\d+", "N", os.readlink(entry))] += 1
    return Footprint(len(pids), descriptors, _tasks(server), memory(server.process.pid))


def _cpu(server: Server) -> float:
    """Seconds of CPU that the server has used so far, children that ended included."""
    assert server.process is not None
    ticks = 0
    for pid in tree(server.process.pid):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _tasks(server: Server) -> int:
    """What dispatchers say when they are asked to say more."""
    start = len(server.log())
    server.ctl("log", "verbose")
    assert wait_for(lambda: _TASKS.search(server.log(), start), 10)
    server.ctl("log", "brief")
    return sum(int(found[2]) for found in _TASKS.finditer(server.log(), start))
