"""Events of outgoing sessions and of local deliveries, as a processor that is no more than a shell loop hears them."""

import re
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.system.server import Server, Wiring, bound_ports, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

LOOP = """\
#!/bin/sh
# usage: loop FILE [SUBSYSTEM TO REGISTER]...
file=$1; shift
while read -r line; do
    echo "$line" >>"$file"
    if [ "$line" = "config|ready" ]; then
        for what; do echo "register|report|$what|*"; done
        echo "register|ready"
    fi
done
"""
MESSAGE = "From: s@client.example.net\r\nSubject: A test\r\n\r\nHello\r\n.dot\r\n"


@contextmanager
def sink() -> Iterator[int]:
    """A host that takes everything, and its port."""
    port = free_port()
    process = subprocess.Popen([program("smtp-sink"), "-u", "nobody", "-h", "sink.example", f"127.0.0.1:{port}", "10"])
    try:
        assert wait_for(lambda: port in bound_ports(), 10)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Listening:
    """A server whose events end in files; `config` has `{loop}`, `{out}` and `{port}` to be filled in."""

    def __init__(self, folder: Path, wiring: Wiring, config: str, **values: object) -> None:
        folder.chmod(0o755)
        self.out = folder / "out"
        self.out.mkdir()
        self.out.chmod(0o777)
        loop = folder / "loop"
        loop.write_text(LOOP)
        loop.chmod(0o755)
        self.port = free_port()
        text = config.format(loop=loop, out=self.out, port=self.port, **values)
        self.server = Server(folder / "server", text, wiring)

    def send(self, *rcpts: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.sendmail("s@client.example.net", rcpts, MESSAGE)

    def heard(self, name: str) -> list[str]:
        """The events that a processor read, without what differs each time."""
        file = self.out / name
        lines = file.read_text().splitlines() if file.exists() else []
        events = [line for line in lines if line.startswith("report|")]
        assert all(re.match(r"report\|0\.7\|\d+\.\d{6}\|[a-z-]+\|[a-z-]+\|[0-9a-f]{16}(\||$)", e) for e in events), (
            events
        )
        return [re.sub(r"^report\|0\.7\|[\d.]+\|([a-z-]+\|[a-z-]+)\|[0-9a-f]{16}", r"\1", event) for event in events]

    def until(self, name: str, event: str, count: int = 1) -> list[str]:
        """Wait until a processor has read so many events that begin so."""
        found = wait_for(lambda: sum(e.startswith(event) for e in self.heard(name)) >= count, 15)
        assert found, f"{self.heard(name)}\n{self.server.log()}"
        return self.heard(name)

    def handshake(self, name: str) -> list[str]:
        lines = (self.out / name).read_text().splitlines()
        return [line for line in lines if line.startswith("config|subsystem|")]


OUTGOING = [
    "protocol-server|220 sink.example ESMTP",
    "link-greeting|sink.example",
    "protocol-client|EHLO mx.example.org",
    "link-identify|EHLO|mx.example.org",
    "protocol-client|MAIL FROM:<s@client.example.net>",
    "tx-mail|MSGID|ok|s@client.example.net",
    "protocol-client|RCPT TO:<alice@far.example>",
    "tx-rcpt|MSGID|ok|alice@far.example",
    "protocol-client|DATA",
    "tx-data|MSGID|ok",
    "protocol-client|.",
    "tx-commit|MSGID|SIZE",
    "tx-reset|MSGID",
    "protocol-client|QUIT",
    "link-disconnect",
]


def outgoing(events: list[str]) -> list[str]:
    """Those of a session that are the same for every peer."""
    ours = [e.removeprefix("smtp-out|") for e in events if e.startswith("smtp-out|")]
    ours = [re.sub(r"^(tx-commit\|[0-9a-f]{8})\|\d+", r"\1|SIZE", event) for event in ours]
    ours = [re.sub(r"^(tx-[a-z]+)\|[0-9a-f]{8}", r"\1|MSGID", event) for event in ours]
    return [event for event in ours if event in OUTGOING]


RELAY = """\
{declared}
mta limit session-keepalive 0 conn-delay-route 0 conn-delay-relay 0
listen on 127.0.0.1 port {{port}} hostname mail.example.org
action "out" relay host smtp://127.0.0.1:{{sink}} {filter}
action "unheard" relay host smtp://127.0.0.1:{{sink}}
match from any for domain "unheard.example" action "unheard"
match from any for any action "out"
"""


@pytest.mark.parametrize(
    ("declared", "filter", "elsewhere"),
    [
        ('filter "f" proc-exec "{loop} {out}/log smtp-out"', 'filter "f"', False),
        ('proc "p" "{loop} {out}/log smtp-out"\nfilter "f" proc "p"', 'filter {{ "f" }}', False),
        ('proc "p" "{loop} {out}/log"\nreport smtp-out on "p"', "", True),
        ('proc "p" "{loop} {out}/log"\nreport smtp on "p"', "", True),
    ],
    ids=["filter", "proc", "report smtp-out", "report smtp"],
)
def test_outgoing_session_is_told_to_who_listens(
    folder: Path, wiring: Wiring, declared: str, filter: str, elsewhere: bool
) -> None:
    config = RELAY.format(declared=declared, filter=filter)
    with sink() as port:
        listening = Listening(folder, wiring, config, sink=port)
        with listening.server:
            listening.send("alice@far.example")
            events = listening.until("log", "smtp-out|link-disconnect")
            assert outgoing(events) == OUTGOING
            listening.send("alice@unheard.example")
            assert wait_for(lambda: "messages=1" in listening.server.log().rpartition("unheard.example")[2], 15)
            if elsewhere:
                listening.until("log", "smtp-out|link-disconnect", 2)
            else:
                assert listening.heard("log") == events


MDA = """\
proc "p" "{loop} {out}/log"
report mda on "p"
proc "q" "{loop} {out}/other smtp-in"
report smtp-in on "q"
listen on 127.0.0.1 port {port} hostname mail.example.org
action "maildir" maildir
action "fails" mda "echo no luck; exit 1"
match from any for rcpt-to "alice@example.org" action "maildir"
match from any for rcpt-to "bob@example.org" action "fails"
"""


def test_outcomes_of_local_deliveries_are_told(folder: Path, wiring: Wiring) -> None:
    listening = Listening(folder, wiring, MDA)
    with listening.server as server:
        listening.send("alice@example.org", "bob@example.org")
        events = listening.until("log", "mda|delivery", 2)
        told = {event.split("|")[6]: event for event in events}
        assert re.fullmatch(
            r"mda\|delivery\|[0-9a-f]{8}\|[0-9a-f]{16}\|ok\|maildir\|alice\|\d+\|Delivered", told["alice"]
        )
        assert re.fullmatch(
            r"mda\|delivery\|[0-9a-f]{8}\|[0-9a-f]{16}\|permfail\|command\|bob\|\d+\|.*no luck.*", told["bob"]
        )
        evpid = told["alice"].split("|")[3]
        lines = (listening.out / "log").read_text()
        session = re.search(rf"\|mda\|delivery\|([0-9a-f]{{16}})\|[0-9a-f]{{8}}\|{evpid}", lines)
        assert session and f"{session[1]} mda delivery evpid={evpid}" in server.log()
        assert listening.handshake("log") == ["config|subsystem|mda"]
        assert "config|subsystem|mda" not in listening.handshake("other")
        others = listening.until("other", "smtp-in|tx-commit")
        assert all(event.startswith("smtp-in|") for event in others)
