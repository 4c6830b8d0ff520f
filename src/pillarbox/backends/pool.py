"""Connections to one database: a few threads, each with its own, so that a slow question delays no other.

A connection that was lost is made anew, at once for the question that found it so, and with growing pauses while the
database cannot be reached. Meanwhile every question raises TableError: the server asks again later.
"""

import asyncio
import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from pillarbox.sdk.table import TableError

CONNECT_TIMEOUT = 5  # seconds that a driver may take to connect
# Seconds for one question, all in all: our server starts a program anew that is silent for 15.
DEADLINE = 10.0
SIZE = 4  # connections

_log = logging.getLogger("pillarbox.backends")


class Lost(Exception):
    """There is no connection any more, or none could be made; the text says why."""


class Connection(Protocol):
    """What a driver's wrapper offers to the pool, besides its questions. Those raise Lost or TableError."""

    def close(self) -> None:
        """Give it up. Raises nothing."""

    def abort(self) -> None:
        """From another thread: make the question that is under way end soon. Raises nothing."""


C = TypeVar("C", bound=Connection)
T = TypeVar("T")


class Backoff:
    """When to try the next connection: 0.5 s after a failure, doubled with each further one, 15 s at the most."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, first: float = 0.5, most: float = 15.0) -> None:
        self._now = now
        self._first = first
        self._most = most
        self._lock = threading.Lock()
        self._reason = ""
        self._pause = 0.0
        self._until = 0.0

    def check(self) -> None:
        """Raises Lost while it is too early to try."""
        with self._lock:
            if self._reason and self._now() < self._until:
                raise Lost(self._reason)

    def failed(self, reason: str) -> None:
        """A connection could not be made."""
        with self._lock:
            now = self._now()
            if self._reason and now < self._until:
                return  # another thread tried at the same time
            self._pause = min(self._pause * 2, self._most) if self._reason else self._first
            self._reason = reason
            self._until = now + self._pause
            _log.warning("%s; next try in %g s", reason, self._pause)

    def succeeded(self) -> None:
        """A connection was made."""
        with self._lock:
            if self._reason:
                _log.warning("connected again")
            self._reason = ""


class _Worker(Generic[C]):
    """A thread and its connection."""

    def __init__(self, connect: Callable[[], C], backoff: Backoff) -> None:
        self._connect = connect
        self._backoff = backoff
        self._connection: C | None = None
        self._aborted = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[C], Any], concurrent.futures.Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        # A daemon: a driver that hangs must not keep the program from ending.
        threading.Thread(target=self._run, name="connection", daemon=True).start()

    def ask(self, work: Callable[[C], T]) -> "concurrent.futures.Future[T]":
        """Do it in the thread, one thing at a time."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        self._aborted = False
        self._jobs.put((work, future))
        return future

    def abort(self) -> None:
        """Make what is under way end soon."""
        self._aborted = True
        if (connection := self._connection) is not None:
            connection.abort()

    def stop(self) -> None:
        """End the thread and its connection after what is under way."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future = job
            try:
                future.set_result(self._attempt(work))
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to who asked
                future.set_exception(error)
        self._drop()

    def _attempt(self, work: Callable[[C], T]) -> T:
        old = self._connection is not None
        try:
            return self._work(work)
        except Lost:
            if not old or self._aborted:
                raise
        # The database was started again since the last question, or closed a connection that was idle for long.
        return self._work(work)

    def _work(self, work: Callable[[C], T]) -> T:
        if self._connection is None:
            self._connection = self._connected()
        try:
            return work(self._connection)
        except TableError:
            raise
        except BaseException:  # whatever else it is, who knows in which state the connection is now
            self._drop()
            raise

    def _connected(self) -> C:
        self._backoff.check()
        try:
            made = self._connect()
        except Lost as error:
            self._backoff.failed(str(error))
            raise
        self._backoff.succeeded()
        return made

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Pool(Generic[C]):
    """`connect` makes a connection or raises Lost; it is called in a thread, and so is what `run` is given."""

    def __init__(
        self,
        connect: Callable[[], C],
        *,
        size: int = SIZE,
        deadline: float = DEADLINE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._deadline = deadline
        self._backoff = Backoff(now=now)
        self._room = asyncio.Semaphore(size)
        self._idle: list[_Worker[C]] = []
        self._closed = False

    async def run(self, work: Callable[[C], T]) -> T:
        """The result of `work` with a connection. Raises TableError, also past the deadline."""
        end = asyncio.get_running_loop().time() + self._deadline
        try:
            async with asyncio.timeout_at(end):
                await self._room.acquire()
        except TimeoutError:
            raise TableError(f"every connection is busy for {self._deadline:g} s") from None
        worker = self._idle.pop() if self._idle else _Worker(self._connect, self._backoff)
        asked = asyncio.wrap_future(worker.ask(work))
        asked.add_done_callback(lambda done: self._free(worker, done))
        await asyncio.wait([asked], timeout=end - asyncio.get_running_loop().time())
        if not asked.done():
            worker.abort()
            raise TableError(f"no answer from the database within {self._deadline:g} s")
        try:
            return asked.result()
        except Lost as error:
            raise TableError(str(error)) from None

    def close(self) -> None:
        """Close the connections, those that are in use after their question."""
        self._closed = True
        while self._idle:
            self._idle.pop().stop()

    def _free(self, worker: _Worker[C], done: "asyncio.Future[Any]") -> None:
        """The thread has come back, in time or long after its question was given up."""
        done.exception()  # so that nobody complains that it was not looked at
        if self._closed:
            worker.stop()
        else:
            self._idle.append(worker)
        self._room.release()
