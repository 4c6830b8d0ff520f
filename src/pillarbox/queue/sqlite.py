"""The store in SQLite: what runs in the writer's thread and in the readers', and the body files beside it.

Written through `writer` (group commit); read through two connections in threads of their own, in short pages, which
in WAL mode never hold up the writer.
"""

import asyncio
import functools
import queue
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pillarbox.errors import PillarboxError, TempFail
from pillarbox.mail.envelope import Envelope, decode_envelope
from pillarbox.queue import schema
from pillarbox.queue.bodies import Bodies
from pillarbox.queue.segments import Segments
from pillarbox.queue.spool import LOCK_WAIT, Spool
from pillarbox.queue.store import Gone, Later, Page, Row, StoredMessage
from pillarbox.queue.writer import Writer
from pillarbox.roles.bounce import PendingBounce
from pillarbox.roles.queue import INLINE_BODY

# Bytes: bodies up to this are rows, larger ones lie in segments. Measured end to end on a fresh ext4 image, messages
# a second: 4 KB as rows 3,800 to 4,000, in segments 2,100 to 3,500; 14 KB 3,200 and 2,300 to 3,100; 64 KB as rows
# 1,400 to 1,800, as a file each 1,250, in segments 1,900 to 2,100.
ROW_BODY = 16 * 1024
READERS = 2
BODY_THREADS = 16  # concurrent syncs share a journal commit of the file system
FLOORS = 50_000  # destinations whose next_due the writer remembers

T = TypeVar("T")

_encode_bounce = msgspec.msgpack.Encoder().encode
_decode_bounce = msgspec.msgpack.Decoder(PendingBounce).decode

_ROW = (
    "SELECT e.evpid, e.destination, e.next_try, e.suspended, e.tried, e.attempt, e.data,"
    " m.size, m.eight_bit, m.smtputf8, m.require_tls, {body}, m.segment, m.at"
    " FROM envelope e JOIN message m ON m.msgid = e.evpid >> 32 "
)
_ROW_PLAIN = _ROW.format(body="NULL")
# CASE, so that the pages of a body nobody gets are not read.
_ROW_BODY = _ROW.format(body=f"CASE WHEN m.size <= {ROW_BODY} THEN m.body END")


