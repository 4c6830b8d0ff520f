"""Mail that `sendmail` left while no server ran: found, judged, and submitted as its owner. Runs in the parent.

The directory is open to everybody for leaving and closed for looking (1733), so nothing in it is believed: a file is
opened below the directory's descriptor, never through a link, and counts only if it is a regular file with one name.
What it says is read by a child that is already its owner: our own `sendmail`, with the file as its input.
"""

import asyncio
import os
import pwd
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from pillarbox.log import Log

# The last word that `cli/resubmit` says: taken; refused, and in its owner's dead.letter; refused; not now.
ACCEPTED, RETURNED, REFUSED, LATER = VERDICTS = "accepted", "returned", "refused", "later"

_ASIDE = ".refused."  # kept for the postmaster; names with a dot are not looked at again
_ARGUMENTS_MAX = 64 * 1024
_OUTPUT_MAX = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sweep: files and bytes a user, users, children at once; and seconds that a draft may take."""

    files: int = 100
    octets: int = 400 * 1024 * 1024
    children: int = 4
    draft: float = 24 * 3600.0
    users: int = 1000


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that may be submitted: where it is, and what is to be the same when it is opened."""

    name: str
    uid: int
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message (one of `VERDICTS`), and what else was said about it."""

    verdict: str
    output: str


# Start `sendmail` as this user with these arguments, its stdin this descriptor (not read yet, at the message's start).
Submit = Callable[[pwd.struct_passwd, list[str], int], Awaitable[Result]]


class BadFile(Exception):
    """Why a file is not submitted."""


def find_leftovers(directory: int, *, limits: Limits, now: float, log: Log) -> list[Leftover]:
    """What lies in the directory, oldest name first, as much of each user as the limits allow.

    `directory`: a descriptor. `now`: epoch seconds, for drafts that were never finished: those are removed.
    """
    files: Counter[int] = Counter()
    octets: Counter[int] = Counter()
    passed_over: Counter[int] = Counter()
    found: list[Leftover] = []
    with os.scandir(directory) as entries:
        for name, status in _statuses(directory, (entry.name for entry in entries)):
            if name.startswith("."):
                _expire_draft(directory, name, status, now - limits.draft, log)
                continue
            uid = status.st_uid
            over = files[uid] >= limits.files or (files[uid] and octets[uid] + status.st_size > limits.octets)
            if over or (uid not in files and len(files) >= limits.users):
                passed_over[uid] += 1
                continue
            files[uid] += 1
            octets[uid] += status.st_size
            found.append(Leftover(name, uid, status.st_ino, status.st_size))
    for uid, count in passed_over.items():
        log.warn(f"offline: uid {uid} has {count} more messages than are taken at once")
    return sorted(found, key=lambda leftover: leftover.name)


def open_leftover(directory: int, leftover: Leftover) -> int:
    """A descriptor of the file; raises `BadFile` where it is not what it should be, OSError where it is gone."""
    file = os.open(leftover.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile("is not a regular file")
        if status.st_nlink != 1:
            raise BadFile("has other names")
        if (status.st_uid, status.st_ino) != (leftover.uid, leftover.inode):
            raise BadFile("was exchanged")
        if status.st_mode & 0o077:
            raise BadFile(f"has mode {stat.S_IMODE(status.st_mode):04o}: sendmail leaves 0600")
    except BadFile:
        os.close(file)
        raise
    return file


def read_arguments(file: int) -> list[str]:
    """sendmail's arguments, from the first line; the descriptor is then at the message. Raises `BadFile`."""
    head = os.pread(file, _ARGUMENTS_MAX, 0)
    line, end, _ = head.partition(b"\n")
    if not end:
        raise BadFile("does not begin with a line of arguments")
    if b"\0" in line:
        raise BadFile("has a NUL in its arguments")
    os.lseek(file, len(line) + 1, os.SEEK_SET)
    return [argument for argument in line.decode("utf-8", "surrogateescape").split("|") if argument]


