"""smtpctl(8) and mailq: what an operator asks of the running server.

Also answers to the names of other programs where it is installed under them, as the reference's. Imports little:
`mailq` must start at once.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pillarbox import places
from pillarbox.cli import display
from pillarbox.cli.connection import ControlError
from pillarbox.cli.grammar import Grammar, NoCommand, Value
from pillarbox.cli.invocation import program_name, split_state
from pillarbox.cli.live import Live
from pillarbox.control import wire

if TYPE_CHECKING:
    from pillarbox.cli.stored import Stored

_TRACES = frozenset((
    "imsg", "io", "smtp", "filters", "mta", "bounce", "scheduler", "lookup", "stat", "rules", "mproc", "expand", "all",
))  # fmt: skip
_PROFILES = frozenset(("imsg", "queue"))
_OTHERS = {"sendmail": "sendmail", "send-mail": "sendmail", "makemap": "makemap", "newaliases": "newaliases"}
_MISSING = "fopen: No such file or directory"  # the reference opens a file of its spool
_MONITOR_PAGE = 25


class Smtpctl:
    """The commands, for one state directory."""

    def __init__(self, state: str) -> None:
        self._state = state
        self.server = Live(state)

    def grammar(self) -> Grammar:
        """The reference's commands in the reference's order, which is that of its hints; then our own."""
        g = Grammar()
        g.add("discover <evpid>", self._discover)
        g.add("discover <msgid>", self._discover)
        g.add("pause mta from <addr> for <str>", self._route(True))
        g.add("resume mta from <addr> for <str>", self._route(False))
        g.add("show mta paused", self._show_mta("paused"))
        g.add("log brief", self._plain(wire.LogLevel(False)))
        g.add("log verbose", self._plain(wire.LogLevel(True)))
        g.add("monitor", self._monitor)
        for which in ("<evpid>", "<msgid>", "all"):
            g.add(f"pause envelope {which}", self._change("pause", "paused"))
        for kind in ("mda", "mta", "smtp"):
            g.add(f"pause {kind}", self._plain(wire.Pause(kind, True)))
        g.add("profile <str>", self._trace(_PROFILES, on=True, profile=True))
        for which in ("<evpid>", "<msgid>", "all"):
            g.add(f"remove {which}", self._change("remove", "removed"))
        for which in ("<evpid>", "<msgid>", "all"):
            g.add(f"resume envelope {which}", self._change("resume", "resumed"))
        g.add("resume mda", self._plain(wire.Pause("mda", False)))
        g.add("resume mta", self._plain(wire.Pause("mta", False)))
        g.add("resume route <routeid>", self._resume_route)
        g.add("resume smtp", self._plain(wire.Pause("smtp", False)))
        for which in ("<msgid>", "<evpid>", "all"):
            g.add(f"schedule {which}", self._change("schedule", "scheduled"))
        g.add("show config", self._show_config, listed=False)
        g.add("show envelope <evpid>", self._show_envelope)
        g.add("show hoststats", self._show_mta("hoststats"))
        g.add("show message <msgid>", self._show_message)
        g.add("show message <evpid>", self._show_message)
        g.add("show queue", self.show_queue)
        g.add("show queue <msgid>", self.show_queue)
        for what in ("hosts", "relays", "routes"):
            g.add(f"show {what}", self._show_mta(what))
        g.add("show stats", self._show_stats)
        g.add("show status", self._show_status)
        g.add("trace <str>", self._trace(_TRACES, on=True))
        g.add("unprofile <str>", self._trace(_PROFILES, on=False, profile=True))
        g.add("untrace <str>", self._trace(_TRACES, on=False))
        g.add("update table <str>", self._update_table)
        g.add("encrypt", self._encrypt())
        for kind in ("scram", "token"):
            g.add(f"encrypt --{kind}", self._encrypt(kind), listed=False)
            g.add(f"encrypt --{kind} <str>", self._encrypt(kind), listed=False)
        g.add("encrypt <str>", self._encrypt())
        g.add("spf walk", self._spf_walk)
        g.add("spf walk <str>", self._spf_walk, listed=False)
        g.add("show filters", self._show_filters, listed=False)
        g.add("restart filter <str>", self._restart_filter, listed=False)
        g.add("stop", self._plain(wire.Stop()), listed=False)
        g.add("reload", self._reload, listed=False)
        return g

    def _queue(self) -> "Live | Stored":
        """Where the queue is looked at: the server, or without one its store."""
        if self.server.running():
            return self.server
        from pillarbox.cli.stored import Stored  # noqa: PLC0415 - rarely needed

        return Stored(self._state)

    def _report(self, request: wire.Request) -> int:
        """Carry out, and say in the reference's words whether it was done."""
        answer = self.server.ask(request)
        if isinstance(answer, wire.Failed):
            print(f"command failed: {answer.text}" if answer.text else "command failed")
            return 1
        print("command succeeded")
        return 0

    # Commands

    def _reload(self, _: list[Value]) -> int:
        """What is wrong with the file, as `smtpd -n` says it; nothing has changed then."""
        answer = self.server.look(wire.Reload())
        problems, notes = (answer.problems, answer.notes) if isinstance(answer, wire.Reloaded) else ((), ())
        for text in (*problems, *notes):
            print(text, file=sys.stderr)
        print("command failed" if problems else "command succeeded")
        return 1 if problems else 0

    def _plain(self, request: wire.Request) -> Callable[[list[Value]], int]:
        return lambda _: self._report(request)

    def _change(self, verb: str, done: str) -> Callable[[list[Value]], int]:
        def change(values: list[Value]) -> int:
            count = self._count(verb, values)
            print(f"{count} envelope{'s' if count > 1 else ''} {done}")
            return 0

        return change

    def _discover(self, values: list[Value]) -> int:
        count = self._count("discover", values)
        print(f"{count} envelope{'s' if count != 1 else ''} discovered")
        return 0

    def _count(self, verb: str, values: list[Value]) -> int:
        answer = self.server.look(wire.Change(verb, int(values[0]) if values else 0))
        return answer.count if isinstance(answer, wire.Count) else 0

    def _route(self, paused: bool) -> Callable[[list[Value]], int]:
        return lambda values: self._report(wire.PauseRoute(str(values[0]), str(values[1]), paused))

    def _resume_route(self, values: list[Value]) -> int:
        return self._report(wire.ResumeRoute(int(values[0])))

    def _trace(self, known: frozenset[str], *, on: bool, profile: bool = False) -> Callable[[list[Value]], int]:
        def trace(values: list[Value]) -> int:
            subsystem = str(values[0])
            if subsystem not in known:
                raise ControlError(f"invalid {'profile' if profile else 'trace'} keyword: {subsystem}")
            return self._report(wire.Trace(subsystem, on, profile))

        return trace

    def _update_table(self, values: list[Value]) -> int:
        return self._report(wire.UpdateTable(str(values[0])))

    def _show_filters(self, _: list[Value]) -> int:
        for status in self.server.filters():
            print(display.filter_line(status, int(time.time())))
        return 0

    def _restart_filter(self, values: list[Value]) -> int:
        return self._report(wire.RestartFilter(str(values[0])))

    def show_queue(self, values: list[Value]) -> int:
        """`show queue [msgid]`, and mailq."""
        for row in self._queue().rows(int(values[0]) if values else 0):
            print(display.queue_line(row, int(time.time())))
        return 0

    def _show_envelope(self, values: list[Value]) -> int:
        row = self._queue().row(int(values[0]))
        if row is None:
            raise ControlError(_MISSING)
        print("\n".join(display.envelope_lines(row.envelope)))
        return 0

    def _show_message(self, values: list[Value]) -> int:
        given = int(values[0])
        pieces = self._queue().pieces(given >> 32 or given)
        if pieces is None:
            raise ControlError(_MISSING)
        for piece in _with_lf(pieces):
            sys.stdout.buffer.write(piece)
        return 0

    def _show_config(self, _: list[Value]) -> int:
        for text in self.server.config():
            sys.stdout.write(text)
        return 0

    def _show_mta(self, what: str) -> Callable[[list[Value]], int]:
        def show(_: list[Value]) -> int:
            for line in self.server.lines(what):
                print(line)
            return 0

        return show

    def _stats(self) -> dict[str, int]:
        answer = self.server.look(wire.ShowStats())
        return answer.values if isinstance(answer, wire.Numbers) else {}

    def _show_stats(self, _: list[Value]) -> int:
        print("\n".join(display.stats_lines(self._stats())))
        return 0

    def _show_status(self, _: list[Value]) -> int:
        answer = self.server.look(wire.ShowStatus())
        paused = answer.lines if isinstance(answer, wire.Lines) else []
        for kind in ("mda", "mta", "smtp"):
            print(f"{kind.upper()} {'paused' if kind in paused else 'running'}")
        return 0

    def _monitor(self, _: list[Value]) -> int:
        """A line a second until interrupted."""
        last: dict[str, int] = {}
        count = 0
        while True:
            counters = display.monitor_counters(self._stats())
            if count % _MONITOR_PAGE == 0:
                print(("\n" if count else "") + display.MONITOR_HEADER)
            print(display.monitor_line(counters, last), flush=True)
            last = counters
            count += 1
            time.sleep(1)

    def _encrypt(self, kind: str = "password") -> Callable[[list[Value]], int]:
        def run(values: list[Value]) -> int:
            from pillarbox.cli import encrypt  # noqa: PLC0415 - ctypes is slow to import

            hashes = {"password": encrypt.hash_password, "scram": encrypt.hash_scram, "token": encrypt.hash_bearer}
            given = [os.fsencode(str(values[0]))] if values else (line.rstrip(b"\n") for line in sys.stdin.buffer)
            try:
                for secret in given:
                    print(hashes[kind](secret))
            except encrypt.CannotHash as error:
                raise ControlError(f"encrypt: {error}") from error
            return 0

        return run

    def _spf_walk(self, values: list[Value]) -> int:
        from pillarbox.cli import spf  # noqa: PLC0415 - it asks the DNS, which needs much

        return spf.walk(sys.stdin, str(values[0]) if values else "")


