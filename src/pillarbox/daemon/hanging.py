"""Work that may never return, because a file server is gone or a name service hangs: in a child or a thread, bounded.

Neither the event loop nor the end of the server waits for it, and what hangs at one place keeps nobody from another.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

from pillarbox.errors import TempFail
from pillarbox.log import Log

DEADLINE = 20.0  # seconds for one question
AT_ONCE = 32  # questions
LEFT_MAX = 8  # that were given up and hang on at one place, beyond which it is not asked
_REAP = 1.0  # seconds for a killed child to be gone


class Hanging:
    """Runs such work. `place` of a question: what it depends on, e.g. the file system of a home."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._left: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def in_thread(self, work: Callable[[], bytes], place: str, what: str) -> bytes:
        """Call it in a thread; TempFail at the deadline, and where too much hangs there already. OSError is raised."""
        async with self._turns:
            self._check(place, what)
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            # A thread of its own: those of a pool are waited for at the end, and all of them might hang.
            thread = threading.Thread(target=self._run, args=(work, place, future), daemon=True, name="may-hang")
            try:
                thread.start()
            except RuntimeError as error:
                raise TempFail(f"{what}: {error}") from error
            try:
                return await self._answer(future, what, DEADLINE)
            finally:
                if future.cancelled():
                    self._left[place] += 1

    def _run(self, work: Callable[[], bytes], place: str, future: "asyncio.Future[bytes]") -> None:
        """In the thread."""
        result, error = b"", None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            future.get_loop().call_soon_threadsafe(self._settle, future, place, result, error)

    async def in_child(self, work: Callable[[], bytes], place: str, what: str, deadline: float | None = None) -> bytes:
        """Fork, and await the bytes that `work` returns there; killed, and TempFail, past the deadline."""
        deadline = deadline or DEADLINE
        async with self._turns:
            self._check(place, what)
            try:
                pid, read_end = _fork(work, deadline)
            except OSError as error:
                raise TempFail(f"{what}: {error.strerror}") from error
            try:
                answer = await self._answer(_read_all(read_end), what, deadline)
            finally:
                # Not reaped yet, so the pid is still the child's.
                os.kill(pid, signal.SIGKILL)
                status = await self._reap(pid, place)
        if not answer:
            if status is not None and not os.WIFEXITED(status):
                self._log.warn(f"{what}: the child died")
            raise TempFail(f"{what}: could not be read")
        return answer

    async def _reap(self, pid: int, place: str) -> int | None:
        """The status of a child that was killed; None, and it is reaped when it goes, where the kernel holds it."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[bytes] = loop.create_future()
        try:
            ended = os.pidfd_open(pid)
        except OSError:
            return os.waitpid(pid, 0)[1]  # noqa: ASYNC222 - no descriptor left: a moment's wait is the lesser evil

        def reap() -> None:
            loop.remove_reader(ended)
            os.close(ended)
            self._settle(gone, place, str(os.waitpid(pid, 0)[1]).encode(), None)

        loop.add_reader(ended, reap)
        try:
            async with asyncio.timeout(_REAP):
                return int(await gone)
        except TimeoutError:
            return None
        finally:
            if gone.cancelled():
                self._left[place] += 1

    def _check(self, place: str, what: str) -> None:
        if self._left[place] >= LEFT_MAX:
            raise TempFail(f"{what}: {place} does not answer")

    def _settle(self, future: "asyncio.Future[bytes]", place: str, result: bytes, error: Exception | None) -> None:
        if future.cancelled():  # it was given up, and has come to an end after all
            self._left[place] -= 1
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    async def _answer(self, work: Awaitable[bytes], what: str, deadline: float) -> bytes:
        try:
            async with asyncio.timeout(deadline):
                return await work
        except TimeoutError:
            raise TempFail(f"{what}: no answer within {deadline:.0f} seconds") from None


async def _read_all(fd: int) -> bytes:
    """Until the end of file; closes the descriptor."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    parts: list[bytes] = []

    def readable() -> None:
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            return
        if part:
            parts.append(part)
        elif not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return b"".join(parts)


def _fork(work: Callable[[], bytes], deadline: float) -> tuple[int, int]:
    """(pid, read end of what it returns)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        _child(work, write_end, deadline)
    os.close(write_end)
    return pid, read_end


def _child(work: Callable[[], bytes], write_end: int, deadline: float) -> None:
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.alarm(int(deadline) + 5)
        # The lock of the state directory, the channels to the roles, clients: none may outlive the server here.
        os.closerange(3, write_end)
        os.closerange(write_end + 1, os.sysconf("SC_OPEN_MAX"))
        os.set_blocking(write_end, True)
        view = memoryview(work())
        while view:
            view = view[os.write(write_end, view) :]
        status = 0
    finally:
        os._exit(status)
