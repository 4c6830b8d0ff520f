"""The delivery process: `python -m pillarbox.mda.forker FD`. It forks a child for each batch of deliveries.

Started once by `agent`, re-executed: no threads, no event loop, no configuration, no keys; the mailers are imported,
so that no delivery waits for an interpreter. FD is its end of a datagram socketpair: orders come in with the child's
own socket attached, ends of children go out. It ends with the agent.
"""

import array
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from types import FrameType

import msgspec

from pillarbox.mda.child import run_child
from pillarbox.mda.wire import Ended, Fork, Start, datagram, decode_to_forker

_DATAGRAM_MAX = 65536
_DEFAULT = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGXFSZ)


class Forker:
    """Forks and reaps; knows of a child no more than its number."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid → child
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> None:
        """Until the agent closes its end. Children that still run finish what they do, as it cannot be undone."""
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._order():
                return

    def _order(self) -> bool:
        """Take one order; False where the agent is gone."""
        data, attached = _receive(self._control)
        if not data:
            return False
        try:
            order = decode_to_forker(data)
            if isinstance(order, Fork):
                self._fork(order.start, attached[0])
            else:
                self._kill(order.child)
        finally:
            for fd in attached:
                os.close(fd)
        return True

    def _fork(self, start: Start, fd: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(Ended(child=start.child, error=f"fork: {error.strerror}"))
            return
        if pid == 0:
            _become_child(start, fd)
        self._children[pid] = start.child

    def _kill(self, child: int) -> None:
        for pid, number in self._children.items():
            if number == child:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (child := self._children.pop(pid, None)) is not None:
                self._tell(Ended(child=child, status=status))

    def _tell(self, ended: Ended) -> None:
        # An agent that went away is noticed at its end of file.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(datagram(ended))


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = control.recvmsg(_DATAGRAM_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def _become_child(start: Start, fd: int) -> None:
    """In the fork: shed what belongs to the forker, do the jobs, end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _DEFAULT:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        os.dup2(fd, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.set_inheritable(3, False)
        run_child(start, socket.socket(fileno=3))
        code = 0
    except BaseException:  # noqa: BLE001 a bug in a child must never run the forker's loop a second time
        traceback.print_exc()
    finally:
        os._exit(code)


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal has woken the loop up through its socket."""


def main() -> None:
    """Run on the socket whose number is the first argument; standard error is the server's."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent alone decides when to end: by closing our socket
    # What is loaded stays shared with the children: the collector does not touch it again.
    gc.collect()
    gc.freeze()
    gc.disable()
    with contextlib.suppress(msgspec.MsgspecError):
        Forker(control).run()


if __name__ == "__main__":
    main()
