"""Delivery to a command: the message on its standard input, its exit status the outcome, its last line the reason.

Runs in a delivery child as the user. The command gets a clean environment, a process group of its own, and until the
deadline; what it leaves in the background does not hold the delivery up.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator

from pillarbox.mail.envelope import Result
from pillarbox.mda.mailers import facts_of
from pillarbox.mda.message import Failure, Message, failure
from pillarbox.mda.shell import SHELL, build_argv
from pillarbox.mda.variables import BadFormat, Facts, expand_parts
from pillarbox.mda.wire import Job

_LAST_LINE_MAX = 253  # characters that are kept of the reason
_TEMPORARY = (71, 75)  # sysexits.h EX_OSERR, EX_TEMPFAIL
_RESET = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGXFSZ)
_UMASK = 0o022  # the files that commands make have always been readable; ours are not


def deliver_command(message: Message, deadline: float) -> None:
    """Run the command with the message as its input; `deadline` on the monotonic clock. Raises Failure."""
    message.check_loop()
    job = message.job
    argv = _argv(job)
    chunks = message.chunks()
    process = _Process(argv, environment(job), _fill(chunks))
    try:
        process.feed(chunks, deadline)
    finally:
        process.close()
    process.check()


def environment(job: Job) -> dict[str, str]:
    """What a command finds in its environment, similar to other servers' local delivery."""
    values = {
        "PATH": "/usr/bin:/bin",
        "DOMAIN": job.rcpt.rpartition("@")[2],
        "HOME": job.home,
        "ORIGINAL_RECIPIENT": job.rcpt,
        "RECIPIENT": job.dest,
        "SHELL": SHELL,
        "LOCAL": job.rcpt.rpartition("@")[0],
        "LOGNAME": job.user,
        "USER": job.user,
        "SENDER": job.sender,
    }
    if job.subaddress:
        values["EXTENSION"] = job.subaddress
    return values


def _argv(job: Job) -> list[str]:
    facts = facts_of(job)
    try:
        parts = expand_parts(job.target, facts)
        wrapper = None
        if job.wrapper:
            about = Facts(facts.sender, facts.rcpt, facts.dest, facts.username, facts.directory, facts.delimiter, "")
            wrapper = expand_parts(job.wrapper, about)
    except BadFormat:
        raise failure("smtpd", "mda command line could not be expanded", 1) from None
    return build_argv(parts, through_two_shells=job.two_shells, wrapper=wrapper)


def _fill(chunks: Iterator[bytes]) -> tuple[int, int, bytes]:
    """(read end, write end, what did not fit) of a pipe with the beginning of the message in it.

    Filled before the command starts, so that one that reads nothing of a short message never sees a broken pipe.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for chunk in chunks:
        rest = _write_some(writer, chunk)
        if rest:
            return reader, writer, rest
    return reader, writer, b""


def _write_some(fd: int, data: bytes) -> bytes:
    """Write what fits; returns the rest."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            break
    return data


class _Process:
    """A running command: its input, its output, its end."""

    def __init__(self, argv: list[str], env: dict[str, str], stdin: tuple[int, int, bytes]) -> None:
        reader, self._input, self._rest = stdin
        self._output, writer = os.pipe()
        os.set_blocking(self._output, False)
        self._tail = b""
        self._status: int | None = None
        self._timed_out = False
        self._unread = False
        actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
        os.umask(_UMASK)
        try:
            environ = {
                k.encode("utf-8", "surrogateescape"): v.encode("utf-8", "surrogateescape") for k, v in env.items()
            }
            self._pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions, setpgroup=0, setsigdef=_RESET)
        except OSError as error:
            os.close(self._input)
            os.close(self._output)
            raise failure("smtpd", f"{argv[0]}: {error.strerror}", 71) from None
        finally:
            os.umask(0o077)
            os.close(reader)
            os.close(writer)
        self._ended = os.pidfd_open(self._pid)

    def feed(self, chunks: Iterator[bytes], deadline: float) -> None:
        """Write the rest of the message, keep the output's end, until the command ends or its time is up."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        poll.register(self._output, select.POLLIN)
        writing = self._go_on(chunks)
        if writing:
            poll.register(self._input, select.POLLOUT)
        while self._status is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return self._stop()
            for fd, _ in poll.poll(left * 1000):
                if fd == self._output and not self._read_output():
                    poll.unregister(self._output)
                elif fd == self._input and not self._go_on(chunks):
                    poll.unregister(fd)
                elif fd == self._ended:
                    self._reap()
        return None

    def check(self) -> None:
        """Raise what the end of the command means."""
        if self._timed_out:
            raise Failure(Result.TEMPFAIL, "terminated; timeout")
        assert self._status is not None
        last = last_line(self._tail)
        if os.WIFSIGNALED(self._status):
            raise Failure(Result.TEMPFAIL, last or f"terminated; signal {os.WTERMSIG(self._status)}")
        code = os.WEXITSTATUS(self._status)
        if code:
            result = Result.TEMPFAIL if code in _TEMPORARY else Result.PERMFAIL
            raise Failure(result, last or "exited abnormally", code)
        if self._unread:
            raise Failure(Result.TEMPFAIL, "mda exited prematurely")

    def close(self) -> None:
        """Give everything back; a command that still runs is ended."""
        if self._status is None:
            self._stop()
        if self._input >= 0:
            self._unread = True
            self._close_input()
        os.close(self._output)
        os.close(self._ended)

    def _go_on(self, chunks: Iterator[bytes]) -> bool:
        """Write on; False when there is nothing left to write, or nobody to read it."""
        try:
            while not (self._rest and (rest := _write_some(self._input, self._rest))):
                self._rest = next(chunks, b"")
                if not self._rest:
                    self._close_input()
                    return False
            self._rest = rest
        except BrokenPipeError:
            self._unread = True
            self._close_input()
            return False
        return True

    def _close_input(self) -> None:
        os.close(self._input)
        self._input = -1

    def _read_output(self) -> bool:
        try:
            data = os.read(self._output, 65536)
        except BlockingIOError:
            return True
        # Enough for the last line and the line end before it.
        self._tail = (self._tail + data)[-4096:]
        return bool(data)

    def _reap(self) -> None:
        self._status = os.waitpid(self._pid, 0)[1]
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # what is in the pipe; who writes on in the background is not waited for
                self._tail = (self._tail + os.read(self._output, 65536))[-4096:]

    def _stop(self) -> None:
        self._timed_out = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._reap()


def last_line(output: bytes) -> str:
    """The last line of a program's output in quotes, control characters shown as vis(3) shows them; "" if none."""
    if not output:
        return ""
    line = output.removesuffix(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")
    return f'"{"".join(map(_visible, line))[:_LAST_LINE_MAX]}"'


def _visible(c: str) -> str:
    if c == "\\":
        return "\\\\"
    if c.isprintable() or c in "\t\b\a\r":
        return c
    if ord(c) < 32:
        return {"\0": "\\0", "\v": "\\v", "\f": "\\f"}.get(c, f"\\^{chr(ord(c) + 64)}")
    return "\\^?" if c == "\x7f" else "?"
