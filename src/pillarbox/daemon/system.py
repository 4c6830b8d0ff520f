"""System: what only the parent may do for lookup: `.forward` as its owner, system passwords, file tables again.

Each is done in a forked child that gives up root first (or, for passwords, does nothing else) and has a deadline
(`hanging`), so that a home on a dead file server or a hanging name service delays one lookup and nothing more. What
control changes while the server runs is kept here, for roles that are started again.
"""

import asyncio
import ctypes
import errno
import hmac
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable

import msgspec

from pillarbox.conf.format import format_config
from pillarbox.conf.model import Config, TableKind
from pillarbox.conf.tables import TableFileError, parse_table_file
from pillarbox.daemon import check
from pillarbox.daemon.hanging import Hanging
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log

_FORWARD_MAX = 64 * 1024
_CONFIG_PIECE = 64 * 1024  # characters

_FOUND, _ABSENT, _UNREADABLE, _INSECURE = b"+", b"-", b"?", b"!"


class ParentSystem:
    """Implements `roles.parent.System`. `as_root`: children become the user; otherwise they stay who we are.

    `paused` ("mda", "mta", "smtp"), `blocked` (source, destination) and `current` tell what to start a role with.
    """

    def __init__(
        self,
        *,
        config: Config,
        as_root: bool,
        on_stop: Callable[[], None],
        log: Log,
        paused: Iterable[str] = (),
    ) -> None:
        self._config = config
        self._as_root = as_root
        self._on_stop = on_stop
        self._log = log
        self._hanging = Hanging(log)
        self._tables: dict[str, tuple[tuple[str, str], ...]] = {}
        self._written: tuple[Config, str] | None = None
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

    async def check_password(self, user: str, password: str) -> bool:
        """See `System.check_password`: shadow where it is ours to read; locked and expired accounts are refused."""
        answer = await self._hanging.in_child(
            lambda: _FOUND if _password_matches(user, password) else _ABSENT, "the user database", "login"
        )
        return answer == _FOUND

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        """See `System.read_table`; only file tables of the running configuration."""
        table = self._config.tables.get(name)
        if table is None or table.kind is not TableKind.FILE:
            raise TempFail(f"table {name}: not a file table of this configuration")
        entries = self._tables[name] = await asyncio.to_thread(_read_table, table.config)
        return entries

    async def configuration(self, offset: int) -> tuple[int, str]:
        """See `System.configuration`; what is asked for again is not written again."""
        config = self._config
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

    async def log_level(self, verbose: bool) -> None:
        """See `System.log_level`."""
        self._log.verbose = verbose


def _read_table(path: str) -> tuple[tuple[str, str], ...]:
    try:
        return parse_table_file(path, check.read_file(path))[1]
    except (OSError, TableFileError) as error:
        raise TempFail(f"{path}: {error}") from error


def _presence(home: str) -> bytes:
    """Whether there may be a `.forward`, or a sticky home, which says that there is something to wait for."""
    try:
        if not os.stat(home).st_mode & stat.S_ISVTX:
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
        above = os.stat(home)
        if above.st_mode & stat.S_ISVTX:
            return _UNREADABLE + b"its directory is sticky"  # forward(5): its owner is at work on it
        fd = os.open(os.path.join(home, ".forward"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _INSECURE + b"a symbolic link"
        if error.errno == errno.ENOTDIR:  # a home like /dev/null
            return _INSECURE + b"in no directory"
        return _UNREADABLE + str(error.strerror).encode()
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return _INSECURE + b"not a regular file"
        if found.st_uid != uid:
            return _INSECURE + b"owned by somebody else"
        if (found.st_mode | above.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            return _INSECURE + b"it or its directory is writable by others"
        if above.st_uid not in (uid, 0):
            return _INSECURE + b"in a directory of somebody else"
        content = b""
        while len(content) < _FORWARD_MAX and (part := os.read(fd, 65536)):
            content += part
        return _FOUND + content  # one this long is refused for its length, whatever comes behind
    finally:
        os.close(fd)


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