class SqliteStore:
    """`Store` on a folder of its own. Opens at once: PillarboxError where the folder is held or the schema is newer.

    To be made in the running loop. `on_fatal` is called once, when the disk fails: the role must end then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic: Callable[[], float],
        on_fatal: Callable[[BaseException], None],
        lock_wait: float = LOCK_WAIT,
    ) -> None:
        self._spool = Spool(folder, monotonic=monotonic, wait=lock_wait)
        try:
            self._readers, db = _open(self._spool.database)
        except BaseException:
            self._spool.close()
            raise
        self._floor: dict[str, int] = {}
        self._segments = Segments(self._spool.segments)
        self._writer = Writer(
            db,
            on_fatal=on_fatal,
            on_rollback=self._forget_group,
            before_commit=self._segments.sync,
            after_commit=self._segments.reap,
        )
        self._read_threads = ThreadPoolExecutor(READERS, "queue-reader")
        self._body_threads = ThreadPoolExecutor(BODY_THREADS, "queue-body")
        self._bodies = Bodies(self._spool, executor=self._body_threads, monotonic=monotonic, on_fatal=on_fatal)
        self._large: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Commit what was begun, and let the folder go."""
        await asyncio.gather(*self._large, return_exceptions=True)
        await self._writer.close()
        self._segments.close()
        self._bodies.close()
        self._read_threads.shutdown()
        self._body_threads.shutdown()
        while not self._readers.empty():
            self._readers.get_nowait().close()
        self._spool.close()

    def check_space(self) -> None:
        """TempFail when less than 5 % of space or inodes is free."""
        self._spool.check_space()

    # New mail.

    async def unused(self, first: int, last: int) -> bool:
        """Is no message between these in use?"""
        query = "SELECT NOT EXISTS (SELECT 1 FROM message WHERE msgid BETWEEN ? AND ?)"
        (rows,) = await self._read(lambda db: db.execute(query, (first, last)).fetchall())
        return bool(rows[0])

    def commit(self, message: StoredMessage) -> "asyncio.Future[None]":
        """Store a message: in the next group, or after its file is synced."""
        if not message.streamed:
            return self._submit_insert(message, message.body)
        task = asyncio.get_running_loop().create_task(self._commit_streamed(message))
        self._large.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._large.discard)
        return task

    async def _commit_streamed(self, message: StoredMessage) -> None:
        await self._bodies.finish(message.msgid, message.size)
        try:
            await self._submit_insert(message, None)
        except PillarboxError:
            self._bodies.abandon(message.msgid)
            raise
        self._bodies.settled(message.msgid)

    def _submit_insert(self, message: StoredMessage, body: bytes | None) -> "asyncio.Future[None]":
        if not message.answers:
            return self._writer.submit(lambda db: self._insert(db, message, body), message.size)
        freed: list[int] = []

        def run(db: sqlite3.Connection) -> None:
            self._insert(db, message, body)
            freed[:] = self._drop_bounces(db, message.answers_msgid, message.answers, all_there=True)

        return self._freeing(self._writer.submit(run, message.size), freed)

    def _insert(self, db: sqlite3.Connection, message: StoredMessage, body: bytes | None) -> None:
        msgid, segment, at = message.msgid, None, None
        if body is not None and len(body) > ROW_BODY:
            segment, at = self._segments.append(body)
            body = None
        db.execute(
            "INSERT INTO message (msgid, size, eight_bit, smtputf8, require_tls, segment, at, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (msgid, message.size, message.eight_bit, message.smtputf8, message.require_tls, segment, at, body),
        )
        for e in message.envelopes:
            db.execute(
                "INSERT INTO envelope (evpid, destination, next_try, data) VALUES (?, ?, ?, ?)",
                (e.evpid, e.destination, e.next_try, e.data),
            )
            self._touch(db, e.destination, e.next_try)

    def _touch(self, db: sqlite3.Connection, destination: str, due: int) -> None:
        """See to it that the destination is looked at by `due`."""
        floor = self._floor.get(destination)
        if floor is not None and floor <= due:
            return
        db.execute(
            "INSERT INTO destination VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET next_due = excluded.next_due WHERE next_due > excluded.next_due",
            (destination, destination[:3], due),
        )
        if len(self._floor) >= FLOORS:
            self._floor.clear()
        self._floor[destination] = due

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """Add to the body of a message to come."""
        await self._bodies.append(msgid, offset, chunk)

    async def discard(self, msgid: int) -> None:
        """Forget an appended body."""
        self._bodies.discard(msgid)

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        """A piece of a body, from its row or its file."""
        return await self._read(lambda db: self._piece(db, msgid, offset, count))

    def _piece(self, db: sqlite3.Connection, msgid: int, offset: int, count: int) -> bytes:
        row = db.execute(
            "SELECT body IS NULL, substr(body, ?, ?), segment, at, size FROM message WHERE msgid = ?",
            (offset + 1, count, msgid),
        ).fetchone()
        if row is None:
            raise TempFail(f"queue: there is no message {msgid:08x}")
        outside, data, segment, at, size = row
        if segment is not None:
            return self._segments.read(segment, at + offset, max(0, min(count, size - offset)))
        return self._bodies.read(msgid, offset, count) if outside else data or b""

    # Attempts that ended.

    def settle(self, changes: list[Gone | Later]) -> "asyncio.Future[list[bool]]":
        """Apply changes with their bounces in one transaction; files of messages that went are removed after it."""
        freed: list[int] = []

        def run(db: sqlite3.Connection) -> list[bool]:
            freed.clear()
            done = [self._apply(db, change) for change in changes]
            for msgid in dict.fromkeys(c.evpid >> 32 for c in changes if isinstance(c, Gone)):
                freed.extend(self._delete_message(db, msgid))
            return done

        return self._freeing(self._writer.submit(run), freed)

    def _apply(self, db: sqlite3.Connection, change: Gone | Later) -> bool:
        if isinstance(change, Gone):
            there = db.execute("DELETE FROM envelope WHERE evpid = ?", (change.evpid,)).rowcount > 0
        else:
            values = (change.data, change.next_try, change.tried, change.attempt, change.evpid)
            statement = "UPDATE envelope SET data = ?, next_try = ?, tried = ?, attempt = ? WHERE evpid = ?"
            there = db.execute(statement, values).rowcount > 0
            if there:
                self._touch(db, change.destination, change.next_try)
        if there and change.bounce is not None:
            data = _encode_bounce(change.bounce)
            db.execute("INSERT INTO bounce (msgid, data) VALUES (?, ?)", (change.evpid >> 32, data))
        return there

    def _freeing(self, future: "asyncio.Future[T]", freed: list[int]) -> "asyncio.Future[T]":
        """Remove the body files in `freed` when the change is durable."""

        def remove(done: "asyncio.Future[T]") -> None:
            if freed and not done.cancelled() and done.exception() is None:
                self._body_threads.submit(self._bodies.unlink, list(freed))

        future.add_done_callback(remove)
        return future

    # What the scheduler asks.

    async def due(self, destination: str, after: tuple[int, int], limit: int, body_budget: int) -> Page:
        """A page of a destination's envelopes."""
        return await self._read(lambda db: self._page(db, destination, after, limit, body_budget))

    def _page(self, db: sqlite3.Connection, destination: str, after: tuple[int, int], limit: int, budget: int) -> Page:
        query = (
            "WHERE e.destination = ? AND e.suspended = 0 AND (e.next_try, e.evpid) > (?, ?)"
            " ORDER BY e.next_try, e.evpid LIMIT ?"
        )
        rows: list[Row] = []
        damaged: list[tuple[int, int]] = []
        cursor = db.execute(_ROW_BODY + query, (destination, *after, limit + 1))
        for fields in cursor:
            if len(rows) + len(damaged) == limit:
                cursor.close()
                return Page(rows, fields[2], damaged)
            try:
                row = _row(fields)
            except (msgspec.MsgspecError, UnicodeError):  # it must not keep the others from being sent
                damaged.append((fields[2], fields[0]))
                continue
            if row.size <= budget:
                if not row.body and 0 < row.size <= INLINE_BODY:  # not in its row
                    row = msgspec.structs.replace(row, body=self._outside(row, *fields[12:14]))
                budget -= len(row.body)
            elif row.body:
                row = msgspec.structs.replace(row, body=b"")
            rows.append(row)
        return Page(rows, None, damaged)

    def _outside(self, row: Row, segment: int | None, at: int) -> bytes:
        try:
            if segment is not None:
                return self._segments.read(segment, at, row.size)
            return self._bodies.read(row.envelope.msgid, 0, row.size)
        except TempFail:
            return b""  # asked for again when it is sent; it is that attempt's failure, not that of the whole page

    async def destinations(self, kind: str, now: int, limit: int) -> list[str]:
        """Destinations that are due."""
        query = "SELECT key FROM destination WHERE kind = ? AND next_due <= ? ORDER BY next_due LIMIT ?"
        rows = await self._read(lambda db: db.execute(query, (kind, now, limit)).fetchall())
        return [key for (key,) in rows]

    async def next_destination(self, kind: str, now: int) -> int | None:
        """When the next one will be."""
        query = "SELECT min(next_due) FROM destination WHERE kind = ? AND next_due > ?"
        rows = await self._read(lambda db: db.execute(query, (kind, now)).fetchall())
        due: int | None = rows[0][0]
        return due

    def rest(self, destination: str, not_before: int) -> "asyncio.Future[int | None]":
        """Note when the destination is to be looked at again."""

        def run(db: sqlite3.Connection) -> int | None:
            (due,) = db.execute(
                "SELECT min(next_try) FROM envelope WHERE destination = ? AND suspended = 0", (destination,)
            ).fetchone()
            if due is None:
                db.execute("DELETE FROM destination WHERE key = ?", (destination,))
                self._floor.pop(destination, None)
                return None
            due = max(int(due), not_before)
            db.execute("UPDATE destination SET next_due = ? WHERE key = ?", (due, destination))
            self._floor[destination] = due
            return due

        return self._writer.submit(run)

    async def stranded(self, now: int, horizon: int) -> list[str]:
        """Bring back what a wrong clock has put off beyond the horizon."""

        def run(db: sqlite3.Connection) -> list[str]:
            keys = [k for (k,) in db.execute("SELECT key FROM destination WHERE next_due > ?", (horizon,))]
            for key in keys:
                db.execute("UPDATE destination SET next_due = ? WHERE key = ?", (now, key))
                late = "UPDATE envelope SET next_try = ? WHERE destination = ? AND suspended = 0 AND next_try > ?"
                db.execute(late, (now, key, horizon))
                self._floor[key] = now
            return keys

        query = "SELECT EXISTS (SELECT 1 FROM destination WHERE next_due > ? AND kind IN ('mda', 'mta'))"
        (rows,) = await self._read(lambda db: db.execute(query, (horizon,)).fetchall())
        return await self._writer.submit(run) if rows[0] else []

    # What the operator asks.

    async def rows(self, after: int, count: int, which: int) -> list[Row]:
        """A page of envelopes."""
        low, high = _range(which)
        query = _ROW_PLAIN + "WHERE e.evpid > ? AND e.evpid <= ? ORDER BY e.evpid LIMIT ?"
        values = (max(low, min(after, high)), high, count)
        return await self._read(lambda db: [_row(f) for f in db.execute(query, values)])

    def remove(self, evpids: list[int]) -> "asyncio.Future[list[Envelope]]":
        """Delete envelopes."""
        freed: list[int] = []

        def run(db: sqlite3.Connection) -> list[Envelope]:
            freed.clear()
            gone = []
            for evpid in evpids:
                gone += db.execute("DELETE FROM envelope WHERE evpid = ? RETURNING data", (evpid,)).fetchall()
            for msgid in dict.fromkeys(evpid >> 32 for evpid in evpids):
                freed.extend(self._delete_message(db, msgid))
            return [decode_envelope(data) for (data,) in gone]

        return self._freeing(self._writer.submit(run), freed)

    def suspend(self, evpids: list[int], suspended: bool) -> "asyncio.Future[dict[int, str]]":
        """Hold or release envelopes."""
        statement = (
            "UPDATE envelope SET suspended = ?1 WHERE evpid = ?2 AND suspended <> ?1 RETURNING destination, next_try"
        )

        def run(db: sqlite3.Connection) -> dict[int, str]:
            changed: dict[int, str] = {}
            for evpid in evpids:
                for destination, due in db.execute(statement, (suspended, evpid)).fetchall():
                    changed[evpid] = destination
                    if not suspended:
                        self._touch(db, destination, due)
            return changed

        return self._writer.submit(run)

    def schedule(self, evpids: list[int], now: int) -> "asyncio.Future[dict[int, str]]":
        """Make envelopes due."""
        statement = "UPDATE envelope SET next_try = min(next_try, ?) WHERE evpid = ? RETURNING destination, next_try"

        def run(db: sqlite3.Connection) -> dict[int, str]:
            changed: dict[int, str] = {}
            for evpid in evpids:
                for destination, due in db.execute(statement, (now, evpid)).fetchall():
                    changed[evpid] = destination
                    self._touch(db, destination, due)
            return changed

        return self._writer.submit(run)

    async def counts(self) -> tuple[int, int]:
        """Envelopes and messages."""
        query = "SELECT (SELECT count(*) FROM envelope), (SELECT count(*) FROM message)"
        envelopes, messages = await self._read(lambda db: db.execute(query).fetchone())
        return envelopes, messages

    # Bounces.

    async def bouncing(self, limit: int) -> list[int]:
        """Messages with pending bounces."""
        query = "SELECT DISTINCT msgid FROM bounce LIMIT ?"
        return [m for (m,) in await self._read(lambda db: db.execute(query, (limit,)).fetchall())]

    async def bounces(self, msgid: int, limit: int) -> list[tuple[int, PendingBounce]]:
        """The pending bounces of a message."""
        query = "SELECT id, data FROM bounce WHERE msgid = ? ORDER BY id LIMIT ?"
        rows = await self._read(lambda db: db.execute(query, (msgid, limit)).fetchall())
        return [(number, _decode_bounce(data)) for number, data in rows]

    def drop_bounces(self, msgid: int, ids: tuple[int, ...]) -> "asyncio.Future[None]":
        """Forget pending bounces."""
        freed: list[int] = []

        def run(db: sqlite3.Connection) -> None:
            freed[:] = self._drop_bounces(db, msgid, ids)

        return self._freeing(self._writer.submit(run), freed)

    async def sweep(self) -> int:
        """Remove orphan body files, a folder at a time."""
        self._bodies.drop_abandoned()
        await self._writer.submit(self._segments.tidy_soon)
        swept = 0
        for folder in range(256):
            orphans = await self._bodies.orphans(folder, self._known)
            self._bodies.unlink(orphans)
            swept += len(orphans)
        return swept

    async def _known(self, msgids: list[int]) -> set[int]:
        """Those of the messages that are there."""
        return await self._read(functools.partial(_known, msgids))

    def _forget_group(self) -> None:
        """In the writer's thread: a request, or all of its group, was rolled back."""
        self._floor.clear()
        self._segments.rolled_back()

    def _delete_message(self, db: sqlite3.Connection, msgid: int) -> list[int]:
        """Delete a message that nothing needs any more; [msgid] if its body is a file that can be removed."""
        rows = db.execute(
            "DELETE FROM message WHERE msgid = ?1"
            " AND NOT EXISTS (SELECT 1 FROM envelope WHERE evpid > ?1 << 32 AND evpid <= (?1 << 32 | 4294967295))"
            " AND NOT EXISTS (SELECT 1 FROM bounce WHERE msgid = ?1) RETURNING body IS NULL, segment",
            (msgid,),
        ).fetchall()
        if not rows:
            return []
        outside, segment = rows[0]
        if segment is not None:
            self._segments.shrunk(segment)
            return []
        return [msgid] if outside else []

    def _drop_bounces(
        self, db: sqlite3.Connection, msgid: int, ids: Iterable[int], *, all_there: bool = False
    ) -> list[int]:
        for number in ids:
            there = db.execute("DELETE FROM bounce WHERE id = ? AND msgid = ?", (number, msgid)).rowcount
            if all_there and not there:
                raise TempFail(f"queue: a bounce of {msgid:08x} was written already")
        return self._delete_message(db, msgid)

    async def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        def work() -> T:
            db = self._readers.get()
            try:
                return run(db)
            finally:
                self._readers.put(db)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_threads, work)
        except sqlite3.Error as error:
            raise TempFail(f"queue: {error}") from error


