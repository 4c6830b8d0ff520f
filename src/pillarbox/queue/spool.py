"""The queue's folder: made with safe modes, held by one process, watched for free space."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from pillarbox.errors import NoSpace, PillarboxError

FREE = 0.05  # share of space and of inodes that new mail leaves alone
CHECK_EVERY = 1.0  # seconds
LOCK_WAIT = 20.0  # seconds: one whose server was killed still commits what was begun, and checkpoints


class Spool:
    """`folder` with `queue.db`, `segments/` and `bodies/XX/MSGID`. PillarboxError where another process holds it."""

    def __init__(self, folder: Path, *, monotonic: Callable[[], float], wait: float = LOCK_WAIT) -> None:
        self.folder = folder
        self.bodies = folder / "bodies"
        self.segments = folder / "segments"
        self.database = str(folder / "queue.db")
        self._monotonic = monotonic
        self._checked = float("-inf")
        self._full = ""
        self.bodies.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        self._lock = _lock(folder / "lock", wait)
        for number in range(256):
            (self.bodies / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        for made in (self.bodies, folder, folder.parent):
            _sync_folder(made)
        # SQLite gives its -wal and -shm files the mode of the database.
        os.close(os.open(self.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def body_path(self, msgid: int) -> Path:
        """Where a body lies. Neighbouring message ids share a folder, so that they share its sync."""
        return self.bodies / f"{msgid >> 12 & 0xFF:02x}" / f"{msgid:08x}"

    def check_space(self) -> None:
        """TempFail when less than 5 % of space or inodes is free. Looks about once a second."""
        now = self._monotonic()
        if now - self._checked >= CHECK_EVERY:
            self._checked = now
            self._full = self._look()
        if self._full:
            raise NoSpace(self._full)

    def _look(self) -> str:
        try:
            disk = os.statvfs(self.folder)
        except OSError as error:
            return f"queue: {self.folder}: {error.strerror}"
        if disk.f_bavail < disk.f_blocks * FREE:
            return f"queue: less than 5 % of the space is free at {self.folder}"
        # Some file systems make inodes as needed, and say 0.
        if disk.f_files and disk.f_favail < disk.f_files * FREE:
            return f"queue: less than 5 % of the inodes are free at {self.folder}"
        return ""

    def close(self) -> None:
        """Let the next instance in."""
        os.close(self._lock)


def _sync_folder(folder: Path) -> None:
    # Above our own folder we may not be allowed to; whoever made it there has to.
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(path: Path, wait: float) -> int:
    """An exclusive flock, held as long as the descriptor is open; the file names the holder."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise PillarboxError(
                f"{path.parent} is in use by process {holder}: only one server may run on it"
            ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
