"""Debian's opensmtpd-filter-senderscore, unmodified: verdicts about the client's address, from a real name server."""

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.programs import debian_filter
from tests.system.nameserver import MISSING, name_server
from tests.system.server import Server, Wiring, free_port, wait_for

pytestmark = [pytest.mark.usefixtures("machine", "homes"), pytest.mark.skipif(bool(MISSING), reason=MISSING)]

GOOD, DOUBTFUL, BAD, UNKNOWN = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
SCORES = {GOOD: 95, DOUBTFUL: 40, BAD: 10}
MESSAGE = "From: s@client.example.net\r\nSubject: A test\r\n\r\nHello\r\n"


@pytest.fixture
def names(folder: Path) -> Iterator[None]:
    """The list of scores."""
    zone = [f"address=/{'.'.join(reversed(a.split('.')))}.score.senderscore.com/127.0.4.{s}" for a, s in SCORES.items()]
    with name_server(folder / "dns", zone):
        yield


def serve(folder: Path, wiring: Wiring, port: int, options: str) -> Server:
    config = (
        f'filter "score" proc-exec "{debian_filter("senderscore")} {options}"\n'
        f'listen on 127.0.0.1 port {port} hostname mail.example.org filter "score"\n'
        'action "a" maildir junk\nmatch from any for domain "example.org" action "a"\n'
    )
    return Server(folder / "server", config, wiring)


def _text(refused: smtplib.SMTPResponseException) -> str:
    error = refused.smtp_error
    return error.decode() if isinstance(error, bytes) else error


def deliver(port: int, source: str) -> str:
    """What became of a message from an address."""
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=60, source_address=(source, 0)) as client:
            client.sendmail("s@client.example.net", ["alice@example.org"], MESSAGE)
    except smtplib.SMTPResponseException as refused:
        return f"{refused.smtp_code} {_text(refused)}"
    return "250"


def headers(folder: str) -> list[str]:
    new = Path("/home/alice/Maildir", folder, "new")
    return [file.read_text().partition("\n\n")[0] for file in sorted(new.iterdir())] if new.exists() else []


@pytest.mark.usefixtures("names")
def test_scores_decide_who_is_refused_whose_mail_is_junk_and_what_the_header_says(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with serve(folder, wiring, port, "-scoreHeader -blockBelow 20 -junkBelow 50") as server:
        assert deliver(port, BAD) == "550 your IP reputation is too low for this MX"
        assert [deliver(port, source) for source in (GOOD, DOUBTFUL, UNKNOWN)] == ["250"] * 3
        assert wait_for(lambda: len(headers("")) == 2 and headers(".Junk"), 20), server.log()
        good, unknown = sorted(headers(""), key=lambda text: "X-SenderScore" not in text)
        assert "X-SenderScore: 95" in good.splitlines()
        assert "X-SenderScore" not in unknown
        assert "X-SenderScore: 40" in headers(".Junk")[0].splitlines()


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    "phase", ["rcpt-to", *(pytest.param(p, marks=pytest.mark.long) for p in ("ehlo", "mail-from", "data"))]
)
def test_bad_addresses_are_refused_in_the_phase_that_was_chosen(folder: Path, wiring: Wiring, phase: str) -> None:
    port = free_port()
    with serve(folder, wiring, port, f"-blockBelow 20 -blockPhase {phase}"):
        with smtplib.SMTP("127.0.0.1", port, timeout=60, source_address=(BAD, 0)) as client:
            said = [client.ehlo("client.example.net")]
            for command in ("MAIL FROM:<s@client.example.net>", "RCPT TO:<alice@example.org>", "DATA"):
                if said[-1][0] != 550:
                    said.append(client.docmd(command))
            phases = ["ehlo", "mail-from", "rcpt-to", "data"]
            assert [code for code, _ in said] == [250] * phases.index(phase) + [550]
            assert said[-1][1] == b"your IP reputation is too low for this MX"
            client.close()
        assert deliver(port, GOOD) == "250"
