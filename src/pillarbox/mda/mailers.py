"""Delivery into files: Maildir, system mailbox, mbox file. Runs in a delivery child, as the user.

Nothing is reported as delivered before it is on disk: the file is synced, and for a Maildir the directory too, once
for all messages of a batch.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable

from pillarbox.mail.envelope import Result
from pillarbox.mda.message import EX_TEMPFAIL, Failure, Message, escape_from, failure
from pillarbox.mda.variables import BadFormat, Facts, expand
from pillarbox.mda.wire import Job, Report

SPOOL = "/var/mail"
_EX_OSERR = 71
_EX_CANTCREAT = 73
_LOCK_WAIT = 60.0  # seconds for another program's lock on a mailbox
_LOCK_STALE = 500.0  # seconds after which a lock file was left behind by a program that died
_UNSAFE_FOLDER = str.maketrans(dict.fromkeys("!#$%&'*/?^`{|}~", ":"))


def facts_of(job: Job) -> Facts:
    """What specifiers in the job's target refer to."""
    return Facts(job.sender, job.rcpt, job.dest, job.user, job.directory, job.delimiter)


def expand_target(job: Job) -> str:
    """The job's target with its specifiers replaced."""
    try:
        return expand(job.target, facts_of(job))
    except BadFormat:
        raise failure("smtpd", "mda command line could not be expanded", 1) from None