def _open(path: str) -> "tuple[queue.SimpleQueue[sqlite3.Connection], sqlite3.Connection]":
    """The readers' connections and the writer's."""
    try:
        db = schema.connect(path, writer=True)
        try:
            schema.prepare(db, path)
        except BaseException:
            db.close()
            raise
        readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(READERS):
            readers.put(schema.connect(path, writer=False))
    except sqlite3.Error as error:
        raise PillarboxError(f"{path}: {error}") from error
    return readers, db


def _row(fields: tuple[Any, ...]) -> Row:
    return Row(
        envelope=decode_envelope(fields[6]),
        destination=fields[1],
        next_try=fields[2],
        tried=fields[4],
        attempt=fields[5],
        suspended=bool(fields[3]),
        size=fields[7],
        eight_bit=bool(fields[8]),
        smtputf8=bool(fields[9]),
        require_tls=bool(fields[10]),
        body=fields[11] or b"",
    )


def _range(which: int) -> tuple[int, int]:
    """(low, high): the evpids behind low, up to high, that an operator means by an evpid, a msgid, or 0 for all."""
    if which == 0:
        return 0, 2**63 - 1
    if which < 2**31:
        return which << 32, which << 32 | 0xFFFFFFFF
    if which < 2**32 or which >= 2**63:
        return 0, 0  # ids that were never handed out
    return which - 1, which


def _known(msgids: list[int], db: sqlite3.Connection) -> set[int]:
    query = "SELECT 1 FROM message WHERE msgid = ?"
    return {m for m in msgids if db.execute(query, (m,)).fetchone()}
