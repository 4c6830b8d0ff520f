"""System: what only the parent may do for lookup: `.forward` as its owner, system passwords, file tables again.

Each is done in a forked child that gives up root first (or, for passwords, does nothing else) and has a deadline
(`hanging`), so that a home on a dead file server or a hanging name service delays one lookup and nothing more. What
control changes while the server runs is kept here, for roles that are started again.
"""

import asyncio
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable

import msgspec

from pillarbox.conf.model import Config, TableKind, pam_service
from pillarbox.conf.tables import TableFileError, parse_table_file
from pillarbox.daemon import check
from pillarbox.daemon.hanging import Hanging
from pillarbox.daemon.systemusers import fits_pam, fits_shadow
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.roles.parent import DatabasePart
from pillarbox.tables.database import DatabaseError
from pillarbox.tables.db import open_regular, stamp

_FORWARD_MAX = 64 * 1024
_SECRET = 32  # bytes
_PART = 1 << 20  # bytes of a database at a time

_FOUND, _ABSENT, _UNREADABLE, _INSECURE = b"+", b"-", b"?", b"!"


class ParentSystem:
    """Implements `roles.parent.System`. `as_root`: children become the user; otherwise they stay who we are.

    `paused` ("mda", "mta", "smtp"), `blocked` (source, destination) and `current` tell what to start a role with.
    """

    def __init__(
        self,
        *,
        config: Config,
        state: str,
        as_root: bool,
        on_stop: Callable[[], None],
        log: Log,
        paused: Iterable[str] = (),
    ) -> None:
        self._config = config
        self._state = state
        self._as_root = as_root
        self._on_stop = on_stop
        self._log = log
        self._hanging = Hanging(log)
        self._checking = Hanging(log)  # PAM waits after a wrong password: guessers keep nobody from a `.forward`
        self._tables: dict[str, tuple[tuple[str, str], ...]] = {}
        self.paused = set(paused)
        self.blocked: set[tuple[str, str]] = set()

    def current(self, config: Config) -> Config:
        """The configuration with its file tables as they were read last."""
        tables = {n: msgspec.structs.replace(config.tables[n], entries=e) for n, e in self._tables.items()}
        return msgspec.structs.replace(config, tables=config.tables | tables) if tables else config

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `System.read_forward`."""

        def read() -> bytes:
            if self._as_root:
                _become(user, uid, gid)
            return _read_forward(home, uid)

        what, place = f".forward of {user}", os.path.dirname(home)
        if not self._as_root:
            answer = await self._hanging.in_thread(lambda: _read_forward(home, uid), place, what)
        else:
            # A plain stat answers for most users: without the file nothing needs to be forked. What follows is safe
            # whatever the answer was, for the child opens the file again as its owner.
            if await self._hanging.in_thread(lambda: _presence(home), place, what) == _ABSENT:
                return None
            answer = await self._hanging.in_child(read, place, what)
        if answer[:1] == _INSECURE:
            self._log.warn(f"smtpd: {os.path.join(home, '.forward')}: insecure file: {answer[1:].decode()}")
            raise PermFail(f".forward of {user}: {answer[1:].decode()}")
        if answer[:1] == _UNREADABLE:
            raise TempFail(f".forward of {user}: {answer[1:].decode(errors='replace')}")
        return answer[1:] if answer[:1] == _FOUND else None

    async def check_password(self, user: str, password: str, service: str, address: str) -> bool:
        """See `System.check_password`; only PAM services of the running configuration."""
        if service and not any(pam_service(listener.auth) == service for listener in self._config.listeners):
            raise TempFail(f"PAM service {service}: not in this configuration")

        def check() -> bytes:
            try:
                fits = fits_pam(user, password, service, address) if service else fits_shadow(user, password)
            except TempFail as error:
                return _UNREADABLE + str(error).encode()
            return _FOUND if fits else _ABSENT

        answer = await self._checking.in_child(check, f"PAM service {service}" if service else "shadow", "login")
        if answer[:1] == _UNREADABLE:
            raise TempFail(answer[1:].decode(errors="replace"))
        return answer == _FOUND

    async def login_secret(self) -> bytes:
        """See `System.login_secret`."""
        return await asyncio.to_thread(_read_secret, os.path.join(self._state, "login.secret"))

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        """See `System.read_table`; only file tables of the running configuration."""
        table = self._config.tables.get(name)
        if table is None or table.kind is not TableKind.FILE:
            raise TempFail(f"table {name}: not a file table of this configuration")
        entries = self._tables[name] = await asyncio.to_thread(_read_table, table.config)
        return entries

    async def read_database(self, path: str, offset: int) -> DatabasePart:
        """See `System.read_database`; only files of db tables of the running configuration."""
        if not any(t.kind is TableKind.DB and t.config == path for t in self._config.tables.values()):
            raise TempFail(f"{path}: not a db table of this configuration")
        return await asyncio.to_thread(_read_part, path, offset)

    async def remember_pause(self, kind: str, paused: bool) -> None:
        """See `System.remember_pause`."""
        (self.paused.add if paused else self.paused.discard)(kind)

    async def remember_route(self, source: str, dest: str, paused: bool) -> None:
        """See `System.remember_route`."""
        (self.blocked.add if paused else self.blocked.discard)((source, dest.lower()))

    async def stop(self) -> None:
        """See `System.stop`."""
        self._on_stop()

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


def _presence(home: str) -> bytes:
    """Whether there may be a `.forward`."""
    try:
        os.lstat(os.path.join(home, ".forward"))
    except FileNotFoundError:
        return _ABSENT
    except OSError:
        pass  # not for root to see, perhaps: its owner will say
    return _FOUND


def _become(user: str, uid: int, gid: int) -> None:
    if uid == 0:
        return  # root's own file is read as root; what it asks for is never run as root (mda/forker)
    os.initgroups(user, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _read_forward(home: str, uid: int) -> bytes:
    """`+content`; `-`: there is none; `?reason`: it cannot be told now; `!reason`: it may not be used."""
    try:
        fd = os.open(os.path.join(home, ".forward"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _INSECURE + b"a symbolic link"
        return _UNREADABLE + str(error.strerror).encode()
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return _INSECURE + b"not a regular file"
        if found.st_uid not in (uid, 0):
            return _INSECURE + b"owned by somebody else"
        above = os.stat(home)
        if (found.st_mode | above.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            return _INSECURE + b"it or its directory is writable by others"
        if above.st_uid not in (uid, 0):
            return _INSECURE + b"in a directory of somebody else"
        content = b""
        while len(content) <= _FORWARD_MAX and (part := os.read(fd, 65536)):
            content += part
        if len(content) > _FORWARD_MAX:
            return _INSECURE + b"larger than 64 KB"
        return _FOUND + content
    finally:
        os.close(fd)


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
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".login.secret.")
        with open(handle, "wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise TempFail(f"{path}: {error.strerror}") from error
    return made
