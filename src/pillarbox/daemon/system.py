"""System: what only the parent may do for lookup: `.forward` as its owner, system passwords, file tables again.

Each is done in a forked child that gives up root first (or, for passwords, does nothing else) and has a deadline
(`hanging`), so that a home on a dead file server or a hanging name service delays one lookup and nothing more. What
control changes while the server runs is kept here, for roles that are started again; a reload does not touch it.
"""

import asyncio
import ctypes
import hmac
import os
import pwd
import time
from collections.abc import Awaitable, Callable, Iterable

from pillarbox.conf.format import format_config
from pillarbox.conf.model import Config, TableKind
from pillarbox.conf.tables import TableFileError, parse_table_file
from pillarbox.daemon import check
from pillarbox.daemon.forwards import Forwards
from pillarbox.daemon.generations import Generations
from pillarbox.daemon.hanging import Hanging
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.roles.parent import DatabasePart, Reloaded
from pillarbox.tables.database import DatabaseError
from pillarbox.tables.db import open_regular, stamp

_PART = 1 << 20  # bytes of a database at a time
_CONFIG_PIECE = 64 * 1024  # characters

_YES, _NO = b"+", b"-"


class ParentSystem:
    """Implements `roles.parent.System`. `as_root`: see `forwards`.

    `paused` ("mda", "mta", "smtp") and `blocked` (source, destination) tell what to start a role with.
    """

    def __init__(
        self,
        *,
        generations: Generations,
        as_root: bool,
        on_stop: Callable[[], None],
        on_reload: Callable[[], Awaitable[Reloaded]],
        log: Log,
        paused: Iterable[str] = (),
    ) -> None:
        self._generations = generations
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._log = log
        self._hanging = Hanging(log)
        self._forwards = Forwards(as_root=as_root, hanging=self._hanging, log=log)
        self._written: tuple[Config, str] | None = None
        self.paused = set(paused)
        self.blocked: set[tuple[str, str]] = set()

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `System.read_forward`."""
        return await self._forwards.read(user, uid, gid, home)

    async def check_password(self, user: str, password: str) -> bool:
        """See `System.check_password`: shadow where it is ours to read; locked and expired accounts are refused."""
        answer = await self._hanging.in_child(
            lambda: _YES if _password_matches(user, password) else _NO, "the user database", "login"
        )
        return answer == _YES

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        """See `System.read_table`; only file tables of the running configuration."""
        table = self._generations.current.config.tables.get(name)
        if table is None or table.kind is not TableKind.FILE:
            raise TempFail(f"table {name}: not a file table of this configuration")
        entries = await asyncio.to_thread(_read_table, table.config)
        self._generations.update_table(name, table.config, entries)
        return entries

    async def read_database(self, path: str, offset: int) -> DatabasePart:
        """See `System.read_database`; only files of db tables of configurations that live."""
        if not self._generations.reads_database(path):
            raise TempFail(f"{path}: not a db table of this configuration")
        return await asyncio.to_thread(_read_part, path, offset)

    async def configuration(self, offset: int) -> tuple[int, str]:
        """See `System.configuration`; what is asked for again is not written again."""
        config = self._generations.current.config
        if self._written is None or self._written[0] is not config:
            self._written = config, await asyncio.to_thread(format_config, config)
        return config.generation, self._written[1][offset : offset + _CONFIG_PIECE]

    async def remember_pause(self, kind: str, paused: bool) -> None:
        """See `System.remember_pause`."""
        (self.paused.add if paused else self.paused.discard)(kind)

    async def remember_route(self, source: str, dest: str, paused: bool) -> None:
        """See `System.remember_route`."""
        (self.blocked.add if paused else self.blocked.discard)((source, dest.lower()))

    async def stop(self) -> None:
        """See `System.stop`."""
        self._on_stop()

    async def reload(self) -> Reloaded:
        """See `System.reload`."""
        return await self._on_reload()

    async def log_level(self, verbose: bool) -> None:
        """See `System.log_level`."""
        self._log.verbose = verbose


def _read_table(path: str) -> tuple[tuple[str, str], ...]:
    try:
        return parse_table_file(path, check.read_file(path))[1]
    except (OSError, TableFileError) as error:
        raise TempFail(f"{path}: {error}") from error


def _read_part(path: str, offset: int) -> DatabasePart:
    try:
        descriptor, _ = open_regular(path)
        try:
            data = os.pread(descriptor, _PART, offset)
            # Only now: what changed while it was read shows.
            return DatabasePart(stamp(os.fstat(descriptor)), data)
        finally:
            os.close(descriptor)
    except (OSError, DatabaseError) as error:
        raise TempFail(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _password_matches(user: str, password: str) -> bool:
    """Compare with the shadow entry (shadow(5)); a locked, expired or passwordless account never matches."""
    try:
        stored = pwd.getpwnam(user).pw_passwd
    except KeyError:
        stored = "x"
    try:
        with open("/etc/shadow", encoding="utf-8", errors="surrogateescape") as shadow:
            for line in shadow:
                fields = line.rstrip("\n").split(":")
                if fields[0] == user and len(fields) >= 8:
                    stored = "" if _expired(fields) else fields[1]
    except OSError:
        pass
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    usable = len(stored) > 1 and stored[0] not in "!*"
    # Unknown users cost the same work as known ones.
    salt = stored if usable else "$6$unknownuser$"
    hashed = library.crypt(password.encode("utf-8", "surrogateescape"), salt.encode("utf-8", "surrogateescape"))
    return usable and hashed is not None and hmac.compare_digest(hashed, stored.encode("utf-8", "surrogateescape"))


def _expired(fields: list[str]) -> bool:

    today = int(time.time() // 86400)
    return bool(fields[7]) and int(fields[7]) < today
