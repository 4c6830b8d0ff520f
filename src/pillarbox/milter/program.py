"""`filter-milter ADDRESS`: the command line."""

import argparse
import contextlib
import re
import resource
import socket
from datetime import datetime
from typing import NoReturn

from pillarbox.milter.bridge import Bridge
from pillarbox.milter.client import Address, Deadlines, Milter, parse_address
from pillarbox.milter.macros import Macros
from pillarbox.milter.session import ON_ERROR, Policy

_SIZE = re.compile(r"([0-9]+)([KMG]?)", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_MACRO = re.compile(r"(\w|\{\w+\})=(.*)", re.ASCII | re.DOTALL)
_FILES = 16  # descriptors beside those of sessions
_PACKET = 1 << 10  # what a packet has beside what could be a whole message


def main() -> NoReturn:
    """Be a filter until the mail server closes standard input."""
    options = build_parser().parse_args()
    _allow_files(2 * options.connections + _FILES)
    milter = Milter(
        address=options.address,
        deadlines=Deadlines(options.connect_timeout, options.command_timeout, options.message_timeout),
        most=options.connections,
        limit=options.max_size + _PACKET,
    )
    policy = Policy(
        on_error=ON_ERROR[options.on_error],
        junk_discarded=options.on_discard == "junk",
        ignore_envelope=options.on_envelope == "ignore",
        answer=options.answer_within,
        largest=options.max_size,
    )
    bridge = Bridge(
        milter=milter,
        names=Macros(dict(options.macro)),
        policy=policy,
        hostname=socket.gethostname(),
        now=lambda: datetime.now().astimezone(),
    )
    bridge.filter.run()


def build_parser() -> argparse.ArgumentParser:
    """The options, with their defaults."""
    parser = argparse.ArgumentParser(
        prog="filter-milter",
        description='Have a milter filter mail: filter NAME proc-exec "filter-milter unix:/run/opendkim.sock"',
    )
    parser.add_argument(
        "address", type=_address, metavar="ADDRESS", help="unix:PATH, inet:PORT@HOST or inet6:PORT@HOST"
    )
    choice = parser.add_argument_group("what holds")
    choice.add_argument(
        "--on-error",
        choices=tuple(ON_ERROR),
        default="tempfail",
        help="where the milter cannot be reached, hangs, or is not understood",
    )
    choice.add_argument(
        "--on-discard",
        choices=("reject", "junk"),
        default="reject",
        help="where the milter wants a message to be accepted and thrown away",
    )
    choice.add_argument(
        "--on-envelope",
        choices=("tempfail", "ignore"),
        default="tempfail",
        help="where the milter wants another sender or other recipients",
    )
    _add_limits(parser.add_argument_group("limits, in seconds and bytes"))
    parser.add_argument(
        "--macro",
        type=_macro,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a macro with this value, as {daemon_name}=outgoing; may be given several times",
    )
    return parser


def _add_limits(group: "argparse._ArgumentGroup") -> None:
    default, policy = Deadlines(), Policy()
    group.add_argument("--connect-timeout", type=_seconds, default=default.connect, metavar="S")
    group.add_argument("--command-timeout", type=_seconds, default=default.command, metavar="S")
    group.add_argument("--message-timeout", type=_seconds, default=default.message, metavar="S")
    group.add_argument(
        "--answer-within",
        type=_seconds,
        default=policy.answer,
        metavar="S",
        help="for all of an answer; less than the timeout that the filter has in smtpd.conf",
    )
    group.add_argument("--connections", type=_count, default=400, metavar="N", help="to the milter, at a time")
    group.add_argument("--max-size", type=_size, default=policy.largest, metavar="SIZE", help="of a message")


def _allow_files(wanted: int) -> None:
    """A connection and a temporary file for every session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # then some sessions fail, and say so
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {text}")
    return value


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"a size is a number, or one with K, M or G: {text}")
    return int(match[1]) << _UNITS[match[2].upper()]


def _macro(text: str) -> tuple[str, str]:
    match = _MACRO.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"write a macro as NAME=VALUE or {{name}}=VALUE: {text}")
    return match[1], match[2]
