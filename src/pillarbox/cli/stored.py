"""The queue without a server: what its store holds, read and not touched.

Only for `show queue`, `show envelope` and `show message`, with the rights of whoever asks.
"""

import os
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

from pillarbox.cli.connection import ControlError
from pillarbox.cli.spool import CHUNK
from pillarbox.mail.envelope import decode_envelope
from pillarbox.queue import schema
from pillarbox.roles.queue import QueueRow

_PAGE = 1000


class Stored:
    """The store under a state directory. Raises `ControlError`."""

    def __init__(self, state: str) -> None:
        self._bodies = os.path.join(state, "queue", "bodies")
        self._segments = os.path.join(state, "queue", "segments")
        self._path = os.path.join(state, "queue", "queue.db")

    def rows(self, msgid: int = 0) -> Iterator[QueueRow]:
        """Envelopes, of one message or all. Where there is no store yet there are none, and that is said."""
        try:
            os.stat(self._path)
        except FileNotFoundError:
            print(f"stat: {self._path}: No such file or directory", file=sys.stderr)
            return
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror}") from error
        after, last = (msgid << 32, msgid << 32 | 0xFFFFFFFF) if msgid else (0, 2**63 - 1)
        while True:
            query = "SELECT evpid, suspended, data FROM envelope WHERE evpid > ? AND evpid <= ? ORDER BY evpid LIMIT ?"
            page = self._select(query, after, last, _PAGE)
            for evpid, suspended, data in page:
                envelope = decode_envelope(data)
                # COMPAT: without the server its ttl is not known, and an envelope that has none of its own shows none.
                expire = envelope.ctime + envelope.ttl
                yield QueueRow(envelope=envelope, expire=expire, next_try=0, state="offline", suspended=bool(suspended))
                after = evpid
            if len(page) < _PAGE:
                return

    def row(self, evpid: int) -> QueueRow | None:
        """One envelope."""
        return next((row for row in self.rows(evpid >> 32) if row.envelope.evpid == evpid), None)

    def pieces(self, msgid: int) -> Iterator[bytes] | None:
        """A body, CRLF lines; None where there is no such message."""
        found = self._select("SELECT body, segment, at, size FROM message WHERE msgid = ?", msgid)
        if not found:
            return None
        body, segment, at, size = found[0]
        if segment is not None:
            return self._piece(msgid, segment, at, size)
        return iter((body,)) if body is not None else self._file(msgid)

    def _piece(self, msgid: int, segment: int, at: int, size: int) -> Iterator[bytes]:
        try:
            with open(os.path.join(self._segments, f"{segment:08x}"), "rb") as file:
                file.seek(at)
                yield file.read(size)
        except OSError as error:
            raise ControlError(f"message {msgid:08x} cannot be read") from error

    def _file(self, msgid: int) -> Iterator[bytes]:
        """The body's file, in whichever folder it is."""
        try:
            with os.scandir(self._bodies) as folders:
                paths = [os.path.join(folder.path, f"{msgid:08x}") for folder in folders]
            with open(next(filter(os.path.exists, paths), paths[0]), "rb") as body:
                while data := body.read(CHUNK):
                    yield data
        except (OSError, IndexError) as error:
            raise ControlError(f"message {msgid:08x} cannot be read") from error

    def _select(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        if not os.path.exists(self._path):
            return []
        try:
            db = sqlite3.connect(f"file:{_quoted(self._path)}?mode=ro", uri=True, timeout=5.0)
            try:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version != schema.VERSION:
                    raise ControlError(f"{self._path} is of another version of Pillarbox")
                return db.execute(query, values).fetchall()
            finally:
                db.close()
        except sqlite3.Error as error:
            raise ControlError(f"{self._path}: {error}") from error


def _quoted(path: str) -> str:
    """A path within a URI: https://www.sqlite.org/uri.html."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
