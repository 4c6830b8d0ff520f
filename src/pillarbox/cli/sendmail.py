"""sendmail(8): hand a message from stdin to the server, or leave it where the server finds it when it is up again.

Speaks SMTP over the control socket as the local user. What is accepted here is with the server or on disk before
the program ends; what is refused stays in the user's dead.letter. Imports little: it must start at once.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator

import msgspec

from pillarbox import places
from pillarbox.cli.addresses import BadAddress
from pillarbox.cli.connection import Connection, ControlError, NotRunning, Unanswered
from pillarbox.cli.deadletter import save_dead_letter
from pillarbox.cli.dialogue import Dialogue, Lost, Refused
from pillarbox.cli.identity import date_field, from_field, full_name, local_user
from pillarbox.cli.invocation import program_name, split_state
from pillarbox.cli.leave import CannotLeave, leave_offline
from pillarbox.cli.message import FieldTooLarge, Message
from pillarbox.control import wire

OK, ERROR = 0, 1
UNAVAILABLE, SOFTWARE, CANTCREAT, TEMPFAIL = 69, 70, 73, 75  # sysexits.h

# The reference's options: with an argument, with one that may follow at once, without.
_WITH_ARGUMENT = frozenset("ABbeFfLNoprRV")
_MAYBE_ARGUMENT = frozenset("E")
_PLAIN = frozenset("imqStvx")
_ATOM = re.compile(r"[!-~]*")  # one word of a command


class Usage(Exception):
    """Wrong options; its text, if any, says which."""


class Stop(Exception):
    """End with a status, and a text unless it is empty."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Options(msgspec.Struct):
    """The command line."""

    sender: str | None = None
    name: str | None = None
    notify: str = ""
    ret: str = ""
    envid: str = ""
    from_header: bool = False
    verbose: bool = False
    ask_terminal: bool = True
    process_queue: bool = False
    recipients: list[str] = []