class OfflineMail:
    """Sweeps the directory, at start and then regularly.

    `now`: epoch seconds. `uid`: who we are; anyone but root submits only their own.
    """

    def __init__(
        self,
        *,
        directory: str,
        submit: Submit,
        log: Log,
        now: Callable[[], float],
        uid: int,
        limits: Limits | None = None,
    ) -> None:
        self._directory = directory
        self._submit = submit
        self._log = log
        self._now = now
        self._uid = uid
        self._limits = limits or Limits()
        self._told: set[tuple[str, int]] = set()

    async def run(self, every: float) -> None:
        """Sweep now and every so many seconds, until cancelled."""
        while True:
            await self.sweep()
            await asyncio.sleep(every)

    async def sweep(self) -> int:
        """Submit what lies there; how many were accepted. Trouble is logged, and what caused it left."""
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self._log.warn(f"offline: {self._directory}: {error.strerror}")
            return 0
        try:
            leftovers = await asyncio.to_thread(
                find_leftovers, directory, limits=self._limits, now=self._now(), log=self._log
            )
            self._told &= {(leftover.name, leftover.inode) for leftover in leftovers}
            accepted = await self._submit_all(directory, leftovers)
        except OSError as error:
            self._log.warn(f"offline: {self._directory}: {error.strerror}")
            return 0
        finally:
            os.close(directory)
        if accepted:
            self._log.info(f"info: offline: {accepted} messages submitted")
        return accepted

    async def _submit_all(self, directory: int, leftovers: list[Leftover]) -> int:
        """A few at once, each user's in order."""
        accepted = 0
        places = asyncio.Semaphore(self._limits.children)

        async def submit_user(mine: list[Leftover]) -> None:
            nonlocal accepted
            for leftover in mine:
                async with places:
                    accepted += await self._submit_one(directory, leftover)

        by_user: dict[int, list[Leftover]] = {}
        for leftover in leftovers:
            by_user.setdefault(leftover.uid, []).append(leftover)
        async with asyncio.TaskGroup() as group:
            for mine in by_user.values():
                group.create_task(submit_user(mine))
        return accepted

    async def _submit_one(self, directory: int, leftover: Leftover) -> bool:
        """Submit one file; whether it was accepted."""
        try:
            if self._uid not in (0, leftover.uid):
                raise BadFile(f"belongs to uid {leftover.uid}")
            owner = await asyncio.to_thread(_account, leftover.uid)
            file = open_leftover(directory, leftover)
            try:
                result = await self._submit(owner, read_arguments(file), file)
            finally:
                os.close(file)
            self._settle(directory, leftover, result)
            return result.verdict == ACCEPTED
        except BadFile as error:
            self._tell(leftover, str(error))
        except OSError as error:
            self._tell(leftover, error.strerror or "cannot be read")
        return False

    def _settle(self, directory: int, leftover: Leftover, result: Result) -> None:
        """Remove what was taken or returned to its owner, put aside what could not be, keep the rest for later."""
        if result.verdict not in (ACCEPTED, RETURNED, REFUSED):
            self._tell(leftover, f"stays for later: {result.output}")
            return
        if os.stat(leftover.name, dir_fd=directory, follow_symlinks=False).st_ino != leftover.inode:
            return
        if result.verdict == REFUSED:
            aside = _ASIDE + leftover.name
            os.rename(leftover.name, aside, src_dir_fd=directory, dst_dir_fd=directory)
            self._tell(leftover, f"was refused and is kept as {aside}: {result.output}")
            return
        os.unlink(leftover.name, dir_fd=directory)
        if result.verdict == RETURNED:
            self._tell(leftover, f"was refused and is in its owner's dead.letter: {result.output}")

    def _tell(self, leftover: Leftover, text: str) -> None:
        """Once for each file."""
        key = (leftover.name, leftover.inode)
        if key not in self._told:
            self._told.add(key)
            self._log.warn(f"offline: {leftover.name} (uid {leftover.uid}) {text}")


class SendmailChild:
    """Starts `sendmail` as a user: the `Submit` of a server whose state directory is `state`.

    `as_root`: become the user; otherwise stay who we are (the caller has checked that this is the owner).
    """

    def __init__(self, *, state: str, as_root: bool, deadline: float = 900.0) -> None:
        self._state = state
        self._as_root = as_root
        self._deadline = deadline

    async def __call__(self, owner: pwd.struct_passwd, arguments: list[str], file: int) -> Result:
        """Run it to its end, or kill it at the deadline (seconds); it gets nothing of ours but the open file."""
        child = await asyncio.to_thread(self._start, owner, arguments, file)
        try:
            async with asyncio.timeout(self._deadline):
                said = await _read_end(child)
                await asyncio.to_thread(child.wait, self._deadline)
        except TimeoutError:
            return Result(LATER, f"no end after {self._deadline:.0f} seconds")
        finally:
            if child.poll() is None:
                child.kill()
                await asyncio.to_thread(child.wait)
        *words, verdict = said.decode("utf-8", "replace").split() or [""]
        # By its word, not by its status: whoever else reaps children in this process could take that from us.
        return Result(verdict, " ".join(words)) if verdict in VERDICTS else Result(LATER, "sendmail failed")

    def _start(self, owner: pwd.struct_passwd, arguments: list[str], file: int) -> "subprocess.Popen[bytes]":
        environment = {"PATH": "/usr/bin:/bin", "HOME": owner.pw_dir, "PILLARBOX_STATE": self._state}
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "pillarbox.cli.resubmit", *arguments],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
            umask=0o077,
            user=owner.pw_uid if self._as_root else None,
            group=owner.pw_gid if self._as_root else None,
            extra_groups=[owner.pw_gid] if self._as_root else None,
        )


async def _read_end(child: "subprocess.Popen[bytes]") -> bytes:
    """All that a child says, of which the last is kept."""
    assert child.stdout is not None
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), child.stdout
    )
    kept = b""
    try:
        while data := await stream.read(_OUTPUT_MAX):
            kept = (kept + data)[-_OUTPUT_MAX:]
    finally:
        transport.close()
    return kept


def _account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise BadFile("belongs to nobody known") from error


def _statuses(directory: int, names: Iterator[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Each name with its status, those that are gone left out."""
    for name in names:
        try:
            yield name, os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue


def _expire_draft(directory: int, name: str, status: os.stat_result, before: float, log: Log) -> None:
    """Remove what a sendmail that died left unfinished: it never said that it had taken the message."""
    if name.startswith(_ASIDE) or status.st_mtime >= before or not stat.S_ISREG(status.st_mode):
        return
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        log.warn(f"offline: {name}: {error.strerror}")
