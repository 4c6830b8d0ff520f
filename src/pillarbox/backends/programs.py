"""The programs `table-sqlite`, `table-postgres`, …: their entry points, and the table that they have in common."""

import asyncio
import importlib
import logging
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import NoReturn, Protocol

from pillarbox.sdk.table import Service, Table, TableError, Value

PATIENCE = 3.0  # seconds that a start waits for the database

_log = logging.getLogger("pillarbox.backends")


class Backend(Protocol):
    """One configuration file and the database behind it. Every question raises TableError where there is no answer."""

    lookups: Collection[Service]
    checks: Collection[Service]
    fetches: Collection[Service]

    async def lookup(self, service: Service, key: str) -> Value:
        """The value of a key, of one of `lookups`."""

    async def check(self, service: Service, key: str) -> bool:
        """Whether there is such a key, of one of `checks`."""

    async def fetch(self, service: Service) -> Value:
        """The next value, of one of `fetches`."""

    async def probe(self) -> None:
        """Whether the database can be reached."""

    def close(self) -> None:
        """Give up the connections."""


class Program:
    """A table over the backend that `load` makes of a file, anew at an update. Raises TableError on a bad file."""

    def __init__(self, path: str, load: Callable[[str, Table], Backend]) -> None:
        self._path = path
        self._load = load
        self.table = Table()
        self._backend = load(path, self.table)
        self._register(self.table)

    def _register(self, table: Table) -> None:
        for service in self._backend.lookups:
            table.lookup(service)(partial(self._lookup, service))
        for service in self._backend.checks:
            table.check(service)(partial(self._check, service))
        for service in self._backend.fetches:
            table.fetch(service)(partial(self._fetch, service))
        table.start(self._start)
        table.update(self._update)

    async def _lookup(self, service: Service, key: str) -> Value:
        return await _offered(self._backend.lookups, service, self._backend).lookup(service, key)

    async def _check(self, service: Service, key: str) -> bool:
        return await _offered(self._backend.checks, service, self._backend).check(service, key)

    async def _fetch(self, service: Service) -> Value:
        return await _offered(self._backend.fetches, service, self._backend).fetch(service)

    async def _start(self) -> None:
        """A mail server starts before its database as well: until that is there, answers are errors."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._backend.probe()
        except (TableError, TimeoutError) as error:
            _log.warning("started without the database: %s", error or f"no answer within {PATIENCE:g} s")

    async def _update(self) -> None:
        fresh = self._load(self._path, self.table)
        try:
            await fresh.probe()
        except BaseException:
            fresh.close()
            raise
        old, self._backend = self._backend, fresh
        old.close()
        for name in ("lookups", "fetches"):
            if new := sorted(set(getattr(fresh, name)) - set(getattr(old, name))):
                _log.warning("new %s (%s) are known to the server after it was started again", name, ", ".join(new))


def _offered(services: Collection[Service], service: Service, backend: Backend) -> Backend:
    if service not in services:
        raise TableError(f"{service} is no longer in the configuration")
    return backend


def sqlite() -> NoReturn:
    """`table-sqlite FILE`."""
    _main("sqlite")


def postgres() -> NoReturn:
    """`table-postgres FILE`."""
    _main("postgres")


def mysql() -> NoReturn:
    """`table-mysql FILE`."""
    _main("mysql")


def ldap() -> NoReturn:
    """`table-ldap FILE`."""
    _main("ldap")


def redis() -> NoReturn:
    """`table-redis FILE`."""
    _main("redis")


def _main(name: str) -> NoReturn:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: table-{name} FILE (started by the mail server for: table NAME {name}:FILE)")
    try:
        # Only here is the driver imported: it may not be installed.
        module = importlib.import_module(f"pillarbox.backends.{name}")
    except ImportError as missing:
        sys.exit(f"table-{name}: {missing}; install it with: pip install 'pillarbox[{name}]'")
    try:
        program = Program(sys.argv[1], module.load)
    except TableError as error:
        sys.exit(f"table-{name}: {error}")
    program.table.run()