class Maildir:
    """Deliveries of one user into Maildirs: staged one by one, made durable and visible together."""

    PROGRAM = "mail.maildir"

    def __init__(self) -> None:
        self._host = socket.gethostname()
        self._ready: set[str] = set()
        self._staged: list[tuple[int, int, str, str]] = []  # index, fd, path in tmp, directory

    def stage(self, message: Message) -> None:
        """Write the message into `tmp`; raises Failure."""
        message.check_loop()
        path = expand_target(message.job) or os.path.join(message.job.home, "Maildir")
        fd = -1
        temporary = ""
        try:
            folder, target = self._folders(path, message)
            name = f"{int(time.time())}.{secrets.randbits(32):08x}.{self._host}"
            temporary = os.path.join(folder, "tmp", name)
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            _write_all(fd, message.chunks())
            # The data sets out for the disk now, so that the syncs of a batch share a commit of the file system.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except (OSError, Failure) as error:
            if fd >= 0:
                os.close(fd)
                _unlink(temporary)
            raise _as_failure(self.PROGRAM, error) from None
        self._staged.append((message.job.index, fd, temporary, target))

    def finish(self) -> list[Report]:
        """Sync everything staged, move it into `new`, sync the directories. One report a message."""
        reports: dict[int, Report] = {}
        moved: dict[str, list[tuple[int, str]]] = {}
        for index, fd, temporary, folder in self._staged:
            final = f"{folder}/new/{os.path.basename(temporary)}"
            try:
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, final)
            except OSError as error:
                _unlink(temporary)
                reports[index] = report_of(index, _as_failure(self.PROGRAM, error))
            else:
                moved.setdefault(f"{folder}/new", []).append((index, final))
        for directory, messages in moved.items():
            reports.update(self._settle(directory, messages))
        self._staged.clear()
        return list(reports.values())

    def _settle(self, directory: str, messages: list[tuple[int, str]]) -> dict[int, Report]:
        try:
            _sync_directory(directory)
        except OSError as error:
            for _, path in messages:  # it is not known to be safe: better to try again than to have it twice
                _unlink(path)
            return {index: report_of(index, _as_failure(self.PROGRAM, error)) for index, _ in messages}
        return {index: Report(index=index, result=Result.OK) for index, _ in messages}

    def _folders(self, path: str, message: Message) -> tuple[str, str]:
        """(where to write, where to move it): the Maildir, its folder of the sub-address if there is one, or .Junk."""
        if not path.startswith("/"):
            raise failure(self.PROGRAM, "Invalid argument", 1)
        self._make(path)
        junk = f"{path}/.Junk"
        if message.job.junk:
            self._make(junk)
        folder = path
        extension = message.job.subaddress.translate(_UNSAFE_FOLDER)
        if extension.strip(".") and os.path.isdir(f"{path}/.{extension}"):
            folder = f"{path}/.{extension}"
            self._make(folder)
        return folder, junk if message.job.junk and message.is_junk() else folder

    def _make(self, path: str) -> None:
        if path in self._ready:
            return
        made = False
        with contextlib.suppress(OSError):  # what is missing shows when the folders are made
            os.makedirs(path, 0o700)
            made = True
        for name in ("cur", "tmp", "new"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{path}/{name}", 0o700)
                made = True
        if made:
            _sync_directory(path)
            _sync_directory(os.path.dirname(path.rstrip("/")))
        self._ready.add(path)


def deliver_mbox(message: Message, mailbox: int | None) -> None:
    """Append to the user's system mailbox. `mailbox`: opened beforehand where the user may not open it (root's)."""
    message.check_loop()
    job = message.job
    path = mailbox_path(job.user)
    try:
        fd = mailbox if mailbox is not None else _open_mailbox(path)
        try:
            _append(fd, message, path=path, after_empty_only=True, dotlock=True)
        finally:
            os.close(fd)
    except (OSError, Failure) as error:
        raise _as_failure("mail.local", error, path) from None


def deliver_file(message: Message) -> None:
    """Append to a file that an alias or `.forward` names, in mbox form."""
    message.check_loop()
    path = expand_target(message.job)
    try:
        fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
        try:
            _append(fd, message, path=path, after_empty_only=False, dotlock=False)
        finally:
            os.close(fd)
    except (OSError, Failure) as error:
        raise _as_failure("mail.mboxfile", error) from None


def mailbox_path(user: str) -> str:
    """The system mailbox of a user; raises Failure for a name that is no file name."""
    if not user or "/" in user or user.startswith(".") or "\0" in user:
        raise failure("mail.local", f"unknown name: {user}", 67)
    return f"{SPOOL}/{user}"


def report_of(index: int, error: Failure) -> Report:
    """The report of a job that failed."""
    return Report(index=index, result=error.result, sysexit=error.sysexit, text=error.text)


def _open_mailbox(path: str) -> int:
    """Open an mbox that is a regular file with one name, made when missing."""
    flags = os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise failure("mail.local", f"{path}: linked or special file", _EX_CANTCREAT)
    return fd


def open_mailbox_of_root(path: str) -> int:
    """Root's mailbox, opened while we still may. Only one that root owns, in a directory that is not everybody's."""
    fd = _open_mailbox(path)
    if os.fstat(fd).st_uid != 0:
        os.close(fd)
        raise failure("mail.local", f"{path}: not owned by root", _EX_CANTCREAT)
    return fd


def make_mailbox(user: str, uid: int, gid: int) -> None:
    """Create the user's empty mailbox while we may: the spool directory is not the user's to write."""
    try:
        fd = os.open(mailbox_path(user), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0)
    except FileExistsError:
        return
    except OSError as error:
        raise _as_failure("smtpd", error, "open") from None
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _append(fd: int, message: Message, *, path: str, after_empty_only: bool, dotlock: bool) -> None:
    """Write the message behind what is there, under locks; what a failed write left is cut off again."""
    sender = message.job.sender or "MAILER-DAEMON"
    first = f"From {sender} {time.ctime(time.time())}\n".encode("utf-8", "surrogateescape")
    regular = stat.S_ISREG(os.fstat(fd).st_mode)
    with contextlib.ExitStack() as locks:
        if regular:
            _lock(locks, fd, f"{path}.lock" if dotlock else "")
        end = os.fstat(fd).st_size
        try:
            _write_all(fd, [first])
            _write_all(fd, escape_from(message.chunks(), after_empty_only=after_empty_only))
            _write_all(fd, [b"\n"])
            if regular:
                os.fsync(fd)
        except (OSError, Failure):
            if regular:
                os.ftruncate(fd, end)
            raise


def _lock(locks: contextlib.ExitStack, fd: int, dotlock: str) -> None:
    """fcntl first, then a lock file, as Debian Policy §11.6 has it; gives up after _LOCK_WAIT."""
    deadline = time.monotonic() + _LOCK_WAIT
    _retry(lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), BlockingIOError, deadline)
    locks.callback(fcntl.lockf, fd, fcntl.LOCK_UN)
    if not dotlock:
        return
    try:
        _retry(lambda: _make_lock_file(dotlock), FileExistsError, deadline)
    except PermissionError:
        return  # a spool directory that is not ours to write: the lock above is what there is
    locks.callback(_unlink, dotlock)


def _retry(action: Callable[[], None], busy: type[OSError], deadline: float) -> None:
    while True:
        try:
            return action()
        except busy as error:
            if time.monotonic() >= deadline:
                raise OSError(error.errno, "mailbox is locked") from None
        time.sleep(0.1)


def _make_lock_file(path: str) -> None:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.lstat(path).st_mtime > _LOCK_STALE:
                os.unlink(path)
        raise
    _write_all(fd, [f"{os.getpid()}\n".encode()])
    os.close(fd)


def _write_all(fd: int, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


def _sync_directory(path: str) -> None:
    fd = os.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _as_failure(program: str, error: OSError | Failure, where: str = "") -> Failure:
    if isinstance(error, Failure):
        return error
    text = error.strerror or str(error)
    sysexit = EX_TEMPFAIL
    if program == "mail.local":
        sysexit = _EX_OSERR
    return failure(program, f"{where}: {text}" if where else text, sysexit)
