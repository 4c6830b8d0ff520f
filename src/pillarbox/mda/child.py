"""A delivery child: one user's jobs, done as that user.

Forked by `forker` with the rights of root, it gives them up before it reads the first byte of a job. It never runs
as uid 0: a delivery to root into a command or a Maildir is refused; root's system mailbox is opened first and then
written without rights.
"""

import contextlib
import os
import pwd
import resource
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import msgspec

from pillarbox.mail.envelope import Result
from pillarbox.mda.command import deliver_command
from pillarbox.mda.lmtp import deliver_lmtp
from pillarbox.mda.mailers import (
    SPOOL,
    Maildir,
    deliver_file,
    deliver_mbox,
    mailbox_path,
    make_mailbox,
    open_mailbox_of_root,
    report_of,
)
from pillarbox.mda.message import Failure, Message
from pillarbox.mda.wire import LENGTH, TIME_LIMIT, Chunk, Job, Report, Start, Want, decode_to_child, frame

_EX_NOUSER = 67
_EX_OSERR = 71
_EX_NOPERM = 77
_NOBODY = 65534
_FRAME_MAX = 16 * 1024 * 1024
_OPEN_FILES = 1024


class Gone(Exception):
    """The agent closed its end: nobody wants to know how it went."""


def refusal_for_root(user: str) -> Failure:
    """What a delivery ends with that would have to run as root."""
    return Failure(Result.PERMFAIL, f"MDA not allowed to deliver to: {user}", _EX_NOPERM)


def run_child(start: Start, connection: socket.socket) -> None:
    """Do the jobs of one child and report them; the caller ends the process afterwards."""
    refused: Failure | None = None
    mailbox: int | None = None
    home = start.home
    try:
        start, home = _resolve(start)
        mailbox = _prepare(start)
        _drop_rights(start)
    except Failure as error:
        refused = error
    except OSError as error:
        refused = Failure(Result.TEMPFAIL, f"cannot drop privileges: {error.strerror}", _EX_OSERR)
    signal.signal(signal.SIGALRM, _out_of_time)
    if refused is None:
        _enter(home)
    elif os.geteuid() == 0:
        _become(_NOBODY, _NOBODY, set())  # the jobs are read to refuse them, not with our rights
    with contextlib.suppress(Gone):
        _Worker(_Channel(connection), home, mailbox).run(start.count, refused)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    """Leave in an orderly way: end the command, lest it takes the end of its input for the message's; cut the mbox."""
    raise Failure(Result.TEMPFAIL, "terminated; timeout")


def _resolve(start: Start) -> tuple[Start, str]:
    """Who it runs as, and that user's home: the user of the table, or the one the action names."""
    if not start.run_as:
        return start, start.home
    try:
        entry = pwd.getpwnam(start.run_as)
    except KeyError:
        reason = f"delivery user '{start.run_as}' does not exist"
        raise Failure(Result.PERMFAIL, reason, _EX_NOUSER) from None
    found = Start(
        child=start.child,
        user=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        home=entry.pw_dir,
        count=start.count,
        mailbox=start.mailbox,
    )
    return found, entry.pw_dir


def _prepare(start: Start) -> int | None:
    """What only root may do: make the system mailbox; open root's, since nobody will run as root later."""
    if os.geteuid() != 0:
        return None
    if not start.mailbox:
        if start.uid == 0:
            raise refusal_for_root(start.user)
        return None
    make_mailbox(start.mailbox, start.uid, start.gid)
    return open_mailbox_of_root(mailbox_path(start.mailbox)) if start.uid == 0 else None


def _drop_rights(start: Start) -> None:
    """Become the user for good; root becomes nobody. Supplementary groups are the system's, if it is the same user."""
    if os.geteuid() != 0:
        if start.uid != os.geteuid():
            raise refusal_for_root(start.user)
        return
    uid, gid = (start.uid, start.gid) if start.uid != 0 else (_NOBODY, _NOBODY)
    groups = {gid, *_groups_of(start)}
    if start.mailbox:
        groups.add(_spool_group())  # our own code only: lock files beside the mailbox
    _become(uid, gid, groups)


def _become(uid: int, gid: int, groups: set[int]) -> None:
    os.setgroups(sorted(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid == 0 or os.getresuid() != (uid, uid, uid):
        raise PermissionError(1, "still root")


def _groups_of(start: Start) -> list[int]:
    """A table may give any name to any uid: a name of the system counts only with the system's uid."""
    try:
        known = pwd.getpwnam(start.user).pw_uid == start.uid and start.uid != 0
    except KeyError:
        known = False
    return os.getgrouplist(start.user, start.gid) if known else []


def _spool_group() -> int:
    found = os.stat(SPOOL)
    return found.st_gid if found.st_mode & 0o020 and found.st_gid != 0 else _NOBODY


def _enter(home: str) -> None:
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        os.chdir(home)
    except (OSError, ValueError):
        os.chdir("/")


class _Channel:
    """Frames over the child's socket, blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    def receive(self) -> Job | Chunk:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if length > _FRAME_MAX:
            raise Gone
        return decode_to_child(self._exactly(length))

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise Gone from None

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._socket.recv(max(65536, count - len(self._buffer)))
            if not data:
                raise Gone
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


class _Worker:
    """Does jobs in their order; Maildir deliveries are finished together at the end."""

    def __init__(self, channel: _Channel, home: str, mailbox: int | None) -> None:
        self._channel = channel
        self._home = home
        self._mailbox = mailbox
        self._maildir = Maildir()

    def run(self, count: int, refused: Failure | None) -> None:
        for _ in range(count):
            job = self._channel.receive()
            if not isinstance(job, Job):
                raise Gone
            report = report_of(job.index, refused) if refused else self._do(job)
            if report is not None:
                self._channel.send(frame(report))
        signal.alarm(TIME_LIMIT)
        self._channel.send(b"".join(map(frame, self._maildir.finish())))

    def _do(self, job: Job) -> Report | None:
        """One job; None where the report comes later."""
        # The clock of last resort, for a step that cannot be given a deadline.
        signal.alarm(TIME_LIMIT + 10)
        deadline = time.monotonic() + TIME_LIMIT
        try:
            job = msgspec.structs.replace(job, home=self._home)
            message = Message(job, self._fetcher(job))
            if job.method == "maildir":
                self._maildir.stage(message)
                return None
            self._deliver(message, deadline)
        except Failure as error:
            return report_of(job.index, error)
        return Report(index=job.index, result=Result.OK)

    def _deliver(self, message: Message, deadline: float) -> None:
        match message.job.method:
            case "mbox":
                deliver_mbox(message, os.dup(self._mailbox) if self._mailbox is not None else None)
            case "file":
                deliver_file(message)
            case "command":
                deliver_command(message, deadline)
            case "lmtp":
                deliver_lmtp(message, deadline)
            case method:
                raise Failure(Result.TEMPFAIL, f"unknown method: {method}", _EX_OSERR)

    def _fetcher(self, job: Job) -> Callable[[int], bytes]:
        def fetch(offset: int) -> bytes:
            self._channel.send(frame(Want(index=job.index, offset=offset)))
            answer = self._channel.receive()
            if not isinstance(answer, Chunk):
                raise Gone
            return b"" if answer.lost else answer.data

        return fetch
