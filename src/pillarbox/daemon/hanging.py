"""Work that may never return, because a file server is gone or a name service hangs: in a child or a thread, bounded.

Neither the event loop nor the end of the server waits for it, and what hangs at one place keeps nobody from another:
few questions at a place are under way at once, the others wait for those, each no longer than its deadline.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from pillarbox.errors import TempFail
from pillarbox.log import Log

DEADLINE = 20.0  # seconds for one question, its wait for a turn included
AT_ONCE = 32  # questions
AT_PLACE = 2  # of them at one place
LEFT_MAX = 8  # that were given up and hang on at one place (or as many as may be there at once): it is not asked
LEFT_ABOVE = 16  # the same at all places in one directory: they are on a file server that is gone
_REAP = 1.0  # seconds for a killed child to be gone
_LENGTH = 8  # bytes before the answer of a child

_T = TypeVar("_T")


class Hanging:
    """Runs such work. `place` of a question: the path that it depends on, e.g. a home.

    `at_place`: how many questions may be under way at one place.
    """

    def __init__(self, log: Log, *, at_place: int = AT_PLACE) -> None:
        self._log = log
        self._at_place = at_place
        self._left: Counter[str] = Counter()
        self._left_above: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_at: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def in_thread(
        self,
        work: Callable[[], _T],
        place: str,
        what: str,
        deadline: float | None = None,
        late: Callable[[_T], object] | None = None,
    ) -> _T:
        """Call it in a thread; TempFail at the deadline, and where too much hangs there already. OSError is raised.

        `late` is given a result that nobody waits for any more, perhaps in the thread: the loop may have ended by then.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + (deadline or DEADLINE)
        async with self._turn(place, what, until):
            future: asyncio.Future[_T] = loop.create_future()
            unwanted = _Unwanted(late)
            # A thread of its own: those of a pool are waited for at the end, and all of them might hang.
            thread = threading.Thread(
                target=self._run, args=(work, place, future, unwanted), daemon=True, name="may-hang"
            )
            try:
                thread.start()
            except RuntimeError as error:
                raise TempFail(f"{what}: {error}") from error
            try:
                return await _answer(future, what, until)
            except (asyncio.CancelledError, TempFail):
                unwanted.give_up()
                raise
            finally:
                if future.cancelled():
                    self._leave(place)

    def _run(self, work: Callable[[], _T], place: str, future: "asyncio.Future[_T]", unwanted: "_Unwanted[_T]") -> None:
        """In the thread."""
        result: Any = None
        error: Exception | None = None
        try:
            result = work()
            unwanted.come(result)
        except Exception as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            future.get_loop().call_soon_threadsafe(self._settle, future, place, result, error)

    async def in_child(self, work: Callable[[], bytes], place: str, what: str, deadline: float | None = None) -> bytes:
        """Fork, and await the bytes that `work` returns there; killed, and TempFail, past the deadline.

        Of a child that dies at work nothing is taken, not even what it has said already.
        """
        deadline = deadline or DEADLINE
        until = asyncio.get_running_loop().time() + deadline
        async with self._turn(place, what, until):
            try:
                pid, read_end = _fork(work, deadline)
            except OSError as error:
                raise TempFail(f"{what}: {error.strerror}") from error
            try:
                answer = await _answer(_read_all(read_end), what, until)
            finally:
                # Not reaped yet, so the pid is still the child's.
                os.kill(pid, signal.SIGKILL)
                status = await self._reap(pid, place)
        if len(answer) < _LENGTH or int.from_bytes(answer[:_LENGTH], "big") != len(answer) - _LENGTH:
            if answer or (status is not None and not os.WIFEXITED(status)):
                self._log.warn(f"{what}: the child died")
            raise TempFail(f"{what}: could not be read")
        return answer[_LENGTH:]

    async def _reap(self, pid: int, place: str) -> int | None:
        """The status of a child that was killed; None, and it is reaped when it goes, where the kernel holds it."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[int] = loop.create_future()
        try:
            ended = os.pidfd_open(pid)
        except OSError:
            return os.waitpid(pid, 0)[1]  # noqa: ASYNC222 - no descriptor left: a moment's wait is the lesser evil

        def reap() -> None:
            loop.remove_reader(ended)
            os.close(ended)
            self._settle(gone, place, os.waitpid(pid, 0)[1], None)

        loop.add_reader(ended, reap)
        try:
            async with asyncio.timeout(_REAP):
                return await gone
        except TimeoutError:
            return None
        finally:
            if gone.cancelled():
                self._leave(place)

    @contextlib.asynccontextmanager
    async def _turn(self, place: str, what: str, until: float) -> AsyncIterator[None]:
        """One of the turns at the place, then one of all: who waits at a place keeps nobody from another."""
        self._check(place, what)
        async with contextlib.AsyncExitStack() as held:
            at_place = self._turns_at.setdefault(place, asyncio.Semaphore(self._at_place))
            for turns in (at_place, self._turns):
                await _answer(held.enter_async_context(turns), what, until)
            self._check(place, what)
            yield

    def _check(self, place: str, what: str) -> None:
        if self._left[place] >= min(self._at_place, LEFT_MAX):
            raise TempFail(f"{what}: {place} does not answer")
        if self._left_above[os.path.dirname(place)] >= LEFT_ABOVE:
            raise TempFail(f"{what}: {os.path.dirname(place)} does not answer")

    def _leave(self, place: str) -> None:
        """A question was given up, and hangs on."""
        self._left[place] += 1
        self._left_above[os.path.dirname(place)] += 1

    def _settle(
        self,
        future: "asyncio.Future[_T]",
        place: str,
        result: _T,
        error: Exception | None,
    ) -> None:
        if future.cancelled():  # it was given up, and has come to an end after all
            for left, where in ((self._left, place), (self._left_above, os.path.dirname(place))):
                left[where] -= 1
                if not left[where]:
                    del left[where]
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


class _Unwanted(Generic[_T]):
    """A result that nobody waits for is given to `late` once: by who gave it up, or by the thread that has it later."""

    def __init__(self, late: Callable[[_T], object] | None) -> None:
        self._late = late
        self._lock = threading.Lock()
        self._given_up = False
        self._results: list[_T] = []

    def come(self, result: _T) -> None:
        """There it is."""
        with self._lock:
            self._results.append(result)
            unwanted = self._given_up
        if unwanted and self._late is not None:
            self._late(result)

    def give_up(self) -> None:
        """Nobody waits for it."""
        with self._lock:
            self._given_up = True
            results = list(self._results)
        if results and self._late is not None:
            self._late(results[0])


async def _answer(work: Awaitable[_T], what: str, until: float) -> _T:
    try:
        async with asyncio.timeout_at(until):
            return await work
    except TimeoutError:
        raise TempFail(f"{what}: no answer in time") from None


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
        answer = work()
        view = memoryview(len(answer).to_bytes(_LENGTH, "big") + answer)
        while view:
            view = view[os.write(write_end, view) :]
        status = 0
    finally:
        os._exit(status)
