"""A filter on the SDK runs unchanged under us and under the real OpenSMTPD: Debian's, which speaks protocol 0.6."""

import smtplib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

import pillarbox
from bench.servers import LOCAL, PORT, OpenSMTPD
from tests.peers.programs import opensmtpd
from tests.system.server import Server, Wiring, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

MAIL = Path("/home/alice/Maildir/new")
TEXT = b"Subject: hello\r\nX-Gone: x\r\n\r\nthe fox\r\n..\r\n\xff\xfe caf\xc3\xa9\r\nlast\r\n"
BODY = b"the dog\n.dotted\n..\n\xff\xfe caf\xc3\xa9\nlast\n"


class Running(Protocol):
    """Either server."""

    def log(self) -> str: ...


def configuration(folder: Path) -> str:
    """One that both servers read, with the filter on its listener."""
    program = folder / "filter.py"
    program.write_text(Path(__file__).with_name("sdk_filter.py").read_text())
    source = Path(pillarbox.__file__).parent.parent
    return (
        f'filter "sdk" proc-exec "/usr/bin/env PYTHONPATH={source} {sys.executable} {program}"\n'
        f'listen on 127.0.0.1 port {PORT} hostname mx.bench.test filter "sdk"\n'
        'action "local" maildir\nmatch from any for domain "bench.test" action "local"\n'
    )


class Debians(OpenSMTPD):
    """The real server with the filter."""

    def setup(self) -> None:
        super().setup()
        self.conf.write_text(configuration(self.folder))


@pytest.fixture(params=["OpenSMTPD", *Wiring], ids=str)
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    """It runs, and goes on running until the end of the test, whatever the filter does."""
    if request.param != "OpenSMTPD":
        with Server(folder / "server", configuration(folder), request.param) as ours:
            yield ours
            assert ours.process is not None and ours.process.poll() is None, ours.log()
        return
    opensmtpd()
    theirs = Debians(folder / "peer", deliver=True)
    theirs.start()
    try:
        yield theirs
        assert theirs.process is not None and theirs.process.poll() is None, theirs.log()
    finally:
        theirs.stop()


def delivered(server: Running, count: int) -> list[bytes]:
    """The messages, as soon as there are so many."""
    assert wait_for(lambda: MAIL.exists() and len(list(MAIL.iterdir())) == count, 30), server.log()
    return [file.read_bytes() for file in MAIL.iterdir()]


def connected(name: str = "client.example") -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", PORT, name, timeout=20)


def test_a_message_passes_through_every_kind_of_handler(server: Running) -> None:
    with connected() as client:
        client.sendmail("old@example.net", [LOCAL], TEXT)
    (message,) = delivered(server, 1)
    head, _, body = message.partition(b"\n\n")
    assert body == BODY
    assert b"\nX-Gone" not in head and b"\nSubject: =?utf-8?" in head
    (seen,) = [line.split() for line in head.split(b"\n") if line.startswith(b"X-Seen: ")]
    assert seen[1:3] == [b"127.0.0.1", b"client.example"] and seen[4] == LOCAL.encode()
    # COMPAT: the reference tells filters of the sender that was rewritten, we of the one it was rewritten to.
    assert seen[3] == (b"new@example.net" if isinstance(server, Server) else b"old@example.net")
    assert wait_for(lambda: "committed: " in server.log(), 10), server.log()
    assert "told: ok " in server.log()


def test_every_decision_is_taken(server: Running) -> None:
    with connected() as client:
        client.ehlo()
        assert client.mail("no@example.net") == (550, b"5.7.1 Not | you")
        assert client.mail("a@example.net")[0] == 250
        assert client.rcpt(f"bug-{LOCAL}") == (451, b"4.3.0 Temporary failure in a filter, try again later")
        assert client.rcpt(LOCAL)[0] == 250
        assert client.data(b"Subject: x\r\n\r\nvirus\r\n") == (554, b"5.7.1 A virus")
        client.sendmail("spam@example.net", [LOCAL], TEXT)
        assert client.mail("bye@example.net") == (421, b"4.3.2 Bye")
    (message,) = delivered(server, 1)
    assert b"X-Spam: Yes\n" in message
    assert "ValueError: a bug" in server.log()


def test_a_report_is_told_to_who_listens_or_stands_in_the_log(server: Running) -> None:
    said = "reported: proc a sender" if isinstance(server, Server) else ": a sender"
    with connected() as client:
        client.ehlo()
        client.mail("a@example.net")
        assert wait_for(lambda: said in server.log(), 10), server.log()


def test_many_sessions_at_once_get_each_its_own(server: Running) -> None:
    def send(number: int) -> None:
        with connected(f"client{number}.example") as client:
            for _ in range(5):
                client.sendmail(f"s{number}@example.net", [LOCAL], TEXT + b"%d\r\n" % number * 200)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    for message in delivered(server, 40):
        head, _, body = message.partition(b"\n\n")
        number = body.rpartition(b"\n")[0].rpartition(b"\n")[2]
        assert body == BODY + (number + b"\n") * 200
        assert b" client%s.example s%s@example.net " % (number, number) in head
