"""How many connections with one message each a server takes a second, with and without TLS, and how long each takes."""

import json
import subprocess
import sys
import time
from pathlib import Path

from bench.disk import fresh_disk
from bench.servers import PORT, REMOTE, SERVERS, settle

WAYS = ("plain", "starttls")
_PROCESSES, _SESSIONS = 2, 10  # of each
_WARMUP = 40
_DEADLINE = 180.0
_TOP = Path(__file__).resolve().parents[1]
_BAR = 40  # characters


class Run:
    """One run: seconds of each connection, and of the whole."""

    def __init__(self, taken: list[float], seconds: float, cpu: float) -> None:
        self.taken, self.seconds, self.cpu = sorted(taken), seconds, cpu

    @property
    def rate(self) -> float:
        """Connections, with their message, a second."""
        return len(self.taken) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share was done."""
        return self.taken[min(len(self.taken) - 1, int(len(self.taken) * share))] * 1000


def measure(name: str, way: str, count: int) -> Run:
    """One run on a fresh disk; the queue holds everything. Raises servers.Missing or RuntimeError."""
    with fresh_disk() as disk:
        server = SERVERS[name](disk.root / name, deliver=False, tls=way == "starttls")
        server.start()
        try:
            settle()
            _load(way, _WARMUP)
            cpu, start = server.cpu(), time.perf_counter()
            taken = _load(way, count)
            return Run(taken, time.perf_counter() - start, (server.cpu() - cpu) * 1000 / count)
        finally:
            server.stop()


def _load(way: str, count: int) -> list[float]:
    share = str(max(1, count // _PROCESSES))
    argv = [sys.executable, "-m", "bench.client", str(PORT), way, share, str(_SESSIONS), REMOTE]
    processes = [
        subprocess.Popen(argv, cwd=_TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(_PROCESSES)
    ]
    taken: list[float] = []
    for process in processes:
        try:
            told, complaint = process.communicate(timeout=_DEADLINE)
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"not done after {_DEADLINE:.0f} s") from late
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(complaint.decode(errors="replace").strip()[-300:])
        taken += json.loads(told)
    return taken


def histogram(taken: list[float]) -> str:
    """How many took how long, each row twice the one before it."""
    rows: dict[int, int] = {}
    for seconds in taken:
        row = max(0, int(seconds * 1000)).bit_length()
        rows[row] = rows.get(row, 0) + 1
    most = max(rows.values(), default=1)
    return "\n".join(
        f"  {'<' if row else '≤'} {1 << row:5} ms {rows.get(row, 0):6} {'#' * round(rows.get(row, 0) / most * _BAR)}"
        for row in range(min(rows, default=0), max(rows, default=0) + 1)
    )