def _with_lf(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """CRLF as LF, also where a piece ends between the two."""
    held = b""
    for piece in pieces:
        data = held + piece
        held = b"\r" if data.endswith(b"\r") else b""
        yield data[: len(data) - len(held)].replace(b"\r\n", b"\n")
    yield held


def _run(name: str, command: Callable[[], int]) -> int:
    """A command, its errors told as err(3) does."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `smtpctl show queue | head` ends quietly
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        status = command()
        sys.stdout.flush()
        return status
    except NoCommand as error:
        print(error, file=sys.stderr)
        return 255
    except ControlError as error:
        sys.stdout.flush()
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _open(arguments: list[str]) -> tuple[Smtpctl, list[str]]:
    state, rest = split_state(arguments)
    return Smtpctl(places.client_state(state, environ=os.environ, uid=os.geteuid())), rest


def mailq() -> int:
    """`mailq`: `smtpctl show queue`, whatever the arguments, as the reference."""
    return _run("mailq", lambda: _open(sys.argv[1:])[0].show_queue([]))


def main() -> int:
    """`smtpctl`, or the program under whose name it is installed."""
    name = program_name()
    if name == "mailq":
        return mailq()
    if name in _OTHERS:
        return int(importlib.import_module(f"pillarbox.cli.{_OTHERS[name]}").main())
    if name != "smtpctl":
        print(f"{name}: unsupported mode", file=sys.stderr)
        return 1

    def command() -> int:
        control, arguments = _open(sys.argv[1:])
        if arguments[:1] == ["explain"]:
            from pillarbox.cli.explain import explain  # noqa: PLC0415 - with -f it brings a server's parts along

            return explain(arguments[1:], control.server)
        return control.grammar().run(arguments)

    return _run(name, command)


if __name__ == "__main__":
    sys.exit(main())
