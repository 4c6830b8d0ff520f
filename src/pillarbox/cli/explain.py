"""`smtpctl explain`: what becomes of mail to an address, and why; asked of the server, or with -f of a file.

Exit status: 0 accepted, 1 refused, 2 a temporary failure, something that could not be seen, or no answer at all.
"""

import argparse
import asyncio
import io
import ipaddress
import os
import sys

import msgspec

from pillarbox.cli.connection import ControlError
from pillarbox.cli.explained import Style, explained_lines
from pillarbox.cli.live import Live
from pillarbox.cli.smtpd import macro
from pillarbox.control import wire
from pillarbox.errors import PillarboxError
from pillarbox.log import Log
from pillarbox.roles.explain import Explanation, Question

_STATUS = {"accepted": 0, "refused": 1}
_UNKNOWN = 2


def explain(arguments: list[str], server: Live) -> int:
    """Ask and print; returns the exit status."""
    options = _parser().parse_args([_text(argument) for argument in arguments])
    question = Question(
        sender=options.sender,
        rcpt=options.rcpt,
        address=options.src,
        hostname=options.rdns,
        helo=options.helo,
        username=options.auth,
        tls=options.tls,
        tag=options.tag,
    )
    try:
        if options.file:
            explanation = _ask_file(options.file, dict(options.macros), question)
        else:
            explanation = _ask_server(server, question)
    except (ControlError, PillarboxError) as error:
        print(f"smtpctl: {error}" if isinstance(error, ControlError) else error, file=sys.stderr)
        return _UNKNOWN
    _print(explanation, as_json=options.json)
    return _STATUS.get(explanation.verdict, _UNKNOWN)


def _ask_server(server: Live, question: Question) -> Explanation:
    answer = server.look(wire.Explain(question))
    if not isinstance(answer, wire.Explained):
        raise ControlError("incompatible smtpctl and smtpd")
    return answer.explanation


def _ask_file(file: str, macros: dict[str, str], question: Question) -> Explanation:
    from pillarbox.daemon.explain import explain_config, read_explained  # noqa: PLC0415 - a server's parts

    # What the server would log is part of the explanation already.
    return asyncio.run(explain_config(read_explained(file, macros), question, Log(io.StringIO())))


def _print(explanation: Explanation, *, as_json: bool) -> None:
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(explanation), indent=2).decode()
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        text = "\n".join(explained_lines(explanation, Style(colour=colour)))
    encoding = sys.stdout.encoding or "utf-8"
    # What this terminal's encoding lacks is shown escaped, never an error.
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smtpctl explain",
        description="What becomes of mail to an address: each rule tried, each table asked, the actions.",
        epilog="Exit status: 0 accepted, 1 refused, 2 temporary, unknown or no answer.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="sender", default="", metavar="ADDR", help="the sender; without it the null sender")
    add("--rcpt", metavar="ADDR", help="the recipient; without it the postmaster")
    add("--src", default="127.0.0.1", type=_address, metavar="IP", help="the client's address, or `local` for sendmail")
    add("--rdns", metavar="NAME", help='its reverse name, "" for none; without it looked up where a rule asks')
    add("--helo", metavar="NAME", help="what it calls itself; a local client `localhost`")
    add("--auth", default="", metavar="USER", help="the user who has authenticated")
    add("--tls", action="store_true", help="the session has TLS")
    add("--tag", default="", metavar="T", help="it came to a listener with this tag")
    add("--json", action="store_true", help="the same as JSON (docs/explain.md)")
    add("-f", dest="file", metavar="FILE", help="explain this configuration, without a server")
    add("-D", dest="macros", action="append", default=[], type=macro, metavar="macro=value", help="with -f: a macro")
    return parser


def _address(text: str) -> str:
    if text == "local":
        return text
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not an IP address: {text}") from None


def _text(argument: str) -> str:
    """An argument with the bytes that are no UTF-8 replaced: no client could say them in an address either."""
    return os.fsencode(argument).decode("utf-8", "replace")
