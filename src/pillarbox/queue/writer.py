"""Group commit: one thread, one connection, one transaction for all requests that came while the last was on its way.

A group in which a request fails is run again with a savepoint for each, so one that fails takes no other along
(a request may be run twice therefore). Its Future is resolved after the COMMIT, which is on disk by then
(`synchronous = FULL`), for a whole group in one call into the loop. Between groups the thread checkpoints.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pillarbox.errors import NoSpace, PillarboxError, TempFail

GROUP_JOBS = 512
GROUP_BYTES = 8 << 20
CHECKPOINT_BYTES = 16 << 20
CHECKPOINT_IDLE = 5.0  # seconds without a request, after which what there is gets checkpointed
VACUUM_PAGES = 2000  # free pages given back to the file system at a time
VACUUM_ABOVE = 16384  # free pages kept for the next burst (64 MB)
JOB_OVERHEAD = 3 * 4096  # pages that a small change touches, as bytes of WAL

T = TypeVar("T")
Run = Callable[[sqlite3.Connection], Any]

# Not a fault of the disk: the request fails, the store goes on.
_HARMLESS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM}
_REQUEST = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}


class _Job:
    __slots__ = ("error", "future", "result", "run", "weight")

    def __init__(self, run: Run, future: "asyncio.Future[Any]", weight: int) -> None:
        self.run, self.future, self.weight = run, future, weight
        self.result: object = None
        self.error: BaseException | None = None


class Writer:
    """Runs requests in the order of submission. In the thread: `on_rollback`: forget what was learnt in the group;
    `before_commit`: make durable what lies outside of the database; `after_commit`: it is now for good.

    `on_fatal` is called once, in the loop, when the disk fails; every request after that is a TempFail.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        *,
        on_fatal: Callable[[BaseException], None],
        on_rollback: Callable[[], None],
        before_commit: Callable[[], None],
        after_commit: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._db = db
        self._on_fatal = on_fatal
        self._on_rollback = on_rollback
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._loop = asyncio.get_running_loop()
        self._pending: list[_Job] = []
        self._busy = False
        self._planned = False
        self._broken: BaseException | None = None
        self._closed: asyncio.Future[None] | None = None
        self._groups: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._unsaved = 0  # bytes of WAL since the last checkpoint, about
        self._thread = threading.Thread(target=self._work, name="queue-writer", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[sqlite3.Connection], T], weight: int = 0) -> "asyncio.Future[T]":
        """Have `run` called with the connection within the next group. `weight`: bytes of bodies that it writes."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._broken or self._closed:
            future.set_exception(TempFail("queue: the store has ended"))
            return future
        self._pending.append(_Job(run, future, weight))
        self._plan()
        return future

    async def close(self) -> None:
        """Commit what was submitted, checkpoint, and end the thread."""
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._flush()
            if not self._busy:
                self._groups.put(None)
        await asyncio.shield(self._closed)

    # In the loop.

    def _plan(self) -> None:
        # Not at once: what else is submitted in this turn of the loop belongs to the same group.
        if not self._busy and not self._planned:
            self._planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._planned = False
        if self._busy or not self._pending:
            return
        count = weight = 0
        for job in self._pending:
            if count >= GROUP_JOBS or weight >= GROUP_BYTES:
                break
            count += 1
            weight += job.weight
        group, self._pending = self._pending[:count], self._pending[count:]
        self._busy = True
        self._groups.put(group)

    def _finished(self, group: list[_Job], fatal: BaseException | None) -> None:
        self._busy = False
        for job in group:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
        if fatal is not None:
            self._fail(fatal)
        if self._pending:
            if self._closed:
                self._flush()
            else:
                self._plan()
        elif self._closed:
            self._groups.put(None)

    def _fail(self, fatal: BaseException) -> None:
        self._broken = fatal
        for job in self._pending:
            if not job.future.done():
                job.future.set_exception(TempFail("queue: the disk failed"))
        self._pending.clear()
        self._on_fatal(fatal)

    def _ended(self) -> None:
        if self._closed and not self._closed.done():
            self._closed.set_result(None)

    # In the thread.

    def _work(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - or everybody would wait for ever for what this thread does
            self._call(self._fail, error)

    def _serve(self) -> None:
        while True:
            try:
                group = self._groups.get(timeout=CHECKPOINT_IDLE if self._unsaved else None)
            except queue.Empty:
                self._report([], self._checkpoint())
                continue
            if group is None:
                break
            fatal = self._run_group(group)
            if not self._report(group, fatal):
                break
            if fatal is None and self._unsaved >= CHECKPOINT_BYTES:
                self._report([], self._checkpoint())
        self._checkpoint()
        self._db.close()
        self._call(self._ended)

    def _report(self, group: list[_Job], fatal: BaseException | None) -> bool:
        return self._call(self._finished, group, fatal) if group or fatal else True

    def _call(self, function: Callable[..., None], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop was closed under us: nobody waits any more
            return False
        return True

    def _run_group(self, group: list[_Job]) -> BaseException | None:
        db = self._db
        try:
            # Savepoints cost as much as the small requests in them, and almost none fails: without them first.
            if not self._run_together(group):
                db.execute("BEGIN IMMEDIATE")
                for job in group:
                    self._run_job(job)
                    if not db.in_transaction:  # SQLite gave the whole transaction up
                        raise job.error or TempFail("queue: the transaction was given up")
            self._before_commit()
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may be left waiting for an answer
            return self._give_up(group, error)
        self._unsaved += sum(job.weight for job in group) + len(group) * JOB_OVERHEAD
        try:
            self._after_commit(db)
        except sqlite3.Error as error:  # what was committed is
            return error if _is_fatal(error) else None
        return None

    def _run_together(self, group: list[_Job]) -> bool:
        """Begin a transaction and run all requests in it; False, with all undone, where one was refused."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for job in group:
                job.result = job.run(db)
        except Exception as error:
            if _is_fatal(error):
                raise
            self._on_rollback()
            if db.in_transaction:
                db.execute("ROLLBACK")
            return False
        return True

    def _run_job(self, job: _Job) -> None:
        db = self._db
        db.execute("SAVEPOINT request")
        try:
            job.result = job.run(db)
        except (sqlite3.Error, PillarboxError, OverflowError, UnicodeError) as error:
            job.error = error if isinstance(error, PillarboxError) else _failure(error)
            self._on_rollback()
            if _is_fatal(error):
                raise
            if db.in_transaction:
                db.execute("ROLLBACK TO request")
            else:
                raise
        db.execute("RELEASE request")

    def _give_up(self, group: list[_Job], error: Exception) -> BaseException | None:
        """Nothing of the group is stored."""
        self._on_rollback()
        fatal = _is_fatal(error)
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as second:
            fatal = True
            error = second
        for job in group:
            if job.error is None or not isinstance(job.error, TempFail):
                job.error = _failure(error)
        return error if fatal else None

    def _checkpoint(self) -> BaseException | None:
        """Move the WAL into the database as far as readers allow, and give back space after a large backlog."""
        self._unsaved = 0
        db = self._db
        try:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            if free > VACUUM_ABOVE and free > pages // 2:
                db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
                self._unsaved = VACUUM_PAGES  # so that an idle thread goes on with it
        except sqlite3.Error as error:
            return error if _is_fatal(error) else None
        return None


def _failure(error: BaseException) -> TempFail:
    if isinstance(error, TempFail):
        return error
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return NoSpace(f"queue: {error}") if full else TempFail(f"queue: {error}")


def _is_fatal(error: BaseException) -> bool:
    """Did the disk fail, is the database damaged, or is it a mistake of ours? Then what we believe may be wrong."""
    if not isinstance(error, sqlite3.Error):
        return not isinstance(error, (PillarboxError, OverflowError, UnicodeError))
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code not in _HARMLESS and code not in _REQUEST
