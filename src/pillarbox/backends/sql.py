"""What the SQL programs share: `query_SERVICE` for the keys of a service, `fetch_SERVICE` for its list.

A query gets the key as its only parameter. How many columns it returns depends on the service, and how many rows
count: all of them for `alias` and `mailaddrmap`, the first one for the others.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from pillarbox.backends.pool import Connection, Pool
from pillarbox.backends.rotation import rotation
from pillarbox.backends.settings import Settings
from pillarbox.sdk.table import Service, TableError, Value

MAX_ROWS = 10_000

Row = Sequence[str | None]

COLUMNS = {
    Service.ALIAS: 1,
    Service.DOMAIN: 1,
    Service.CREDENTIALS: 2,
    Service.NETADDR: 1,
    Service.USERINFO: 3,
    Service.SOURCE: 1,
    Service.MAILADDR: 1,
    Service.ADDRNAME: 1,
    Service.MAILADDRMAP: 1,
    # Ours; the reference's programs have no query for these.
    Service.RELAYHOST: 1,
    Service.STRING: 1,
    Service.REGEX: 1,
}
FETCHED = (Service.SOURCE, Service.RELAYHOST)
FETCH_KEYS = tuple(f"fetch_{service}{suffix}" for service in FETCHED for suffix in ("", "_expire", "_refresh"))
KEYS = (*(f"query_{service}" for service in COLUMNS), *FETCH_KEYS)


class SqlConnection(Connection, Protocol):
    """A connection that answers queries."""

    def select(self, query: str, key: str | None, most: int) -> list[Row]:
        """Up to `most` rows, as text; `key` is the parameter, where there is one. Raises Lost, TableError."""


class SqlBackend:
    """The queries of one file, asked over the connections that `connect` makes."""

    def __init__(self, settings: Settings, connect: Callable[[], SqlConnection]) -> None:
        self._pool = Pool(connect)
        named = ((service, settings.get(f"query_{service}")) for service in COLUMNS)
        self._queries = {service: query for service, query in named if query}
        self.lookups = self.checks = list(self._queries)
        self._rotations = {
            service: rotation(settings, service, self._loader(service, query))
            for service in FETCHED
            if (query := settings.get(f"fetch_{service}"))
        }
        self.fetches = list(self._rotations)
        if not self.lookups and not self.fetches:
            raise TableError(f"{settings.path}: there is no query_… and no fetch_… in it")

    async def lookup(self, service: Service, key: str) -> Value:
        """The value that the service's query returns for a key."""
        rows = await self._select(f"query_{service}", self._queries[service], _text(key))
        fields = [_fields(f"query_{service}", row, COLUMNS[service]) for row in rows]
        if service in (Service.ALIAS, Service.MAILADDRMAP):
            return [row[0] for row in fields]
        return fields[0] if fields else None

    async def check(self, service: Service, key: str) -> bool:
        """Whether the service's query returns a row."""
        query = self._queries[service]
        return bool(await self._pool.run(lambda connection: connection.select(query, _text(key), 1)))

    async def fetch(self, service: Service) -> Value:
        """The next of what the service's fetch query returned."""
        return await self._rotations[service].next()

    async def probe(self) -> None:
        """Whether the database answers."""
        await self._pool.run(lambda connection: connection.select("SELECT 1", None, 1))

    def close(self) -> None:
        """Give up the connections."""
        self._pool.close()

    def _loader(self, service: Service, query: str) -> Callable[[], Awaitable[Iterable[str]]]:
        async def load() -> Iterable[str]:
            rows = await self._select(f"fetch_{service}", query, None)
            return [_fields(f"fetch_{service}", row, 1)[0] for row in rows]

        return load

    async def _select(self, name: str, query: str, key: str | None) -> list[Row]:
        rows = await self._pool.run(lambda connection: connection.select(query, key, MAX_ROWS + 1))
        if len(rows) > MAX_ROWS:
            raise TableError(f"{name} returns more than {MAX_ROWS} rows")
        return rows


def _fields(name: str, row: Row, columns: int) -> list[str]:
    """The columns that are used; NULL is no value."""
    if len(row) < columns:
        raise TableError(f"{name} returns {len(row)} columns, not {columns}")
    fields = [field for field in row[:columns] if field is not None]
    if len(fields) < columns:
        raise TableError(f"{name} returns NULL")
    return fields


def _text(key: str) -> str:
    """A key as the databases take it. Raises TableError on bytes that are no UTF-8."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise TableError("the key is no UTF-8") from None
    return key


def text(field: str | bytes | int | float | None) -> str | None:
    """A field as a driver gives it, as text: bytes that are no UTF-8 pass through as they are."""
    if field is None or isinstance(field, str):
        return field
    return field.decode(errors="surrogateescape") if isinstance(field, bytes) else str(field)
