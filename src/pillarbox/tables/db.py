"""`db:` tables: maps that makemap(8) made, asked on disk.

A value is found by its key where it lies in the file, so a large map costs no memory. Services with patterns (domain,
netaddr, mailaddr, regex), lists and addresses are compiled once for each state of the file, which the reference walks
each time. All reading is done in threads. A file that was replaced is opened again; one that is missing, damaged or
being written is a `TempFail`.

Lookup opens the file itself where it may. Where it may not (a map of passwords is often readable for root alone) the
parent reads it, and it is kept in memory.
"""

import asyncio
import os
import stat
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import TypeVar

from pillarbox.errors import TempFail
from pillarbox.mail.idn import address_forms
from pillarbox.roles.parent import DatabasePart, Stamp
from pillarbox.tables.berkeley import read_database
from pillarbox.tables.database import Database, DatabaseError
from pillarbox.tables.matchers import Matcher, build_matcher
from pillarbox.tables.services import Service, parse_address

ReadByParent = Callable[[str, int], Awaitable[DatabasePart]]
Answer = TypeVar("Answer")

_PATTERNED = frozenset((Service.DOMAIN, Service.NETADDR, Service.MAILADDR, Service.REGEX))


def stamp(status: os.stat_result) -> Stamp:
    """What tells two states of a file apart."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file and its status; raises OSError, or `DatabaseError` on anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DatabaseError("not a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def check_database(path: str) -> str:
    """What keeps a file from being used as a table, "" where nothing does. It may block."""
    try:
        descriptor, status = open_regular(path)
        try:
            read_database(lambda offset, size: os.pread(descriptor, size, offset), status.st_size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, DatabaseError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


class _State:
    """The map as it was at one time, and what was compiled from it. Shared by threads.

    Read by position, never mapped into memory: a file that somebody cuts short would end the process (SIGBUS).
    """

    def __init__(self, database: Database, stamp: Stamp, *, descriptor: int = -1) -> None:
        self.stamp = stamp
        self._database = database
        self._descriptor = descriptor
        self._matchers: dict[Service, Matcher] = {}
        self._addresses: dict[str, str] | None = None
        self._keys: list[str] | None = None
        self._compiling = threading.Lock()
        if descriptor >= 0:
            weakref.finalize(self, os.close, descriptor)

    def unchanged(self) -> bool:
        """Whether the file is still as it was when it was opened."""
        return self._descriptor < 0 or stamp(os.fstat(self._descriptor)) == self.stamp

    def value(self, key: str) -> str | None:
        """The value of a key in any case."""
        for stored in _stored_keys(key):
            found = self._database.get(stored)
            if found is not None:
                return _text(found)
        return None

    def any_value(self) -> str:
        """A value, "" where there is none."""
        return next((_text(value) for _, value in self._database.items()), "")

    def address_value(self, key: str) -> str | None:
        """The value of an address, however it is written."""
        with self._compiling:
            if self._addresses is None:
                pairs = ((_text(k), _text(v)) for k, v in self._database.items())
                self._addresses = {parse_address(k) or k.lower(): v for k, v in pairs}
        return self._addresses.get(parse_address(key) or key.lower())

    def matcher(self, service: Service, delimiter: str, on_bad_regex: Callable[[str, str], None]) -> Matcher:
        """The compiled patterns of a service."""
        keys = self.keys()
        with self._compiling:
            if service not in self._matchers:
                self._matchers[service] = build_matcher(
                    service, [(keys, 1)], delimiter=delimiter, on_bad_regex=on_bad_regex
                )
            return self._matchers[service]

    def keys(self) -> list[str]:
        """All keys, sorted."""
        with self._compiling:
            if self._keys is None:
                self._keys = sorted(_text(key) for key, _ in self._database.items())
            return self._keys


class DbTable:
    """A table in a Berkeley DB file; implements `Table`. `read_by_parent(path, offset)`: see `roles.parent.System`."""

    DEADLINE = 15.0  # seconds for one question
    ATTEMPTS = 3  # at a file that changes while it is read
    MAX_SIZE = 1 << 28  # bytes of a file that the parent reads

    def __init__(
        self,
        *,
        name: str,
        path: str,
        delimiter: str,
        executor: Executor,
        on_bad_regex: Callable[[str, str], None],
        read_by_parent: ReadByParent,
    ) -> None:
        self.name = name
        self._path = path
        self._delimiter = delimiter
        self._executor = executor
        self._on_bad_regex = on_bad_regex
        self._read_by_parent = read_by_parent
        self._state: _State | None = None
        self._opening = threading.Lock()
        self._loading = asyncio.Lock()
        self._next = 0

    async def match(self, service: Service, key: str) -> bool:
        """See `Table`."""
        if service not in _PATTERNED:
            return await self._ask(lambda state: state.value(key) is not None)

        def matches(state: _State) -> bool:
            return state.matcher(service, self._delimiter, self._on_bad_regex).mask(key) != 0

        return await self._ask(matches)

    async def lookup(self, service: Service, key: str) -> str | None:
        """See `Table`."""
        if service is Service.ADDRNAME:
            return await self._ask(lambda state: state.address_value(key))
        return await self._ask(lambda state: state.value(key))

    async def fetch(self, service: Service) -> str | None:
        """See `Table`; the order is that of the keys, as in other tables."""
        keys = await self.all_keys()
        if not keys:
            return None
        self._next %= len(keys)
        key = keys[self._next]
        self._next += 1
        return key

    async def all_keys(self) -> list[str]:
        """The keys, sorted."""
        return await self._ask(_State.keys)

    async def any_value(self) -> str:
        """A value of the table, "" where it has none."""
        return await self._ask(_State.any_value)

    async def update(self) -> None:
        """Open the file again, as `smtpctl update table` asks; raises TempFail where it cannot be used."""
        self._state = None
        await self._ask(lambda state: None)

    def open(self) -> None:
        """Nothing to begin: the file is opened by the first question, in a thread."""

    async def close(self) -> None:
        """Forget the file; it is closed when the last question about it is answered."""
        self._state = None

    # -- asking

    async def _ask(self, question: Callable[[_State], Answer]) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.DEADLINE):
                try:
                    return await loop.run_in_executor(self._executor, self._answer, question)
                except PermissionError:
                    state = await self._load()
                    return await loop.run_in_executor(self._executor, question, state)
        except TimeoutError:
            raise TempFail(f"table {self.name}: {self._path}: no answer within {self.DEADLINE:.0f} s") from None
        except (OSError, DatabaseError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TempFail(f"table {self.name}: {self._path}: {reason}") from None

    def _answer(self, question: Callable[[_State], Answer]) -> Answer:
        """In a thread. What was read while somebody wrote the file in place does not count."""
        for _ in range(self.ATTEMPTS):
            state = self._current()
            try:
                answer = question(state)
            except DatabaseError:
                if state.unchanged():
                    raise
                continue
            if state.unchanged():
                return answer
        raise DatabaseError("it is being written")

    def _current(self) -> _State:
        with self._opening:
            state = self._state
            if state is None or state.stamp != stamp(os.stat(self._path)):
                state = self._state = self._open()
            return state

    def _open(self) -> _State:
        descriptor, status = open_regular(self._path)
        try:
            database = read_database(lambda offset, size: os.pread(descriptor, size, offset), status.st_size)
        except BaseException:
            os.close(descriptor)
            raise
        return _State(database, stamp(status), descriptor=descriptor)

    # -- with the parent's eyes

    async def _load(self) -> _State:
        """The map as the parent reads it; what was read before counts while the file is the same."""
        async with self._loading:
            known = self._state
            # Behind its end there is nothing to send but the stamp.
            if known and (await self._read_by_parent(self._path, known.stamp[2])).stamp == known.stamp:
                return known
            for _ in range(self.ATTEMPTS):
                first = await self._read_by_parent(self._path, 0)
                content = await self._content(first)
                if content is not None:
                    self._state = _in_memory(content, first.stamp)
                    return self._state
        raise DatabaseError("it is being written")

    async def _content(self, first: DatabasePart) -> bytes | None:
        """The rest of the file too; None where it changed meanwhile."""
        size = first.stamp[2]
        if size > self.MAX_SIZE:
            raise DatabaseError(f"{size} bytes, which is too much to be read by the parent: let _smtpl read the file")
        content = bytearray(first.data)
        while len(content) < size:
            part = await self._read_by_parent(self._path, len(content))
            if part.stamp != first.stamp or not part.data:
                return None
            content += part.data
        return bytes(content)


def _in_memory(content: bytes, stamp: Stamp) -> _State:
    return _State(read_database(lambda offset, size: content[offset : offset + size], len(content)), stamp)


def _stored_keys(key: str) -> list[bytes]:
    """How a key may be stored: in lower case; by the reference's makemap, in lower case as far as it is ASCII."""
    stored = [form.encode("utf-8", "surrogateescape") + b"\0" for form in address_forms(key)]
    return stored if key.isascii() else [*stored, key.encode("utf-8", "surrogateescape").lower() + b"\0"]


def _text(stored: bytes) -> str:
    data = stored[:-1] if stored[-1:] == b"\0" else stored
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
