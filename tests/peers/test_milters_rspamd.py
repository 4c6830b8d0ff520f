"""Rspamd as a milter, behind `filter-milter`: scores, refuses, marks and signs as it does for other servers."""

import os
import smtplib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.backends.servers import RedisServer, running
from tests.peers.dkimkeys import verified
from tests.peers.rspamd import ADD_HEADER, REJECT, REWRITE_SUBJECT, Rspamd, scanned
from tests.system.nameserver import MISSING, name_server
from tests.system.server import Server, Wiring, free_port, wait_for

pytestmark = [
    pytest.mark.usefixtures("machine", "homes"),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("rspamd"),  # it is slow to start
]

PROXY = """\
enabled = true;
milter = yes;
bind_socket = "127.0.0.1:{port}";
timeout = 20s;
upstream "local" {{ default = yes; self_scan = yes; }}
"""
HEADERS = """\
use = ["x-spamd-result"];
local_headers = ["x-spamd-result"];
"""


@pytest.fixture(scope="module")
def milter(place: Path) -> Iterator[tuple[Rspamd, str]]:
    """One for all tests, and the address of its milter."""
    redis = RedisServer(place / "redis")
    with running(redis):
        scanner, port = Rspamd(place / "rspamd", redis.port), free_port()
        (place / "rspamd/local.d/worker-proxy.inc").write_text(PROXY.format(port=port))
        (place / "rspamd/local.d/milter_headers.conf").write_text(HEADERS)
        with name_server(place / "dns", []), running(scanner):
            yield scanner, f"inet:{port}@127.0.0.1"


def filtered(folder: Path, wiring: Wiring, address: str) -> AbstractContextManager[tuple[Server, int]]:
    """A server that asks the milter about everything, and its port."""
    return scanned(folder, wiring, f"filter-milter {address}")


def message(body: str, sender: str = "sender@client.example.net") -> EmailMessage:
    """Mail that has everything that it should."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, "alice@example.org", "A test"
    made["Date"], made["Message-ID"] = "Thu, 26 Nov 2026 07:00:00 +0000", "<test@client.example.net>"
    made.set_content(f"{body}\n.\nThe last line\n")
    return made


def delivered(*folder: str) -> list[bytes]:
    """What is in a Maildir, as it went over the wire."""
    new = Path("/home/alice/Maildir", *folder, "new")
    return [file.read_bytes().replace(b"\n", b"\r\n") for file in new.iterdir()] if new.exists() else []


def test_what_it_finds_is_done(folder: Path, wiring: Wiring, milter: tuple[Rspamd, str]) -> None:
    rspamd, address = milter
    with filtered(folder, wiring, address) as (server, port):
        with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
            with pytest.raises(smtplib.SMTPDataError) as refused:
                client.send_message(message(REJECT))
            assert refused.value.smtp_code == 554 and "Gtube pattern" in str(refused.value.smtp_error)
            for body in (ADD_HEADER, REWRITE_SUBJECT, "Hello"):
                client.send_message(message(body))
            client.send_message(message("Signed", sender="alice@example.org"))
        assert wait_for(lambda: len(delivered()) + len(delivered(".Junk")) == 4, 30), server.log()
        marked = [each for each in delivered() + delivered(".Junk") if ADD_HEADER.encode() in each]
        assert b"\r\nX-Spam: Yes\r\n" in marked[0]
        (rewritten,) = [each for each in delivered() + delivered(".Junk") if REWRITE_SUBJECT.encode() in each]
        assert b"\r\nSubject: *** SPAM *** A test\r\n" in rewritten and b"Subject: A test" not in rewritten
        (plain,) = [each for each in delivered() if b"Hello" in each]
        assert b"X-Spam:" not in plain and b"\r\nX-Spamd-Result: default: False" in plain
        (signed,) = [each for each in delivered() if b"Signed" in each]
        assert verified(signed, rspamd.key, "dkim")
