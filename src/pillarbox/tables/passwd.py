"""The system's users: getpwnam(3), with the difference between "no such user" and "cannot tell".

Python's `pwd` raises KeyError for both, and a directory server that is down would turn mail away for good.
"""

import asyncio
import ctypes
import errno
import os
import pwd
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor

from pillarbox.errors import TempFail
from pillarbox.roles.lookup import User
from pillarbox.tables.services import Service

# getpwnam_r(3): "0 or ENOENT or ESRCH or EBADF or EPERM or …: the given name was not found".
_ABSENT = frozenset((0, errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EPERM))
_BUFFER = 16384  # bytes, doubled up to _BUFFER_MAX on ERANGE
_BUFFER_MAX = 1 << 20


class PasswdTable:
    """The table `<getpwnam>`. It may ask a slow name service, so it does in a thread, with a deadline.

    Users that were found are kept for `CACHE_SECONDS`, so that a burst of mail for one user asks once.
    """

    CACHE_SECONDS = 10.0
    CACHE_SIZE = 1024
    DEADLINE = 15.0

    def __init__(
        self,
        *,
        name: str,
        executor: Executor,
        find: Callable[[str], User | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._executor = executor
        self._find = find or system_user
        self._clock = clock
        self._cache: dict[str, tuple[float, User]] = {}

    async def user(self, name: str) -> User | None:
        """The user of that name, None where there is none."""
        key = name.lower()
        kept = self._cache.get(key)
        if kept is not None and self._clock() < kept[0]:
            return kept[1]
        self._cache.pop(key, None)
        user = await self._ask(key)
        if user is not None:
            while len(self._cache) >= self.CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = (self._clock() + self.CACHE_SECONDS, user)
        return user

    async def _ask(self, name: str) -> User | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.DEADLINE):
                return await loop.run_in_executor(self._executor, self._find, name)
        except TimeoutError:
            raise TempFail(f'no answer about user "{name}" within {self.DEADLINE:.0f} s') from None

    async def match(self, service: Service, key: str) -> bool:
        """See `Table`."""
        return await self.lookup(service, key) is not None

    async def lookup(self, service: Service, key: str) -> str | None:
        """See `Table`; userinfo only."""
        if service is not Service.USERINFO:
            raise TempFail(f"table {self.name} does not answer {service}")
        user = await self.user(key)
        return None if user is None else f"{user.uid}:{user.gid}:{user.home}"

    async def fetch(self, service: Service) -> str | None:
        """See `Table`; a user database is not a list."""
        raise TempFail(f"table {self.name} does not answer {service}")

    async def update(self) -> None:
        """See `Table`."""
        self._cache.clear()

    def open(self) -> None:
        """See `Table`."""

    async def close(self) -> None:
        """See `Table`."""


def system_user(name: str) -> User | None:
    """The user's entry, None where there is none; TempFail where the system cannot tell. It may block."""
    if not name or "\0" in name:
        return None
    if sys.platform == "linux":
        return _getpwnam_linux(os.fsencode(name))
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


class _Passwd(ctypes.Structure):
    """struct passwd of glibc and musl."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("gecos", ctypes.c_char_p),
        ("home", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    )


def _getpwnam_linux(name: bytes) -> User | None:
    libc = ctypes.CDLL(None)
    entry = _Passwd()
    found = ctypes.POINTER(_Passwd)()
    size = _BUFFER
    while True:
        buffer = ctypes.create_string_buffer(size)
        code = libc.getpwnam_r(
            ctypes.c_char_p(name), ctypes.byref(entry), buffer, ctypes.c_size_t(size), ctypes.byref(found)
        )
        if code == errno.ERANGE and size < _BUFFER_MAX:
            size *= 2
        elif code != errno.EINTR:
            break
    if found:
        return User(name=os.fsdecode(entry.name), uid=entry.uid, gid=entry.gid, home=os.fsdecode(entry.home or b""))
    if code in _ABSENT:
        return None
    raise TempFail(f'user "{os.fsdecode(name)}": {os.strerror(code)}')
