"""`table-mysql`: queries to MySQL or MariaDB, with the key as their only `?`."""

import contextlib
import os
from functools import partial
from typing import Any

import pymysql
from pymysql.converters import encoders

from pillarbox.backends import sql
from pillarbox.backends.pool import CONNECT_TIMEOUT, DEADLINE, Lost
from pillarbox.backends.settings import Format, Settings, read_settings
from pillarbox.backends.sql import Row, SqlBackend
from pillarbox.sdk.table import Table, TableError

PORT = 3306
# Where MySQL's library looks for the local server: Debian, Red Hat, the source.
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")  # noqa: S108 - where it is
# Errors of the server after which it closes the connection: shutdown, killed, idle for too long.
_CLOSING = {1053, 1927, 3169, 4031}

KEYS = ("host", "username", "password", "database", "port", "socket", *sql.KEYS)


def load(path: str, table: Table) -> SqlBackend:
    """The backend of a configuration file. Raises TableError."""
    settings = read_settings(path, Format(KEYS))
    return SqlBackend(settings, partial(Mysql, _options(settings)))


def _options(settings: Settings) -> dict[str, Any]:
    """Where to connect. COMPAT: as MySQL's library, `localhost` or no host means the local socket."""
    host = settings.get("host") or "localhost"
    options: dict[str, Any] = {"host": host, "port": settings.number("port", PORT, 65535)}
    options |= {"user": settings.get("username"), "password": settings.get("password") or ""}
    options["database"] = settings.get("database")
    path = settings.get("socket")
    if not path and host == "localhost" and not settings.get("port"):
        path = next((place for place in SOCKETS if os.path.exists(place)), None)
    return options | {"unix_socket": path}


class Mysql:
    """A connection. The server prepares each query once, and takes the key as its parameter."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            self._connection = pymysql.connect(
                **options,
                charset="utf8mb4",
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=DEADLINE,
                write_timeout=DEADLINE,
                conv=encoders,  # values stay the text that the server sends
            )
        except (pymysql.Error, OSError) as error:
            raise Lost(f"MySQL: {_reason(error)}") from None
        self._prepared: dict[str, str] = {}

    def select(self, query: str, key: str | None, most: int) -> list[Row]:
        """Up to `most` rows, each value in the server's own text form."""
        try:
            with self._connection.cursor() as cursor:
                statement = self._statement(cursor, query)
                if key is None:
                    cursor.execute(f"EXECUTE {statement}")
                else:
                    cursor.execute("SET @pillarbox_key = %s", (key,))
                    cursor.execute(f"EXECUTE {statement} USING @pillarbox_key")
                described, rows = cursor.description is not None, cursor.fetchmany(most)
        except (pymysql.Error, OSError) as error:
            raise (Lost if _lost(error) else TableError)(f"MySQL: {_reason(error)}") from None
        if not described:
            raise TableError(f"returns nothing: {query}")
        return [[sql.text(field) for field in row] for row in rows]

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(pymysql.Error, OSError):
            self._connection.close()

    def abort(self) -> None:
        """Nothing to do: reading ends by its own deadline."""

    def _statement(self, cursor: Any, query: str) -> str:
        """The name under which the server has prepared it."""
        name = self._prepared.get(query)
        if name is None:
            name = f"pillarbox_{len(self._prepared)}"
            cursor.execute(f"PREPARE {name} FROM %s", (query,))
            self._prepared[query] = name
        return name


def _lost(error: Exception) -> bool:
    if isinstance(error, OSError | pymysql.InterfaceError):
        return True
    code = error.args[0] if error.args else 0
    return isinstance(code, int) and (2000 <= code < 3000 or code in _CLOSING)


def _reason(error: Exception) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)
