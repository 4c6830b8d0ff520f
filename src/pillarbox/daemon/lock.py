"""One server a state directory: the parent's lock, held from before it touches a socket until its process ends."""

import fcntl
import os
import time

from pillarbox.errors import PillarboxError

_PATIENCE = 5.0  # seconds: a server that is just ending lets go soon


def hold(state: str) -> int:
    """Lock `DIR/lock` for the life of this process; raises PillarboxError naming the holder where another has it."""
    path = os.path.join(state, "lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise PillarboxError(f"{path}: {error.strerror}") from error
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                raise PillarboxError(
                    f"{state} is in use by process {holder or 'unknown'}: stop that server, or name another --state"
                ) from None
            time.sleep(0.05)


def note_holder(fd: int) -> None:
    """Write our pid into the lock, for who finds it taken."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
