"""smtpd-events: record the events of a server, and read, count and replay what was recorded (docs/events.md).

Exit status: 0 done, 1 it did not go well (no such session, a filter that misbehaved), 2 wrong use or an unreadable log.
"""

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO, TypeAlias

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.lines import FIELDS, printable
from pillarbox.eventlog.reading import STDIN, EventLog

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SYSTEM_FOLDER = "/var/log/smtpd-events"
_LOGS = f"""LOG is a file, a folder, or - for standard input; compressed or not. Without one: the folder that
SMTPD_EVENTS names, else {_SYSTEM_FOLDER}. TIME is 2026-11-26, 2026-11-26T07:00 (UTC, or with a zone), epoch seconds,
or how long ago: 90s, 15m, 2h, 3d, 1w."""


def main() -> int:
    """The console entry; returns the exit status."""
    if sys.stdout is None:
        complain(f"standard output: {os.strerror(errno.EBADF)}")
        return 2
    arguments, command = _split(sys.argv[1:])
    options = _options(arguments)
    options.filter = command
    try:
        status = int(options.command(options))
        with standard_output():
            sys.stdout.flush()
        return status
    except PillarboxError as error:
        complain(str(error))
        return 2
    except BrokenPipeError:  # `smtpd-events cat | head`, or whoever read what is wrong
        _write_no_more(1)
        _write_no_more(2)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _options(words: list[str]) -> argparse.Namespace:
    """The command line. Logs may stand behind options too: `session ID --json LOG`, for which argparse has no rule."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    strange = [word for word in rest if word.startswith("-") and word != STDIN]
    if rest and (strange or "logs" not in options):
        parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        options.logs += rest
    return options


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind `--`, which only `replay` has a use for."""
    if words[:1] != ["replay"] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def complain(text: str) -> None:
    """A line on stderr, whatever bytes it holds; behind what is on stdout so far."""
    if sys.stdout is not None:
        with standard_output():
            sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.buffer.write(f"smtpd-events: {text}\n".encode("utf-8", "backslashreplace"))
        sys.stderr.buffer.flush()


