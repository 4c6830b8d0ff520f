"""The SQLite schema, and how a database comes to it. `user_version` counts the steps taken.

The order of envelopes is that of `evpid`, which is below 2**63 because queue hands out message ids of 31 bits.
The body is in `message.body`, or in a segment (`segments`), or where both are NULL in a file
(`bodies`). `destination.next_due` is when to look at the destination again: never later
than its first envelope, except where it was blocked. `envelope.attempt` is the last one settled: an outcome that is
repeated after a restart is known by it.
"""

import sqlite3

from pillarbox.errors import PillarboxError

STEPS = (
    """
    CREATE TABLE message (
        msgid INTEGER PRIMARY KEY,
        size INTEGER NOT NULL,
        eight_bit INTEGER NOT NULL,
        smtputf8 INTEGER NOT NULL,
        segment INTEGER,
        at INTEGER,
        body BLOB
    );
    CREATE INDEX message_segment ON message (segment, at) WHERE segment IS NOT NULL;
    CREATE TABLE envelope (
        evpid INTEGER PRIMARY KEY,
        destination TEXT NOT NULL,
        next_try INTEGER NOT NULL,
        suspended INTEGER NOT NULL DEFAULT 0,
        tried INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        data BLOB NOT NULL
    );
    CREATE INDEX envelope_due ON envelope (destination, next_try) WHERE suspended = 0;
    CREATE TABLE destination (
        key TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        next_due INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX destination_due ON destination (kind, next_due);
    CREATE TABLE bounce (
        id INTEGER PRIMARY KEY,
        msgid INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE INDEX bounce_message ON bounce (msgid);
    """,
    "ALTER TABLE message ADD COLUMN require_tls INTEGER NOT NULL DEFAULT 0",
)
VERSION = len(STEPS)


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Bring a database to this version, each step in a transaction. PillarboxError, untouched, where it is newer."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise PillarboxError(
            f"{path}: the queue has schema {version}, this version of Pillarbox knows up to {VERSION}: "
            "run the version that wrote it, or a later one"
        )
    for number, step in enumerate(STEPS[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in step.split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def connect(path: str, *, writer: bool) -> sqlite3.Connection:
    """A connection as we use them: no implicit transactions, usable from the thread that it is given to."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0, cached_statements=256)
    if writer:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            return db  # to be refused, and left as it is
        if version == 0:
            # Both only take effect in a database without tables.
            db.execute("PRAGMA page_size = 4096")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -8000")
    else:
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA cache_size = -1000")
    db.execute("PRAGMA temp_store = MEMORY")
    return db
