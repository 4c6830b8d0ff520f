"""Debian's opensmtpd-filter-rspamd, unmodified, with Rspamd and Redis behind it."""

import concurrent.futures
import os
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.backends.servers import RedisServer, program, running
from tests.peers.dkimkeys import verified
from tests.peers.programs import debian_filter
from tests.peers.rspamd import ADD_HEADER, REJECT, REWRITE_SUBJECT, Rspamd, scanned
from tests.system.nameserver import MISSING, name_server
from tests.system.server import Server, Wiring, wait_for

pytestmark = [
    pytest.mark.usefixtures("machine", "homes"),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("rspamd"),  # it is slow to start
]


@pytest.fixture(scope="module")
def redis(place: Path) -> Iterator[RedisServer]:
    """What the scanner remembers in."""
    server = RedisServer(place / "redis")
    with running(server):
        yield server


@pytest.fixture(scope="module")
def rspamd(place: Path, redis: RedisServer) -> Iterator[Rspamd]:
    """One scanner for all tests: it takes some seconds to start."""
    scanner = Rspamd(place / "rspamd", redis.port)
    with name_server(place / "dns", []), running(scanner):
        yield scanner


def filtered(folder: Path, wiring: Wiring, rspamd: Rspamd) -> AbstractContextManager[tuple[Server, int]]:
    """A server that asks the scanner about everything, and its port."""
    return scanned(folder, wiring, f"{debian_filter('rspamd')} -url {rspamd.url}")


def message(body: str, rcpt: str = "alice@example.org") -> EmailMessage:
    """Mail that has everything that it should."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Sender <s@client.example.net>", rcpt, "A test"
    made["Date"], made["Message-ID"] = "Thu, 26 Nov 2026 07:00:00 +0000", "<test@client.example.net>"
    made.set_content(f"{body}\n.\nThe last line\n")
    return made


def _text(refused: smtplib.SMTPResponseException) -> str:
    error = refused.smtp_error
    return error.decode() if isinstance(error, bytes) else error


def send(port: int, *messages: EmailMessage) -> list[str]:
    """What the server said to each after its last line, over one connection."""
    said = []
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        for one in messages:
            try:
                client.send_message(one)
                said.append("250")
            except smtplib.SMTPDataError as refused:
                said.append(f"{refused.smtp_code} {_text(refused)}")
    return said


def mail_in(folder: str) -> list[str]:
    """The messages in a folder of a Maildir."""
    new = Path(folder, "new")
    return [file.read_text() for file in sorted(new.iterdir())] if new.exists() else []


def header(text: str) -> list[str]:
    return text.partition("\n\n")[0].splitlines()


def test_clean_mail_arrives_whole_and_a_forged_verdict_is_taken_out(
    folder: Path, wiring: Wiring, rspamd: Rspamd
) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        forged = message("Good news")
        forged["X-Spam"] = "yes"
        assert send(port, forged) == ["250"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir"), 20), server.log()
        (text,) = mail_in("/home/alice/Maildir")
        assert text.endswith("\n\nGood news\n.\nThe last line\n")
        assert "Subject: A test" in header(text)
        assert "X-Spam" not in text


def test_scanner_signs_what_our_users_send(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        ours = message("Good news")
        ours.replace_header("From", "Our user <s@example.org>")
        assert send(port, ours) == ["250"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir"), 20), server.log()
        (text,) = mail_in("/home/alice/Maildir")
        assert verified(text.replace("\n", "\r\n").encode(), rspamd.key, "dkim")


def test_what_the_scanner_rejects_is_refused_in_its_words(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        assert send(port, message(REJECT), message("Good news"), message(REJECT)) == [
            "550 Gtube pattern", "250", "550 Gtube pattern",
        ]  # fmt: skip
        assert wait_for(lambda: mail_in("/home/alice/Maildir") and server.wait_empty(1), 20), server.log()
        assert len(mail_in("/home/alice/Maildir")) == 1


def test_junk_is_marked_and_goes_to_the_junk_folder(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        assert send(port, message(ADD_HEADER)) == ["250"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir/.Junk"), 20), server.log()
        (text,) = mail_in("/home/alice/Maildir/.Junk")
        assert "X-Spam: yes" in header(text)
        assert any(line.startswith("X-Spam-Score: 6 / 15") for line in header(text))
        assert "Subject: A test" in header(text)


def test_subject_is_rewritten_where_the_scanner_says_so(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        assert send(port, message(REWRITE_SUBJECT)) == ["250"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir"), 20), server.log()
        (text,) = mail_in("/home/alice/Maildir")
        assert [line for line in header(text) if line.startswith("Subject:")] == ["Subject: *** SPAM *** A test"]


def test_many_sessions_at_once_get_the_verdicts_of_their_own_mail(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    bodies = [REJECT if number % 3 == 0 else f"Good news {number}" for number in range(30)]
    with filtered(folder, wiring, rspamd) as (server, port):
        with concurrent.futures.ThreadPoolExecutor(15) as pool:
            said = list(pool.map(lambda body: send(port, message(body))[0], bodies))
        assert said == ["550 Gtube pattern" if body is REJECT else "250" for body in bodies]
        assert wait_for(lambda: len(mail_in("/home/alice/Maildir")) == 20, 20), server.log()
        delivered = {text.partition("\n\n")[2].partition("\n")[0] for text in mail_in("/home/alice/Maildir")}
        assert delivered == {body for body in bodies if body is not REJECT}


def test_large_message_arrives_as_it_was_sent(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    body = "".join(f".{number:07d} {'x' * 60}\n" for number in range(30_000))
    with filtered(folder, wiring, rspamd) as (server, port):
        assert send(port, message(body)) == ["250"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir"), 30), server.log()
        (text,) = mail_in("/home/alice/Maildir")
        assert text.partition("\n\n")[2] == f"{body}\n.\nThe last line\n"


def test_while_the_scanner_is_gone_clients_are_told_to_come_back(folder: Path, wiring: Wiring, rspamd: Rspamd) -> None:
    with filtered(folder, wiring, rspamd) as (server, port):
        rspamd.stop()
        try:
            assert send(port, message("Good news")) == ["421 server internal error"]  # the filter's own words
        finally:
            rspamd.start()
        assert send(port, message("Good news"), message(REJECT)) == ["250", "550 Gtube pattern"]
        assert wait_for(lambda: mail_in("/home/alice/Maildir") and server.wait_empty(1), 20), server.log()
        assert len(mail_in("/home/alice/Maildir")) == 1


def test_scanner_remembers_in_redis(folder: Path, wiring: Wiring, rspamd: Rspamd, redis: RedisServer) -> None:
    with filtered(folder, wiring, rspamd) as (_, port):
        assert send(port, message("Good news")) == ["250"]
        client = [program("redis-cli"), "-p", str(redis.port), "--raw", "keys", "rs_history*"]
        assert wait_for(lambda: subprocess.check_output(client, text=True, timeout=20).strip(), 10)