@contextlib.contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output, to be written to. Raises PillarboxError where it takes nothing, as a full disk."""
    try:
        yield sys.stdout.buffer
    except BrokenPipeError:
        raise
    except OSError as error:
        _write_no_more(1)
        raise PillarboxError(f"standard output: {error.strerror}") from None


def _write_no_more(descriptor: int) -> None:
    """What was not written is not tried again at the end, where Python would make another exit status of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def show(lines: Iterable[str]) -> None:
    """Lines for people on stdout, at once: what this terminal's encoding lacks is shown escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    _write(f"{line}\n".encode(encoding, "backslashreplace") for line in lines)


def show_raw(lines: Iterable[str]) -> None:
    """Lines for programs on stdout, at once: UTF-8 and what bytes there were besides. A terminal gets them escaped."""
    if sys.stdout.isatty():
        show(map(printable, lines))
    else:
        _write(f"{line}\n".encode("utf-8", "surrogateescape") for line in lines)


def _write(lines: Iterable[bytes]) -> None:
    for line in lines:
        with standard_output() as output:
            output.write(line)
    with standard_output() as output:
        output.flush()


def default_folder() -> str:
    """Where logs are that nobody named."""
    return os.environ.get("SMTPD_EVENTS") or _SYSTEM_FOLDER


def event_log(options: argparse.Namespace) -> EventLog:
    """What the options say is to be read."""
    return EventLog(options.logs or [default_folder()], warn=complain, since=options.since, until=options.until)


def parse_time(text: str, now: float) -> float:
    """Epoch seconds of what a person writes (`_LOGS`). Raises ValueError."""
    if re.fullmatch(r"\d{1,9}[smhdw]", text):
        return now - int(text[:-1]) * _UNITS[text[-1]]
    if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
        return float(text)
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _time(text: str) -> float:
    try:
        return parse_time(text, time.time())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a time: {text} (as 2026-11-26T07:00, or 2h for two hours ago)") from None


def _event(text: str) -> str:
    if text not in FIELDS:
        raise argparse.ArgumentTypeError(f"no such event: {text} ({', '.join(FIELDS)})")
    return text


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with contextlib.suppress(ValueError, OverflowError):
            if 0 < kind(text) < 1e9:
                return kind(text)
        raise argparse.ArgumentTypeError(f"not a number above 0: {text}")

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smtpd-events",
        description="Record the events of a mail server, look at what was recorded, replay it to filters.",
        epilog="Each command has its own --help; docs/events.md says more.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_record(commands)
    _add_replay(commands)
    _add_session(commands)
    _add_cat(commands)
    _add_stats(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_record(commands: _Commands) -> None:
    parser = commands.add_parser(
        "record",
        help="a report processor that writes an event log",
        description="Registers every event and writes the lines to a folder, compressed, one file after the other."
        ' Started by the server: proc recorder "smtpd-events record" and report smtp on recorder.',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dir", metavar="DIR", help=f"the folder; without it what SMTPD_EVENTS names, else {_SYSTEM_FOLDER}")
    add("--size", type=_positive(float), default=64.0, metavar="MB", help="begin a new file at this size (64)")
    add("--every", choices=("hour", "day", "never"), default="day", help="begin a new file every … (day), UTC")
    add("--keep", type=_positive(int), default=30, metavar="N", help="delete all but the last N files (30)")
    add("--compress", choices=("gzip", "zstd", "none"), default="gzip", help="how (gzip)")
    add("--buffer", type=_positive(float), default=32.0, metavar="MB", help="what may wait for the disk (32)")
    add(
        "--subsystem",
        action="append",
        choices=("smtp-in", "smtp-out", "mda"),
        help="only this one; may be given again; without it all that the server offers",
    )
    parser.set_defaults(command=_record)


def _record(options: argparse.Namespace) -> int:
    from pillarbox.cli.events_record import record  # noqa: PLC0415 - the others do without

    return record(options, options.dir or default_folder())


def _add_reading(parser: argparse.ArgumentParser, *, json: str = "an event a line, as JSON") -> None:
    add = parser.add_argument
    add("logs", nargs="*", metavar="LOG", help="where the events are")
    add("--since", type=_time, default=float("-inf"), metavar="TIME", help="only what happened from then on")
    add("--until", type=_time, default=float("inf"), metavar="TIME", help="only what happened before")
    add("--json", action="store_true", help=json)


def _add_replay(commands: _Commands) -> None:
    parser = commands.add_parser(
        "replay",
        help="drive a filter with what was recorded",
        description="Plays the server for a filter, in whatever language: handshake, events, questions made from the"
        " log again. Says what it decided, and what was decided otherwise then. Exit status 1: it broke the protocol,"
        " left a question out, or ended.",
        usage="smtpd-events replay [options] [LOG ...] -- COMMAND [ARGUMENT ...]",
        epilog=_LOGS,
        allow_abbrev=False,
    )
    _add_reading(parser, json="a session a line, as JSON")
    add = parser.add_argument
    add("--fast", action="store_true", help="as fast as the filter is, not at the pace of then")
    add("--speed", type=_positive(float), default=1.0, metavar="N", help="N times as fast as then")
    add("--session", metavar="ID", help="only this one; the beginning of its id is enough")
    add("--message", metavar="FILE", help="what every client sends behind DATA; without it a message is made up")
    add("--timeout", type=_positive(float), default=10.0, metavar="S", help="seconds for an answer (10)")
    add("--protocol", choices=("0.4", "0.5", "0.6", "0.7"), default="0.7", help="the version that is spoken (0.7)")
    add("--same", action="store_true", help="exit status 1 also where something else was decided then")
    add("-v", "--verbose", action="store_true", help="every decision, and the messages that it changed")
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> int:
    from pillarbox.cli.events_replay import replay  # noqa: PLC0415 - the others do without

    return replay(options)


def _add_session(commands: _Commands) -> None:
    parser = commands.add_parser(
        "session",
        help="a session as a transcript",
        description="Prints what was said in a session, and what the server did. ID: its id, or that of a message or"
        " an envelope in it, in hexadecimal; the beginning is enough.",
        epilog=_LOGS,
        allow_abbrev=False,
    )
    parser.add_argument("id", metavar="ID", help="0123456789abcdef, or its beginning")
    _add_reading(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--follow", action="store_true", help="go on until the session ends")
    which.add_argument("--all", action="store_true", help="where there are several such sessions: all, one by one")
    parser.set_defaults(command=_session)


def _session(options: argparse.Namespace) -> int:
    from pillarbox.cli.events_show import show_session  # noqa: PLC0415 - the recorder does without

    return show_session(options)


def _add_cat(commands: _Commands) -> None:
    parser = commands.add_parser(
        "cat",
        help="the events of logs, in their order, as lines",
        description="Prints the lines of event logs as a filter reads them, behind the handshake: pipe them into one.",
        epilog=_LOGS,
        allow_abbrev=False,
    )
    _add_reading(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument(
        "--event", action="append", type=_event, metavar="NAME", help="only this event; may be given again"
    )
    parser.set_defaults(command=_cat)


def _cat(options: argparse.Namespace) -> int:
    from pillarbox.cli.events_show import cat  # noqa: PLC0415 - the recorder does without

    return cat(options)


def _add_stats(commands: _Commands) -> None:
    parser = commands.add_parser(
        "stats",
        help="counts, peers, refusals, times",
        description="Counts events, peers, senders' domains and refusals, and how long replies and filters took.",
        epilog=_LOGS,
        allow_abbrev=False,
    )
    _add_reading(parser, json="the same, as one JSON object")
    parser.add_argument("--top", type=_positive(int), default=10, metavar="N", help="how many of each (10)")
    parser.set_defaults(command=_stats)


def _stats(options: argparse.Namespace) -> int:
    from pillarbox.cli.events_show import stats  # noqa: PLC0415 - the recorder does without

    return stats(options)


if __name__ == "__main__":
    sys.exit(main())
