"""Programs that are not ours: started as a user without rights, their error output logged, ended with all they started.

Each has a session of its own, so that it cannot reach the terminal that we were started from, a clean environment, / as
its directory (that of another root, where it has one), one socket as standard input and output, and a pipe for standard
error, which is read line by line into the log and no faster than a log can take. What it says on its standard output is
not for the parent: the other end of the socket goes to whoever talks to it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from pillarbox.daemon.hanging import Hanging
from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.programs import confined
from pillarbox.daemon.programs.errorlines import ErrorLines
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.log import Log

GRACE = 0.5  # seconds to end by itself, at the end of file of its standard input
GONE = 2.0  # seconds after SIGKILL; what the kernel holds longer is left to it
START = 20.0  # seconds until it is executed: its file may lie on a file server that hangs
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = ("TZ", "LANG", "LC_ALL", "LC_CTYPE")  # of our own environment


class Identity(NamedTuple):
    """Whom a program runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class _Program(NamedTuple):
    """What to execute. `root`: "" or what it sees as /; only root can do that, and only then does the path matter."""

    path: str
    argv: list[str]
    identity: Callable[[], Identity | None] | None
    root: str

    def confined(self, identity: Identity | None) -> tuple[str, list[str]]:
        """The same by way of `daemon/programs/confined`, which needs all rights to begin with."""
        ids = [*map(str, identity[:2]), ",".join(map(str, identity.groups))] if identity is not None else ["", "", ""]
        # -I and -S: nothing of ours, and nobody's settings, is loaded into a process that has all rights.
        return sys.executable, [sys.executable, "-I", "-S", confined.__file__, self.root, *ids, self.path, *self.argv]


class _Running:
    """A program that was started."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", errors: ErrorLines) -> None:
        self.name = name
        self.process = process
        self.errors = errors
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unwanted = False  # its socket is closed: it should end
        self.killed = False  # by us


class Programs:
    """Runs programs, each under a key: starting one ends the one that had its key.

    `says_end`: log the end of one that nobody wanted to end, even if it says that all is well.

    `account()`: whom they run as who name nobody, asked when the first is started; None: whoever we are.
    """

    def __init__(self, *, account: Callable[[], Account] | None, log: Log, says_end: bool = True) -> None:
        self._account = account
        self._default: Identity | None = None
        self._says_end = says_end
        self._log = log
        # One start of a file at a time, and none while an earlier one hangs that was given up.
        self._starting = Hanging(log, at_place=1)
        self._running: dict[str, _Running] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(
        self,
        key: str,
        name: str,
        path: str,
        arguments: Sequence[str],
        *,
        argv0: str = "",
        identity: "Callable[[], Identity | None] | None" = None,
        root: str = "",
    ) -> socket.socket:
        """Start a program; `name` is what the log calls it. TempFail: it cannot be executed.

        `argv0`: its first argument, else `name`. `identity()`: whom it runs as, None where it does not say; asked in a
        thread, for it may ask a name service. `root`: what it sees as /.
        """
        async with self._turns.setdefault(key, asyncio.Lock()):
            await self._end(key)
            ours, theirs = socket.socketpair()
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(write_end, True)
            try:
                program = _Program(path, [argv0 or name, *arguments], identity, root)
                process = await self._execute(program, theirs.fileno(), write_end)
            except BaseException:
                ours.close()
                os.close(read_end)
                raise
            finally:
                theirs.close()
                os.close(write_end)
            running = self._running[key] = _Running(name, process, ErrorLines(read_end, name, self._log))
            self._watch(running)
            return ours

    def pid(self, key: str) -> int:
        """The process of a program; 0: it does not run."""
        running = self._running.get(key)
        return 0 if running is None else running.process.pid

    async def stop(self, key: str, grace: float = GRACE) -> None:
        """End a program, if it runs; its socket should be closed, so that it may end by itself within `grace`."""
        async with self._turns.setdefault(key, asyncio.Lock()):
            await self._end(key, grace)

    async def stop_those(self, chosen: Callable[[str], bool]) -> None:
        """End the programs whose keys are chosen."""
        await asyncio.gather(*(self.stop(key) for key in list(self._running) if chosen(key)))

    async def stop_all(self) -> None:
        """End every program."""
        await self.stop_those(lambda key: True)

    async def _execute(self, program: "_Program", standard: int, errors: int) -> "subprocess.Popen[bytes]":
        # In a thread: executing a file may wait for a file server.
        standard, errors = os.dup(standard), os.dup(errors)
        path = program.path
        claim = threading.Lock()  # who takes it closes them: the thread, or we where it has not begun

        def execute() -> "subprocess.Popen[bytes]":
            if not claim.acquire(blocking=False):
                raise TempFail(f"{path}: given up")
            return self._popen(program, standard, errors)

        try:
            return await self._starting.in_thread(execute, path, path, START, late=_kill_late)
        except OSError as error:
            raise TempFail(f"{path}: {error.strerror or error}") from error
        except PillarboxError as error:
            raise TempFail(str(error)) from error
        finally:
            if claim.acquire(blocking=False):
                os.close(standard)
                os.close(errors)

    def _popen(self, program: "_Program", standard: int, errors: int) -> "subprocess.Popen[bytes]":
        """In the thread; closes both descriptors."""
        try:
            identity = (program.identity() if program.identity is not None else None) or self._whoever()
            path, argv = (program.path, program.argv) if not program.root else program.confined(identity)
            rights: dict[str, Any] = {}
            if identity is not None and not program.root:
                rights = {"user": identity.uid, "group": identity.gid, "extra_groups": identity.groups}
            return subprocess.Popen(
                argv,
                executable=path,
                stdin=standard,
                stdout=standard,
                stderr=errors,
                cwd="/",
                env=_environment(os.environ),
                umask=0o022,
                start_new_session=True,  # its pid is that of its process group, too
                **rights,
            )
        finally:
            os.close(standard)
            os.close(errors)

    def _whoever(self) -> "Identity | None":
        """Whom they run as who name nobody. It may ask a name service."""
        if self._account is not None and self._default is None:
            account = self._account()
            self._default = Identity(account.uid, account.gid, tuple(os.getgrouplist(account.name, account.gid)))
        return self._default

    def _watch(self, running: _Running) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(running.process.pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            # It is not reaped yet, so its group cannot be another's: what it has started ends with it.
            _kill_group(running.process.pid)
            status = running.process.wait()
            if not running.killed and (status or (self._says_end and not running.unwanted)):
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
                self._log.warn(f"{running.name}: {how}")
            running.errors.finish()
            running.ended.set_result(None)

        loop.add_reader(pidfd, ended)

    async def _end(self, key: str, grace: float = GRACE) -> None:
        running = self._running.get(key)
        if running is None:
            return
        running.unwanted = True
        # It stays known until it is gone: who is cancelled here leaves it to whoever stops it next.
        await asyncio.wait({running.ended}, timeout=grace)
        if not running.ended.done():
            running.killed = True
            _kill_group(running.process.pid)
            await asyncio.wait({running.ended}, timeout=GONE)
        del self._running[key]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _kill_late(process: "subprocess.Popen[bytes]") -> None:
    """One that started when nobody waited for it any more."""
    _kill_group(process.pid)
    process.wait()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a program sees: nothing of ours but language and time zone, and what a filter may do with us."""
    # OpenSMTPD ends when a filter writes a report, and the handshake is to be the same: where else is a filter to know?
    own = {"PATH": PATH, "HOME": "/", "SHELL": "/bin/sh", "PILLARBOX_ACCEPTS": "report"}
    return {**own, **{k: ours[k] for k in _KEPT if k in ours}}
