"""System: what only the parent may do for lookup: `.forward` as its owner, system passwords, file tables again.

`.forward` is read in a forked child that gives up root first, passwords are checked in one that does nothing else,
other files are read in threads, all with a deadline (`hanging`), so that a dead file server or a hanging name service
delays what depends on it and nothing more. What control changes while the server runs is kept here, for roles that are
started again; a reload does not touch it.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable

from pillarbox.conf.format import format_config
from pillarbox.conf.model import Config, TableKind
from pillarbox.conf.tables import TableFileError, parse_table_file
from pillarbox.daemon import check
from pillarbox.daemon.hanging import AT_ONCE, Hanging
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.system.forwards import Forwards
from pillarbox.daemon.system.systemusers import fits_pam, fits_shadow
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.replacement import Replacement
from pillarbox.roles.parent import DatabasePart, Reloaded, TableFile
from pillarbox.tables.database import DatabaseError
from pillarbox.tables.db import open_regular, stamp

_SECRET = 32  # bytes
_PART = 1 << 20  # bytes of a database at a time
_CONFIG_PIECE = 64 * 1024  # characters

_YES, _NO, _UNTOLD = b"+", b"-", b"?"


class ParentSystem:
    """Implements `roles.parent.System`. `as_root`: see `forwards`.

    `paused` ("mda", "mta", "smtp") and `blocked` (source, destination) tell what to start a role with.
    """

    def __init__(
        self,
        *,
        generations: Generations,
        state: str,
        as_root: bool,
        on_stop: Callable[[], None],
        on_reload: Callable[[], Awaitable[Reloaded]],
        log: Log,
        paused: Iterable[str] = (),
    ) -> None:
        self._generations = generations
        self._state = state
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._log = log
        # Apart, so that none keeps anybody from another: PAM waits after a wrong password, for all who log in.
        self._checking = Hanging(log, at_place=AT_ONCE)
        self._files = Hanging(log)
        self._forwards = Forwards(as_root=as_root, hanging=Hanging(log), log=log)
        self._written: tuple[Config, str] | None = None
        self.paused = set(paused)
        self.blocked: set[tuple[str, str]] = set()

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `System.read_forward`."""
        return await self._forwards.read(user, uid, gid, home)

    async def check_password(self, user: str, password: str, service: str, address: str) -> bool:
        """See `System.check_password`; only PAM services of configurations that live."""
        if service and not self._generations.asks_pam(service):
            raise TempFail(f"PAM service {service}: not in this configuration")

        def check() -> bytes:
            try:
                fits = fits_pam(user, password, service, address) if service else fits_shadow(user, password)
            except TempFail as error:
                return _UNTOLD + str(error).encode()
            return _YES if fits else _NO

        answer = await self._checking.in_child(check, f"PAM service {service}" if service else "shadow", "login")
        if answer[:1] == _UNTOLD:
            raise TempFail(answer[1:].decode(errors="replace"))
        return answer == _YES

    async def login_secret(self) -> bytes:
        """See `System.login_secret`."""
        path = os.path.join(self._state, "login.secret")
        return await self._files.in_thread(lambda: _read_secret(path), path, path)

    async def read_table(self, name: str) -> TableFile:
        """See `System.read_table`; only file tables of the running configuration."""
        table = self._generations.current.config.tables.get(name)
        if table is None or table.kind is not TableKind.FILE:
            raise TempFail(f"table {name}: not a file table of this configuration")
        path = table.config
        entries = await self._files.in_thread(lambda: _read_table(path), path, path)
        self._generations.update_table(name, path, entries)
        return TableFile(path, entries)

    async def read_database(self, path: str, offset: int) -> DatabasePart:
        """See `System.read_database`; only files of db tables of configurations that live."""
        if not self._generations.reads_database(path):
            raise TempFail(f"{path}: not a db table of this configuration")
        return await self._files.in_thread(lambda: _read_part(path, offset), path, path)

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


def _read_secret(path: str) -> bytes:
    """The secret of the file, which is made where it is not there: whole or not at all, whoever else makes it."""
    try:
        with open(path, "rb") as file:
            found = file.read(_SECRET + 1)
        if len(found) == _SECRET:
            return found
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TempFail(f"{path}: {error.strerror}") from error
    try:
        made = secrets.token_bytes(_SECRET)
        with Replacement(path, prefix=".login.secret.") as file:
            file.write(made)
    except OSError as error:
        raise TempFail(f"{path}: {error.strerror}") from error
    return made
