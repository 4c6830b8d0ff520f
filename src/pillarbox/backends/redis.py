"""`table-redis`: one Redis command a service, with `%s` for the key; a master and, while it is away, a slave."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from pillarbox.backends.pool import CONNECT_TIMEOUT, DEADLINE, Lost, Pool
from pillarbox.backends.rotation import rotation
from pillarbox.backends.settings import Format, Settings, read_settings
from pillarbox.backends.sql import FETCH_KEYS, FETCHED
from pillarbox.sdk.table import Service, Table, TableError, Value

MASTER = "127.0.0.1"
MASTER_PORT = 6379
SLAVE_PORT = 6380
MAX_DATABASE = 256
ON_SLAVE = 30.0  # seconds on a slave before the master is tried again

# COMPAT: these are there with no word in the file, as `GET SERVICE:%s`.
_BY_DEFAULT = (
    Service.ALIAS, Service.DOMAIN, Service.CREDENTIALS, Service.NETADDR, Service.USERINFO, Service.SOURCE,
    Service.MAILADDR, Service.ADDRNAME,
)  # fmt: skip
# Ours; the reference's program has no query for these.
_IF_NAMED = (Service.MAILADDRMAP, Service.RELAYHOST, Service.STRING, Service.REGEX)
# An integer is an answer where the question is whether there is such a key.
_MEMBERSHIPS = {Service.DOMAIN, Service.NETADDR, Service.MAILADDR, Service.STRING, Service.REGEX}
_PARTS = {Service.CREDENTIALS, Service.USERINFO}
KEYS = (
    "master", "master_port", "slave", "slave_port", "password", "database", *FETCH_KEYS,
    *(f"query_{service}" for service in (*_BY_DEFAULT, *_IF_NAMED)),
)  # fmt: skip

Reply = bytes | int | list["Reply"] | None


@dataclass(frozen=True, slots=True)
class Place:
    """A server: `host` may be `unix:/path`."""

    host: str
    port: int


def load(path: str, table: Table) -> "RedisBackend":
    """The backend of a configuration file. Raises TableError."""
    return RedisBackend(read_settings(path, Format(KEYS)))


class RedisBackend:
    """The commands of one file."""

    def __init__(self, settings: Settings) -> None:
        places = [Place(settings.get("master") or MASTER, settings.number("master_port", MASTER_PORT, 65535))]
        slave_port = settings.number("slave_port", SLAVE_PORT, 65535)
        if slave := settings.get("slave"):
            places.append(Place(slave, slave_port))
        database, password = settings.number("database", 0, MAX_DATABASE), settings.get("password")
        self._pool: Pool[Redis] = Pool(lambda: Redis(places, database=database, password=password))
        self._queries = {service: settings.get(f"query_{service}") or f"GET {service}:%s" for service in _BY_DEFAULT}
        named = ((service, settings.get(f"query_{service}")) for service in _IF_NAMED)
        self._queries |= {service: query for service, query in named if query}
        self.lookups = self.checks = list(self._queries)
        self._rotations = {
            service: rotation(settings, service, partial(self._list, query))
            for service in FETCHED
            if (query := settings.get(f"fetch_{service}"))
        }
        self.fetches = list(self._rotations)

    async def lookup(self, service: Service, key: str) -> Value:
        """The value in the reply to the service's command."""
        reply = await self._ask(self._queries[service], key)
        if isinstance(reply, int):
            if service not in _MEMBERSHIPS:
                raise TableError(f"query_{service} replies with a number")
            return key if reply else None
        found = _strings(reply)
        if not found or (isinstance(reply, bytes) and service in _PARTS):
            return found[0] if found else None
        return found if service in (*_PARTS, Service.ALIAS, Service.MAILADDRMAP) else _single(service, found)

    async def check(self, service: Service, key: str) -> bool:
        """Whether the reply to the service's command says or holds anything."""
        reply = await self._ask(self._queries[service], key)
        return bool(reply if isinstance(reply, int) else _strings(reply))

    async def fetch(self, service: Service) -> Value:
        """The next of what the service's fetch command replied."""
        return await self._rotations[service].next()

    async def probe(self) -> None:
        """Whether a server answers."""
        await self._pool.run(lambda connection: connection.command([b"PING"]))

    def close(self) -> None:
        """Give up the connections."""
        self._pool.close()

    async def _ask(self, query: str, key: str) -> Reply:
        words = command(query, key)
        return await self._pool.run(lambda connection: connection.command(words))

    async def _list(self, query: str) -> Iterable[str]:
        return _strings(await self._ask(query, ""))


def command(query: str, key: str) -> list[bytes]:
    """The words of a command: cut at blanks first, so that a key never makes further ones; `%%` is a percent sign."""
    return [
        "%".join(part.replace("%s", key) for part in word.split("%%")).encode(errors="surrogateescape")
        for word in query.split()
    ]


class Redis:
    """A connection to the first server that lets us in."""

    def __init__(
        self,
        places: Sequence[Place],
        *,
        database: int,
        password: str | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection: Any = None
        self._now = now
        reasons = []
        for number, place in enumerate(places):
            try:
                self._connection = _connect(place, database, password)
                self._until = now() + ON_SLAVE if number else None
                return
            except (redis.RedisError, OSError) as error:
                reasons.append(f"Redis at {place.host}: {error}")
        raise Lost("; ".join(reasons))

    def command(self, words: Sequence[bytes]) -> Reply:
        """The reply as it comes, nothing converted. Raises Lost, TableError."""
        if self._until is not None and self._now() >= self._until:
            raise Lost("it is time to look for the master")
        try:
            self._connection.send_command(*words)
            reply: Reply = self._connection.read_response(disable_decoding=True)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise Lost(f"Redis: {error}") from None
        except redis.RedisError as error:
            raise TableError(f"Redis: {error}") from None
        return reply

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()

    def abort(self) -> None:
        """Nothing to do: reading ends by its own deadline."""


def _connect(place: Place, database: int, password: str | None) -> Any:
    """redis-py's single connection, without the client around it that converts replies; it has no types."""
    limits: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": DEADLINE}
    account: dict[str, Any] = {
        "db": database,
        "password": password,
        "protocol": 2,
    }  # RESP2: replies as the manual has them
    kind: Any
    if place.host.startswith("unix:"):
        kind, where = redis.UnixDomainSocketConnection, dict[str, Any](path=place.host[5:])
    else:
        kind, where = redis.Connection, dict[str, Any](host=place.host, port=place.port)
    connection = kind(**where, **account, **limits)
    connection.connect()
    return connection


def _strings(reply: Reply) -> list[str]:
    """The strings of a reply; none where it is nil, or an array of nothing but nil (HMGET of an unknown key)."""
    parts = reply if isinstance(reply, list) else [reply]
    if all(part is None for part in parts):
        return []
    if not all(isinstance(part, bytes) for part in parts):
        raise TableError("the reply lacks a part, or has one that is no string")
    return [part.decode(errors="surrogateescape") for part in parts if isinstance(part, bytes)]


def _single(service: Service, found: list[str]) -> str:
    if len(found) > 1:
        raise TableError(f"query_{service} replies with more than one string")
    return found[0]
