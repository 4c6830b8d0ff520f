"""A running Pillarbox for tests: started from a file as a user would, asked with `smtpctl`, stopped, killed."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.system.programs import Programs

BIN = Path(sys.executable).parent


class Wiring(StrEnum):
    """How the roles are put together; everything is tested in both."""

    ONE = "one-process"
    MANY = "many-processes"


@dataclass(frozen=True)
class Result:
    """What a program answered."""

    exit: int
    out: str
    err: str


_programs = Programs()


def run(argv: Sequence[str], *, stdin: str = "", user: str = "", env: dict[str, str] | None = None) -> Result:
    """Run one of the programs that the package installs, or any other by its path, to its end. Text is latin-1."""
    environ = {**os.environ, **(env or {})}
    data = stdin.encode("latin-1")
    if "/" not in argv[0]:
        status, out, err = _programs.run(list(argv), data, user, environ)
    else:
        done = subprocess.run(
            argv, input=data, capture_output=True, timeout=60, check=False, user=user or None, env=environ, cwd="/"
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    return Result(status, out.decode("latin-1"), err.decode("latin-1"))


@dataclass
class Server:
    """`smtpd -d`. `folder` takes configuration, state and log; it must be readable by the role users."""

    folder: Path
    config: str
    wiring: Wiring = Wiring.ONE
    args: Sequence[str] = ()
    dispatchers: int = 1
    state: Path = field(init=False)
    launched_at: int = 0  # where in the log
    process: subprocess.Popen[bytes] | None = None
    deadline: float = 30.0  # seconds until it listens
    prefix: Sequence[str] = ()  # a program that starts it, e.g. under a limit
    path: str = ""  # a folder to look for programs in, beside the usual ones

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.state = self.folder / "state"
        self.conf = self.folder / "smtpd.conf"
        self.log_path = self.folder / "log"
        self.conf.write_text(self.config)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line that starts it."""
        argv = [*self.prefix, str(BIN / "smtpd"), "-d", "-f", str(self.conf), "--state", str(self.state)]
        argv += ["--one-process"] if self.wiring is Wiring.ONE else ["--dispatchers", str(self.dispatchers)]
        return [*argv, *self.args]

    def start(self) -> None:
        """Start it and wait until it listens; raises AssertionError with the log where it does not."""
        self.launch()
        assert self.wait_listening(), f"the server did not start:\n{self.log()[-3000:]}"

    def launch(self) -> None:
        """Start it without waiting."""
        with self.log_path.open("ab") as log:
            self.launched_at = log.tell()
            environ = {**os.environ, "PATH": f"{self.path}:{os.environ['PATH']}"} if self.path else None
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=environ,
            )

    def wait_listening(self) -> bool:
        """Wait until all roles are ready and every port is bound; False if it ended or was not in time."""
        ports = {int(p) for p in re.findall(r"^\s*listen on .*?\bport (\d+)", self.config, re.MULTILINE)}
        end = time.monotonic() + self.deadline
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                return False
            if "info: ready\n" in self.log()[self.launched_at :] and ports <= bound_ports():
                return True
            time.sleep(0.02)
        return False

    def stop(self, patience: float = 15.0) -> int:
        """SIGTERM; SIGKILL to what is left after `patience` seconds. Returns the exit status."""
        if self.process is None:
            return 0
        processes = self.pids()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        for pid in processes:
            kill(pid, signal.SIGKILL)
        status = self.process.wait(10)
        self.process = None
        return status

    def kill_all(self) -> None:
        """SIGKILL every process of it at once: what a crash of the machine does to them."""
        assert self.process is not None
        processes = self.pids()
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for pid in processes:
                kill(pid, signum)
        self.process.wait(10)
        self.process = None

    def pids(self) -> list[int]:
        """The server's processes, the first one first."""
        return [] if self.process is None else tree(self.process.pid)

    def log(self) -> str:
        """All it said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def ctl(self, *args: str, program: str = "smtpctl", stdin: str = "", user: str = "") -> Result:
        """Run smtpctl (or mailq, sendmail) for this server."""
        return run([program, *args], stdin=stdin, user=user, env={"PILLARBOX_STATE": str(self.state)})

    def queue(self) -> list[list[str]]:
        """The rows of `smtpctl show queue`, split into fields."""
        result = self.ctl("show", "queue")
        assert result.exit == 0, f"show queue: {result}"
        return [row.split("|") for row in result.out.splitlines()]

    def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing is queued."""
        return wait_for(lambda: not self.queue(), seconds, every=0.2)

    def wipe(self) -> None:
        """Forget everything: the next start is a first start."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.log_path.unlink(missing_ok=True)


def wait_for(condition: Callable[[], object], seconds: float, *, every: float = 0.03) -> bool:
    """Ask `condition()` until it holds; False when it did not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


_GIVEN: deque[int] = deque(maxlen=50)  # ports that were named last


def free_port() -> int:
    """A port of loopback that nothing uses: a configuration needs a number before the server binds it.

    The kernel may name one again that nobody has bound yet: whoever asks for several gets different ones.
    """
    port = 0
    while port in (0, *_GIVEN):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    _GIVEN.append(port)
    return port


def bound_ports() -> set[int]:
    """The TCP ports that are listened on (proc(5): state 0A)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def answers(path: Path) -> bool:
    """Does somebody accept on this socket?"""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def tree(root: int) -> list[int]:
    """A process and its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop(0)
        found.append(pid)
        todo += children.get(pid, [])
    return found


def _processes() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(entry.name), int(fields[1])


def kill(pid: int, signum: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
