"""`mail.maildir`, `mail.mboxfile` and `mail.lmtp` as programs: what a wrapper's `%{mda}` is given to run.

They take the message, trace lines included, from standard input, as the reference's do; without a wrapper the same
code runs in a delivery child and no program is started.
"""

import getopt
import os
import re
import sys
import time
from collections.abc import Callable, Iterator

from pillarbox.mail.envelope import Result
from pillarbox.mail.headers import header_end
from pillarbox.mda.lmtp import deliver_lmtp
from pillarbox.mda.mailers import Maildir, deliver_file
from pillarbox.mda.message import EX_TEMPFAIL, Failure, Message, failure
from pillarbox.mda.wire import CHUNK, TIME_LIMIT, Job

_EX_FAILED = 1


class Input(Message):
    """The message on a file descriptor: its trace lines are there already."""

    def __init__(self, job: Job, fd: int = 0) -> None:
        self._fd = fd
        super().__init__(job, lambda offset: os.read(fd, CHUNK))

    def trace(self) -> bytes:
        """None to add."""
        return b""

    def check_loop(self) -> None:
        """Done before the program was started; our own Delivered-To is in front now."""

    def _load_header(self) -> None:
        while header_end(self._start) < 0 and len(self._start) < CHUNK:
            piece = os.read(self._fd, CHUNK)
            if not piece:
                return
            self._start += piece

    def _pieces(self) -> Iterator[bytes]:
        yield self._start
        while piece := os.read(self._fd, CHUNK):
            yield piece


def maildir() -> None:
    """`mail.maildir [-j] [path]`."""

    def run(options: dict[str, str], arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise failure("mail.maildir", "only one maildir is allowed", _EX_FAILED)
        delivery = Maildir()
        delivery.stage(Input(_job(target=_literal(arguments[0] if arguments else ""), junk="-j" in options)))
        for report in delivery.finish():
            if report.result is not Result.OK:
                raise Failure(report.result, report.text, report.sysexit)

    _main("mail.maildir", "j", run)


def mboxfile() -> None:
    """`mail.mboxfile [-f sender] path`."""

    def run(options: dict[str, str], arguments: list[str]) -> None:
        if len(arguments) != 1:
            raise failure("mail.mboxfile", "only one mboxfile is allowed", _EX_FAILED)
        deliver_file(Input(_job(target=_literal(arguments[0]), sender=options.get("-f", "<unknown>"))))

    _main("mail.mboxfile", "f:", run)


def lmtp() -> None:
    """`mail.lmtp [-d destination] [-f sender] -r | -u | recipient`."""

    def run(options: dict[str, str], arguments: list[str]) -> None:
        names = {"-r": os.environ.get("RECIPIENT", ""), "-u": os.environ.get("USER", "")}
        recipient = next((names[o] for o in ("-u", "-r") if o in options), arguments[0] if arguments else "")
        if not recipient:
            raise failure("mail.lmtp", "no recipient was specified")
        job = _job(
            target=_literal(options.get("-d", "localhost")),
            sender=options.get("-f", os.environ.get("SENDER", "")),
            user=recipient,
        )
        deliver_lmtp(Input(job), time.monotonic() + TIME_LIMIT)

    _main("mail.lmtp", "d:l:f:ru", run)


def _literal(text: str) -> str:
    """An argument as a target: nothing in it is expanded again."""
    return re.sub("%(?=[%{])", "%%", text)


def _job(*, target: str, junk: bool = False, sender: str = "", user: str = "") -> Job:
    home = os.environ.get("HOME", "")
    return Job(
        index=0,
        method="",
        sender=sender,
        rcpt="",
        dest="",
        user=user,
        directory=home,
        home=home,
        target=target,
        subaddress=os.environ.get("EXTENSION", ""),
        junk=junk,
        size=0,
    )


def _main(program: str, letters: str, run: Callable[[dict[str, str], list[str]], None]) -> None:
    """Parse the arguments, run, and end as sysexits.h has it, with the reason on standard error."""
    os.umask(0o077)
    try:
        if os.geteuid() == 0:
            raise failure(program, "may not be executed as root", _EX_FAILED)
        try:
            options, arguments = getopt.getopt(sys.argv[1:], letters)
        except getopt.GetoptError as error:
            raise failure(program, str(error), _EX_FAILED) from None
        run(dict(options), arguments)
    except Failure as error:
        sys.stderr.write(error.text.strip('"') + "\n")
        sys.exit(error.sysexit or EX_TEMPFAIL)
