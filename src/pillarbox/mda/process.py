"""The agent's end of the delivery process: starts it, starts it again when it died, asks it for children."""

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from pillarbox.log import Log
from pillarbox.mda.wire import Ended, Fork, Kill, Start, datagram, decode_ended

DIED = "delivery process died"
_COMMAND = (sys.executable, "-I", "-m", "pillarbox.mda.forker")
_END_WAIT = 1.0  # seconds; it ends as soon as its socket closes


class DeliveryProcess:
    """One `mda.forker`. Calls never wait for it: an order that it does not take now is an error of that order."""

    def __init__(
        self, *, log: Log, command: tuple[str, ...] = (sys.executable, "-I", "-m", "pillarbox.mda.forker")
    ) -> None:
        self._log = log
        self._command = command
        self._numbers = itertools.count(1)
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: dict[int, asyncio.Future[Ended]] = {}

    @property
    def pid(self) -> int:
        """Its process id, 0 while it is not running."""
        return self._process.pid if self._process is not None else 0

    def fork(self, make: Callable[[int], Start], connection: socket.socket) -> tuple[int, asyncio.Future[Ended]]:
        """Order a child, with its socket; returns its number and what becomes done at its end. OSError: not now."""
        if self._control is None:
            self._begin()
        assert self._control is not None
        child = next(self._numbers)
        socket.send_fds(self._control, [datagram(Fork(start=make(child)))], [connection.fileno()])
        future = asyncio.get_running_loop().create_future()
        self._waiting[child] = future
        return child, future

    def kill(self, child: int) -> None:
        """End a child that takes too long."""
        if self._control is not None and child in self._waiting:
            with contextlib.suppress(OSError):
                self._control.send(datagram(Kill(child=child)))

    def close(self) -> None:
        """Let it go: it ends by itself, its children when they are done."""
        self._end()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [*self._command, str(fd)],
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                process_group=0,  # a terminal's Ctrl-C is for the parent, also while this one is starting
            )
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        assert self._control is not None
        try:
            while data := self._control.recv(65536):
                self._on_ended(decode_ended(data))
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            pass  # as good as gone
        self._log.warn("mda: delivery process died, it is started again when it is needed")
        self._end()

    def _on_ended(self, ended: Ended) -> None:
        future = self._waiting.pop(ended.child, None)
        if future is not None and not future.done():
            future.set_result(ended)

    def _end(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for child in list(self._waiting):
            self._on_ended(Ended(child=child, error=DIED))
        if self._process is not None:
            process, self._process = self._process, None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_WAIT)