def parse_options(arguments: list[str]) -> Options:
    """Options and recipients in any order, as getopt(3) of GNU takes them. Raises `Usage`."""
    options = Options()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            options.recipients += rest
            break
        if not argument.startswith("-") or argument == "-":
            options.recipients.append(argument)
            continue
        letters = argument[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _WITH_ARGUMENT:
                if not letters and not rest:
                    raise Usage(f"option requires an argument -- '{letter}'")
                _set(options, letter, letters or rest.pop(0))
                break
            if letter in _MAYBE_ARGUMENT:
                break
            if letter not in _PLAIN:
                raise Usage(f"invalid option -- '{letter}'")
            _set(options, letter, "")
    return options


def _set(options: Options, letter: str, value: str) -> None:
    """What an option means; the ones that are missing here are accepted and ignored."""
    match letter:
        case "f" | "r":
            options.sender = value
        case "F":
            options.name = value
        case "N":
            options.notify = value
        case "R":
            options.ret = value
        case "V":
            options.envid = value
        case "t":
            options.from_header = True
        case "v":
            options.verbose = True
        case "S":
            options.ask_terminal = False
        case "q":
            options.process_queue = True


class Sendmail:
    """One submission. `resubmit`: of a message that was left offline, which is not left once more."""

    def __init__(self, arguments: list[str], *, state: str, resubmit: bool = False) -> None:
        self._arguments = arguments
        self._options = parse_options(arguments)
        self._state = state
        self._resubmit = resubmit
        self._host = places.host_name()
        self._user = local_user(ask_terminal=self._options.ask_terminal)

    def run(self) -> int:
        """Read the message, submit or leave it; the exit status. Raises `Stop`."""
        if self._options.process_queue:
            raise Stop(SOFTWARE)  # the reference's answer: nothing here processes a queue
        message = self._read()
        sender, recipients = self._envelope(message)
        added = self._added_fields(message, sender)
        connection = Connection(places.control_socket(self._state))
        try:
            connection.connect()
        except NotRunning:
            return self._leave(message)
        try:
            session = connection.submit()
        except Unanswered:
            return self._leave(message)
        except ControlError as error:
            if str(error) == wire.TOO_BUSY:
                return self._leave(message)
            raise Stop(TEMPFAIL if self._resubmit else ERROR, str(error)) from error
        with session:
            return self._talk(session, message, sender, recipients, added)

    def _read(self) -> Message:
        try:
            return Message(sys.stdin.buffer)
        except FieldTooLarge as error:
            raise Stop(ERROR, str(error)) from error
        except OSError as error:
            raise Stop(UNAVAILABLE, f"read: {error.strerror}") from error

    def _envelope(self, message: Message) -> tuple[str, list[str]]:
        """Sender and recipients, whole addresses."""
        try:
            senders = message.addresses("from")
            listed = message.addresses("to", "cc", "bcc") if self._options.from_header else []
        except BadAddress as error:
            raise Stop(ERROR, str(error)) from error
        given = [r for argument in self._options.recipients for r in argument.split(",") if r]
        recipients = given + listed
        if not recipients:
            raise Stop(SOFTWARE, "no recipients")
        if self._options.sender is not None:
            sender = self._options.sender
            if sender.startswith("<"):
                if not sender.endswith(">"):
                    raise Stop(ERROR, "leading < but no trailing >")
                sender = sender[1:-1]
        else:
            sender = senders[-1] if senders else self._user.pw_name if self._user else "anonymous"
        for parameter in (self._options.notify, self._options.ret, self._options.envid):
            if not _ATOM.fullmatch(parameter):
                raise Stop(SOFTWARE, f"invalid DSN parameter: {parameter!a}")
        return self._whole(sender), [self._whole(recipient) for recipient in recipients]

    def _whole(self, address: str) -> str:
        """With our name where there is no domain; nothing that could end the path or the command may be in it."""
        if any(c < " " or c == "\x7f" for c in address):
            raise Stop(SOFTWARE, "control character in address")
        if ">" in address:  # what is behind it would be parameters: callers check addresses, not those
            raise Stop(SOFTWARE, "angle bracket in address")
        return f"{address}@{self._host}" if address and "@" not in address else address

    def _added_fields(self, message: Message, sender: str) -> list[str]:
        """What the header lacks; Message-ID is the server's to add."""
        name = self._options.name
        if name is None:
            name = full_name(self._user) if self._user and self._options.sender is None else ""
        added = []
        if "from" not in message.fields:
            added.append(f"From: {from_field(name, sender)}")
        if "date" not in message.fields:
            added.append(f"Date: {date_field(time.time())}")
        if message.encoded:
            added += _mime_fields(message.fields)
        return added

    def _talk(
        self, session: socket.socket, message: Message, sender: str, recipients: list[str], added: list[str]
    ) -> int:
        """The SMTP dialogue, and what becomes of the message where it fails."""
        options = self._options
        dialogue = Dialogue(session, show=_show if options.verbose else _ignore)
        try:
            dialogue.greet()
            utf8 = not all(address.isascii() for address in (sender, *recipients))
            dialogue.mail(sender, ret=options.ret, envid=options.envid, eight_bit=message.eight_bit, utf8=utf8)
            for recipient in recipients:
                dialogue.rcpt(recipient, notify=options.notify)
            dialogue.data(message.lines_for_smtp(added))
        except Lost:
            return self._leave(message)
        except Refused as refused:
            return self._refused(refused, message, added)
        dialogue.quit()
        return OK

    def _leave(self, message: Message) -> int:
        """For the server's next start."""
        if self._resubmit:
            return TEMPFAIL
        try:
            leave_offline(places.offline_directory(self._state), self._arguments, message.spool.chunks())
        except CannotLeave as error:
            raise Stop(SOFTWARE if error.arguments else UNAVAILABLE, str(error)) from error
        return TEMPFAIL

    def _refused(self, refused: Refused, message: Message, added: list[str]) -> int:
        print(f"{program_name()}: command failed: {refused}\n", file=sys.stderr)
        if self._resubmit and refused.temporary:
            return TEMPFAIL
        saved = save_dead_letter(self._user, _letter(message, added))
        return CANTCREAT if self._resubmit and not saved else SOFTWARE


def _letter(message: Message, added: list[str]) -> Iterator[bytes]:
    """A message as it is kept for its writer."""
    header = "".join(f"{line}\n" for line in added) + ("" if message.has_header else "\n")
    yield header.encode("utf-8", "surrogateescape")
    yield from message.spool.chunks()


def _mime_fields(fields: set[str]) -> Iterator[str]:
    for name, value in (
        ("MIME-Version", "1.0"),
        ("Content-Type", "text/plain; charset=unknown-8bit"),
        ("Content-Disposition", "inline"),
        ("Content-Transfer-Encoding", "quoted-printable"),
    ):
        if name.lower() not in fields:
            yield f"{name}: {value}"


def _show(line: str) -> None:
    print(line, flush=True)


def _ignore(_: str) -> None:
    return


def run(arguments: list[str], *, resubmit: bool = False) -> int:
    """`sendmail` with these arguments; the exit status."""
    name = program_name()
    given, arguments = split_state(arguments)
    state = places.client_state(given, environ=os.environ, uid=os.geteuid())
    try:
        return Sendmail(arguments, state=state, resubmit=resubmit).run()
    except Usage as error:
        print(f"{name}: {error}\nusage: {name} [-tv] [-f from] [-F name] to ...", file=sys.stderr)
        return CANTCREAT if resubmit else ERROR
    except Stop as stop:
        if str(stop):
            print(f"{name}: {stop}", file=sys.stderr)
        # What can never be submitted is not in the dead.letter either.
        return CANTCREAT if resubmit and stop.status in (ERROR, SOFTWARE) else stop.status
    except KeyboardInterrupt:
        return 130


def main() -> int:
    """The console entry."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
