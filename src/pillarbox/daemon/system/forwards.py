"""`~/.forward`, opened as its owner: what may be used, and what may not.

Read in a forked child that becomes the owner (or in a thread, where we are no more than they), with a deadline and few
at once in each home (`hanging`), so that a home that hangs, because its file server is dead or its owner wants it to,
delays its own mail and nothing more.
"""

import errno
import os
import stat

from pillarbox.daemon.hanging import Hanging
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log

_MAX = 64 * 1024  # bytes

_FOUND, _ABSENT, _UNREADABLE, _INSECURE = b"+", b"-", b"?", b"!"


class Forwards:
    """Reads them. `as_root`: children become the user; otherwise they stay who we are."""

    def __init__(self, *, as_root: bool, hanging: Hanging, log: Log) -> None:
        self._as_root = as_root
        self._hanging = hanging
        self._log = log

    async def read(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `roles.parent.System.read_forward`."""

        def read() -> bytes:
            if self._as_root:
                _become(user, uid, gid)
            return _read_forward(home, uid)

        what = f".forward of {user}"
        if not self._as_root:
            answer = await self._hanging.in_thread(lambda: _read_forward(home, uid), home, what)
        else:
            # A plain stat answers for most users: without the file nothing needs to be forked. What follows is safe
            # whatever the answer was, for the child opens the file again as its owner.
            if await self._hanging.in_thread(lambda: _presence(home), home, what) == _ABSENT:
                return None
            answer = await self._hanging.in_child(read, home, what)
        if answer[:1] == _INSECURE:
            self._log.warn(f"smtpd: {os.path.join(home, '.forward')}: insecure file: {answer[1:].decode()}")
            raise PermFail(f".forward of {user}: {answer[1:].decode()}")
        if answer[:1] == _UNREADABLE:
            raise TempFail(f".forward of {user}: {answer[1:].decode(errors='replace')}")
        return answer[1:] if answer[:1] == _FOUND else None


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
        while len(content) < _MAX and (part := os.read(fd, 65536)):
            content += part
        return _FOUND + content  # one this long is refused for its length, whatever comes behind
    finally:
        os.close(fd)
