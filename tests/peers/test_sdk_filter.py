"""Filters written on the SDK run unchanged under the real OpenSMTPD: Debian's, which speaks protocol 0.6."""

import smtplib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pillarbox
from bench.servers import LOCAL, PORT, OpenSMTPD
from tests.peers.programs import opensmtpd
from tests.system.server import wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

PROGRAM = """\
import asyncio, logging
from pillarbox.sdk.filter import Filter, disconnect, junk, reject, report, rewrite

filter = Filter()


@filter.on.connect
def connect(session, address):
    return report(f"connected from {address}")  # a decision that 6.8 would end for


@filter.on.mail_from
async def mail_from(session, address):
    await asyncio.sleep(0.01)
    answers = {"no@example.net": reject("550 5.7.1 Not | you"), "old@example.net": rewrite("new@example.net"),
               "spam@example.net": junk(), "bye@example.net": disconnect("421 4.3.2 Bye")}
    return answers.get(address)


@filter.on.rcpt_to
def rcpt_to(session, address):
    if address.startswith("bug"):
        raise ValueError("a bug")


@filter.on.data_line
def data_line(session, line):
    if line.startswith("X-Gone:"):
        return ()
    return [line.replace("fox", "dog"), ".dotted"] if line == "the fox" else line


@filter.on.headers
def headers(session, headers):
    seen = [session.address, session.helo, session.sender, *session.rcpts, session.msgid]
    headers.add("X-Seen", " ".join(seen), first=True)
    headers.replace("Subject", "Grüße")


@filter.on.message
def message(session, message):
    if b"virus" in message.body:
        return reject("554 5.7.1 A virus")


@filter.on.tx_mail
def told(session, event):
    logging.info("told: %s %s %s", event.result, event.address, session.fcrdns)


@filter.on.tx_commit
def committed(session, event):
    logging.info("committed: %s %d", event.msgid, event.size)


filter.run()
"""


class Filtered(OpenSMTPD):
    """The real server with that program as its filter."""

    def setup(self) -> None:
        super().setup()
        program = self.folder / "filter.py"
        program.write_text(PROGRAM)
        source = Path(pillarbox.__file__).parent.parent
        self.conf.write_text(
            f'filter "sdk" proc-exec "/usr/bin/env PYTHONPATH={source} {sys.executable} {program}"\n'
            f'listen on 127.0.0.1 port {PORT} hostname mx.bench.test filter "sdk"\n'
            f'action "local" maildir "{self.maildir}"\nmatch from any for domain "bench.test" action "local"\n'
        )

    def messages(self, count: int) -> list[bytes]:
        """What was delivered, as soon as it is so many."""
        assert wait_for(lambda: self.delivered() == count, 30), self.log()
        return [file.read_bytes() for file in (self.maildir / "new").iterdir()]


@pytest.fixture
def server(folder: Path) -> Iterator[Filtered]:
    """It runs, and goes on running until the end of the test."""
    opensmtpd()
    server = Filtered(folder / "peer", deliver=True)
    server.start()
    try:
        yield server
        assert server.process is not None and server.process.poll() is None, server.log()
    finally:
        server.stop()


TEXT = b"Subject: hello\r\nX-Gone: x\r\n\r\nthe fox\r\n..\r\n\xff\xfe caf\xc3\xa9\r\nlast\r\n"


def test_a_message_passes_through_every_kind_of_handler(server: Filtered) -> None:
    with smtplib.SMTP("127.0.0.1", PORT, "client.example", timeout=20) as client:
        client.sendmail("old@example.net", [LOCAL], TEXT)
    (message,) = server.messages(1)
    head, _, body = message.partition(b"\n\n")
    assert body == b"the dog\n.dotted\n..\n\xff\xfe caf\xc3\xa9\nlast\n"
    assert b"\nX-Gone" not in head and b"\nSubject: =?utf-8?" in head
    # The sender is the rewritten one, as events have it; in 6.8 they have the old one.
    (seen,) = [line for line in head.split(b"\n") if line.startswith(b"X-Seen: ")]
    assert seen.split()[1:3] == [b"127.0.0.1", b"client.example"] and seen.split()[4] == LOCAL.encode()
    assert wait_for(lambda: "committed: " in server.log(), 10), server.log()
    assert "told: ok " in server.log()


def test_many_sessions_at_once_get_each_its_own(server: Filtered) -> None:
    def send(number: int) -> None:
        with smtplib.SMTP("127.0.0.1", PORT, f"client{number}.example", timeout=20) as client:
            for _ in range(5):
                client.sendmail(f"s{number}@example.net", [LOCAL], TEXT + b"%d\r\n" % number * 200)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    for message in server.messages(40):
        head, _, body = message.partition(b"\n\n")
        number = body.rpartition(b"\n")[0].rpartition(b"\n")[2]
        assert body == b"the dog\n.dotted\n..\n\xff\xfe caf\xc3\xa9\nlast\n" + number + b"\n" + (number + b"\n") * 199
        assert b" client%s.example s%s@example.net " % (number, number) in head


def test_every_decision_is_taken(server: Filtered) -> None:
    with smtplib.SMTP("127.0.0.1", PORT, "client.example", timeout=20) as client:
        client.ehlo()
        assert client.mail("no@example.net") == (550, b"5.7.1 Not | you")
        assert client.mail("a@example.net")[0] == 250
        assert client.rcpt(f"bug-{LOCAL}") == (451, b"4.3.0 Temporary failure in a filter, try again later")
        assert client.rcpt(LOCAL)[0] == 250
        assert client.data(b"Subject: x\r\n\r\nvirus\r\n") == (554, b"5.7.1 A virus")
        client.sendmail("spam@example.net", [LOCAL], TEXT)
        assert client.mail("bye@example.net") == (421, b"4.3.2 Bye")
    (message,) = server.messages(1)
    assert b"X-Spam: Yes\n" in message
    assert "ValueError: a bug" in server.log()
