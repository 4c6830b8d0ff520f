"""A table: one interface whatever stands behind it.

Questions are asynchronous because a table may be a program or a name service; tables in memory answer without
suspending. Keys are compared without regard to case. What a value means is `tables/services`.

Who opens and closes: each configuration has tables of its own, made by `open_table`, which starts nothing. Whoever
made them (`routing/lookup`, for one generation) calls `open` once there is somebody to start programs, and `close` when
the last session of that configuration has ended. A table that is closed answers nothing, and is not opened again.
"""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

from pillarbox.conf import model
from pillarbox.mail.idn import fold_address, fold_domain
from pillarbox.roles.lookup import User
from pillarbox.tables.db import DbTable, ReadByParent
from pillarbox.tables.matchers import Matcher, build_matcher
from pillarbox.tables.passwd import PasswdTable
from pillarbox.tables.services import Service, parse_address, parse_userinfo

Entries = tuple[tuple[str, str], ...]

DB_THREADS = 2  # of each db table


class Table(Protocol):
    """What may be asked of a table. Every method may raise `TempFail`."""

    name: str

    async def match(self, service: Service, key: str) -> bool:
        """Does the table hold the key?"""
        ...

    async def lookup(self, service: Service, key: str) -> str | None:
        """The value of the key, None where there is none."""
        ...

    async def fetch(self, service: Service) -> str | None:
        """The next entry of a list, round-robin; None where it is empty."""
        ...

    async def update(self) -> None:
        """Read again what it reads (`smtpctl update table`); what fails leaves it as it was."""
        ...

    def open(self) -> None:
        """Begin: it will be asked."""
        ...

    async def close(self) -> None:
        """End: what it holds or runs is given up."""
        ...


class MemoryTable:
    """A static table, or a file as it was when last read. Compiled for a service when that is first asked for."""

    def __init__(
        self, *, name: str, entries: Entries, delimiter: str, on_bad_regex: Callable[[str, str], None]
    ) -> None:
        self.name = name
        self.entries = entries
        self._delimiter = delimiter
        self._on_bad_regex = on_bad_regex
        self._values: dict[Callable[[str], str], dict[str, str]] = {}  # by the folding of the keys
        self._addresses: dict[str, str] | None = None
        self._matchers: dict[Service, Matcher] = {}
        self._keys: list[str] | None = None
        self._next = 0

    async def match(self, service: Service, key: str) -> bool:
        """See `Table`."""
        matcher = self._matchers.get(service)
        if matcher is None:
            matcher = self._matchers[service] = build_matcher(
                service, [(self.all_keys(), 1)], delimiter=self._delimiter, on_bad_regex=self._on_bad_regex
            )
        return matcher.mask(key) != 0

    async def lookup(self, service: Service, key: str) -> str | None:
        """See `Table`. An address (addrname) is found however it is written."""
        if service is Service.ADDRNAME:
            return self._address_names().get(parse_address(key) or key.lower())
        fold = fold_domain if service is Service.RELAYHOST else fold_address
        values = self._values.get(fold)
        if values is None:
            values = self._values[fold] = {fold(k): v for k, v in self.entries}
        return values.get(fold(key))

    async def fetch(self, service: Service) -> str | None:
        """See `Table`. The order is that of the keys, as the reference's."""
        keys = self.all_keys()
        if not keys:
            return None
        self._next %= len(keys)
        key = keys[self._next]
        self._next += 1
        return key

    def upcoming(self) -> str | None:
        """What `fetch` would return next, and still will."""
        keys = self.all_keys()
        return keys[self._next % len(keys)] if keys else None

    async def update(self) -> None:
        """See `Table`. A file is read by the parent; its new content is a new table."""

    def open(self) -> None:
        """See `Table`."""

    async def close(self) -> None:
        """See `Table`."""

    def all_keys(self) -> list[str]:
        """The entries of a list, each once, sorted."""
        if self._keys is None:
            self._keys = sorted({key for key, _ in self.entries})
        return self._keys

    def _address_names(self) -> dict[str, str]:
        if self._addresses is None:
            self._addresses = {parse_address(k) or k.lower(): v for k, v in self.entries}
        return self._addresses


async def lookup_user(table: Table, name: str) -> User | None:
    """The userinfo service of any table."""
    if isinstance(table, PasswdTable):
        return await table.user(name)
    key = name.lower()
    value = await table.lookup(Service.USERINFO, key)
    return None if value is None else parse_userinfo(key, value)


def open_table(
    table: model.Table,
    *,
    delimiter: str,
    names: Executor,
    on_bad_regex: Callable[[str, str], None],
    read_by_parent: ReadByParent,
    program: Callable[[str], Table],
) -> Table:
    """The table for one of the configuration.

    `names`: threads that ask the name service. `program`: makes the table, by its name, that a program answers for.
    """
    if table.kind in (model.TableKind.STATIC, model.TableKind.FILE):
        return MemoryTable(name=table.name, entries=table.entries, delimiter=delimiter, on_bad_regex=on_bad_regex)
    if table.kind is model.TableKind.DB:
        return DbTable(
            name=table.name,
            path=table.config,
            delimiter=delimiter,
            # Its own: a file that hangs stops no other. They end with the table and the last question about it.
            executor=ThreadPoolExecutor(max_workers=DB_THREADS, thread_name_prefix="db"),
            on_bad_regex=on_bad_regex,
            read_by_parent=read_by_parent,
        )
    if table.kind is model.TableKind.GETPWNAM:
        return PasswdTable(name=table.name, executor=names)
    return program(table.name)
