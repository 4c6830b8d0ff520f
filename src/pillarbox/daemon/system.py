"""System: what only the parent may do for lookup: `.forward` as its owner, system passwords, file tables again.

Each is done in a forked child that gives up root first (or, for passwords, does nothing else) and has a deadline, so
that a home on a dead file server or a hanging name service delays one lookup and nothing more.
"""

import asyncio
import ctypes
import errno
import hmac
import os
import pwd
import signal
import stat
import time
from collections.abc import Awaitable, Callable

from pillarbox.conf.model import Config, TableKind
from pillarbox.conf.tables import TableFileError, parse_table_file
from pillarbox.daemon import check
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log

DEADLINE = 20.0  # seconds for one question
_FORWARD_MAX = 64 * 1024
_MAX_CHILDREN = 32

_FOUND, _ABSENT, _UNREADABLE, _INSECURE = b"+", b"-", b"?", b"!"


class ParentSystem:
    """Implements `roles.parent.System`. `as_root`: children become the user; otherwise they stay who we are."""

    def __init__(
        self,
        *,
        config: Config,
        as_root: bool,
        on_stop: Callable[[], None],
        log: Log,
    ) -> None:
        self._config = config
        self._as_root = as_root
        self._on_stop = on_stop
        self._log = log
        self._children = asyncio.Semaphore(_MAX_CHILDREN)

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `System.read_forward`."""

        def read() -> bytes:
            if self._as_root:
                _become(user, uid, gid)
            return _read_forward(home, uid)

        # A plain stat answers for most users: without the file nothing needs to be forked. What follows is safe
        # whatever the answer was, for the child opens the file again as its owner.
        if not self._as_root:
            answer = await asyncio.to_thread(_read_forward, home, uid)
        else:
            try:
                await asyncio.to_thread(os.lstat, os.path.join(home, ".forward"))
            except FileNotFoundError:
                return None
            except OSError:
                pass
            answer = await self._in_child(read, f".forward of {user}")
        if answer[:1] == _INSECURE:
            self._log.warn(f"smtpd: {os.path.join(home, '.forward')}: insecure file: {answer[1:].decode()}")
            raise PermFail(f".forward of {user}: {answer[1:].decode()}")
        if answer[:1] == _UNREADABLE:
            raise TempFail(f".forward of {user}: {answer[1:].decode(errors='replace')}")
        return answer[1:] if answer[:1] == _FOUND else None

    async def check_password(self, user: str, password: str) -> bool:
        """See `System.check_password`: shadow where it is ours to read; locked and expired accounts are refused."""
        return await self._in_child(lambda: _FOUND if _password_matches(user, password) else _ABSENT, "login") == _FOUND

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        """See `System.read_table`; only file tables of the running configuration."""
        table = self._config.tables.get(name)
        if table is None or table.kind is not TableKind.FILE:
            raise TempFail(f"table {name}: not a file table of this configuration")
        return await asyncio.to_thread(_read_table, table.config)

    async def stop(self) -> None:
        """See `System.stop`."""
        self._on_stop()

    async def log_level(self, verbose: bool) -> None:
        """See `System.log_level`."""
        self._log.verbose = verbose

    async def _in_child(self, work: Callable[[], bytes], what: str) -> bytes:
        async with self._children:
            return await run_in_child(work, what, self._log)


def _read_table(path: str) -> tuple[tuple[str, str], ...]:
    try:
        return parse_table_file(path, check.read_file(path))[1]
    except (OSError, TableFileError) as error:
        raise TempFail(f"{path}: {error}") from error


def run_in_child(work: Callable[[], bytes], what: str, log: Log) -> Awaitable[bytes]:
    """Run `work` in a forked child and await the bytes that it returns; killed and `TempFail` past the deadline."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pid = os.fork()
    if pid == 0:
        _child(work, write_end)
    os.close(write_end)
    return _collect(pid, read_end, what, log)


def _child(work: Callable[[], bytes], write_end: int) -> None:
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.alarm(int(DEADLINE) + 5)
        os.set_blocking(write_end, True)
        view = memoryview(work())
        while view:
            view = view[os.write(write_end, view) :]
        status = 0
    finally:
        os._exit(status)


async def _collect(pid: int, read_end: int, what: str, log: Log) -> bytes:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    parts: list[bytes] = []

    def readable() -> None:
        try:
            part = os.read(read_end, 65536)
        except BlockingIOError:
            return
        if part:
            parts.append(part)
        elif not done.done():
            done.set_result(None)

    loop.add_reader(read_end, readable)
    try:
        async with asyncio.timeout(DEADLINE):
            await done
    except TimeoutError:
        raise TempFail(f"{what}: no answer within {DEADLINE:.0f} seconds") from None
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)  # done or late: not reaped yet, so the pid is still the child's
        status = await asyncio.shield(asyncio.to_thread(os.waitpid, pid, 0))
    if not parts and not os.WIFEXITED(status[1]):
        log.warn(f"{what}: the child died")
    if not parts:
        raise TempFail(f"{what}: could not be read")
    return b"".join(parts)


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
