"""What filters and reports cost: messages of 4 KB on kept connections, without and with them, here and in OpenSMTPD.

The filter (`pass_filter.py`, on the SDK) is asked about every line of every message and changes none. Who listens to
reports is a shell script, which costs the machine next to nothing: what is measured is the server.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.disk import fresh_disk
from bench.load import Source, finish
from bench.servers import REMOTE, SERVERS, settle

_SIZE = 4096
_WARMUP = 100  # messages
_PASS_FILTER = Path(__file__).with_name("pass_filter.py")
_LISTENER = """\
#!/bin/sh
# A filter that registers every event, and reads them.
while read -r line && [ "$line" != "config|ready" ]; do :; done
printf 'register|report|smtp-in|*\\nregister|ready\\n'
exec cat >/dev/null
"""


@dataclass(frozen=True)
class Setting:
    """What is between the listener and its mail: lines of configuration, and options of the listener."""

    name: str
    declared: str = ""
    options: str = ""
    servers: tuple[str, ...] = ("pillarbox", "opensmtpd")

    @property
    def row(self) -> str:
        """Its row of the table."""
        return f"{self.name}: messages/s"


WITHOUT = Setting("filters, none")
PASSING = Setting(
    "filters, one that passes every line",
    f'filter "pass" proc-exec "{sys.executable} {{folder}}/pass_filter.py"\n',
    ' filter "pass"',
)
LISTENING = Setting(
    "filters, one that listens to all events", 'filter "all" proc-exec "{folder}/listener"\n', ' filter "all"'
)
REPORTING = Setting(
    "filters, reports to a processor",
    'proc "all" "cat >/dev/null"\nreport smtp-in on "all"\n',
    servers=("pillarbox",),
)
SETTINGS = (WITHOUT, PASSING, LISTENING, REPORTING)


def measure(name: str, setting: Setting, messages: int) -> tuple[float, float]:
    """(messages a second, milliseconds of CPU a message, of the filter too), on a fresh disk; the queue holds all.

    Raises servers.Missing or RuntimeError.
    """
    with fresh_disk() as disk:
        server = SERVERS[name](disk.root / name, deliver=False)
        (server.folder / _PASS_FILTER.name).write_text(_PASS_FILTER.read_text())
        listener = server.folder / "listener"
        listener.write_text(_LISTENER)
        listener.chmod(0o755)
        server.declared, server.options = setting.declared.format(folder=server.folder), setting.options
        server.start()
        try:
            settle()
            finish(Source(REMOTE, _WARMUP, _SIZE, kept=True))
            cpu, start = server.cpu(), time.perf_counter()
            finish(Source(REMOTE, messages, _SIZE, kept=True))
            return messages / (time.perf_counter() - start), (server.cpu() - cpu) * 1000 / messages
        finally:
            server.stop()


Figures = Mapping[str, Mapping[str, Sequence[float]]]  # row → server → messages a second
_AIMS: list[tuple[str, float, tuple[str, Setting], tuple[str, Setting]]] = [
    ("with a filter that passes every line ÷ without", 0.5, ("pillarbox", PASSING), ("pillarbox", WITHOUT)),
    ("with that filter ÷ OpenSMTPD with it", 1.5, ("pillarbox", PASSING), ("opensmtpd", PASSING)),
    ("with reports to a processor ÷ without", 0.8, ("pillarbox", REPORTING), ("pillarbox", WITHOUT)),
    ("with a filter that listens ÷ without", 0.8, ("pillarbox", LISTENING), ("pillarbox", WITHOUT)),
]


def aims(figures: Figures) -> str:
    """Ratios of medians beside what they ought to be; those that could not be measured are left out."""
    lines = ["", "| | ratio | at least | |", "|---|---|---|---|"]
    for what, least, one, other in _AIMS:
        over, under = (figures.get(setting.row, {}).get(name) for name, setting in (one, other))
        if over and under:
            ratio = statistics.median(over) / statistics.median(under)
            lines.append(f"| {what} | {ratio:.2f} | {least} | {'reached' if ratio >= least else 'missed'} |")
    return "\n".join(lines)
