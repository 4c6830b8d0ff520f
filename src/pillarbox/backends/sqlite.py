"""`table-sqlite`: queries to one SQLite file, with the key as their only `?`."""

import os
import sqlite3
from functools import partial
from urllib.parse import quote

from pillarbox.backends import sql
from pillarbox.backends.pool import CONNECT_TIMEOUT, Lost
from pillarbox.backends.settings import Format, read_settings
from pillarbox.backends.sql import Row, SqlBackend
from pillarbox.sdk.table import Table, TableError

_LAST = ("dbpath", "fetch_source", "fetch_source_expire", "fetch_source_refresh")
_GONE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


def load(path: str, table: Table) -> SqlBackend:
    """The backend of a configuration file. Raises TableError."""
    settings = read_settings(path, Format(("dbpath", *sql.KEYS), lenient=True, last=_LAST))
    return SqlBackend(settings, partial(Sqlite, settings.required("dbpath")))


class Sqlite:
    """A connection; the file must exist, and is noticed to have been replaced by another."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = self._identity()
            self._database = sqlite3.connect(
                f"file:{quote(path)}?mode=rw",  # read-only where the file is; never makes one
                uri=True,
                timeout=CONNECT_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,  # `abort` comes from another one
            )
        except (OSError, sqlite3.Error) as error:
            raise Lost(f"{path}: {error}") from None
        self._database.text_factory = sql.text

    def select(self, query: str, key: str | None, most: int) -> list[Row]:
        """Up to `most` rows."""
        try:
            if self._identity() != self._file:
                raise Lost(f"{self._path} was replaced")
            cursor = self._database.execute(query, () if key is None else (key,))
            rows = cursor.fetchmany(most)
            described = cursor.description is not None
            cursor.close()
        except (OSError, sqlite3.Error) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise (Lost if isinstance(error, OSError) or code in _GONE else TableError)(
                f"{self._path}: {error}"
            ) from None
        if not described:
            raise TableError(f"returns nothing: {query}")
        return [[sql.text(field) for field in row] for row in rows]

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def abort(self) -> None:
        """Interrupt the query."""
        self._database.interrupt()

    def _identity(self) -> tuple[int, int]:
        status = os.stat(self._path)
        return status.st_dev, status.st_ino
