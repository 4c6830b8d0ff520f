"""`table-postgres`: queries to PostgreSQL, with the key as `$1`."""

import os
import socket
from functools import partial

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pillarbox.backends import sql
from pillarbox.backends.pool import CONNECT_TIMEOUT, Lost
from pillarbox.backends.settings import Format, read_settings
from pillarbox.backends.sql import Row, SqlBackend
from pillarbox.sdk.table import Table, TableError


def load(path: str, table: Table) -> SqlBackend:
    """The backend of a configuration file. Raises TableError."""
    settings = read_settings(path, Format(("conninfo", *sql.KEYS)))
    try:
        given = conninfo_to_dict(settings.required("conninfo"))
    except psycopg.Error as error:
        raise TableError(f"{path}: conninfo: {error}") from None
    fixed = {"client_encoding": "utf8"}
    defaults = {"connect_timeout": str(CONNECT_TIMEOUT), "application_name": "table-postgres"}
    conninfo = make_conninfo("", **{**defaults, **{key: str(value) for key, value in given.items()}, **fixed})
    return SqlBackend(settings, partial(Postgres, conninfo))


class Postgres:
    """A connection; nothing is prepared on the server, so that poolers between us may switch theirs."""

    def __init__(self, conninfo: str) -> None:
        try:
            self._connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise Lost(f"PostgreSQL: {error}") from None

    def select(self, query: str, key: str | None, most: int) -> list[Row]:
        """Up to `most` rows, each value in the server's own text form."""
        try:
            with psycopg.RawCursor(self._connection) as cursor:
                cursor.execute(query.encode(errors="surrogateescape"), None if key is None else [key])
                result = cursor.pgresult
        except psycopg.Error as error:
            raise (Lost if self._connection.closed else TableError)(f"PostgreSQL: {error}") from None
        if result is None or not result.nfields:
            raise TableError(f"returns nothing: {query}")
        values = range(result.nfields)
        return [
            [sql.text(result.get_value(row, column)) for column in values] for row in range(min(result.ntuples, most))
        ]

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def abort(self) -> None:
        """Cut the line: libpq itself waits without a limit."""
        try:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error):
            return  # it is closed already
