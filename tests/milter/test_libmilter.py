"""A milter on sendmail's libmilter, which has its own idea of the protocol, behind the bridge."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.milter.driver import PROCEED, Bridge, Client
from tests.system.server import wait_for

SYSTEM_PYTHON = "/usr/bin/python3"  # python3-milter is Debian's
MILTER = Path(__file__).resolve().parent / "libmilter_milter.py"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the milter."""
    if subprocess.run([SYSTEM_PYTHON, "-c", "import Milter"], capture_output=True, check=False).returncode:
        pytest.skip("python3-milter is not installed (tools/setup peers, as root)")
    socket = tmp_path_factory.mktemp("libmilter") / "milter.sock"
    with subprocess.Popen([SYSTEM_PYTHON, str(MILTER), str(socket)]) as process:
        assert wait_for(lambda: socket.exists() or process.poll() is not None, 20) and process.poll() is None
        yield f"unix:{socket}"
        process.kill()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A connected client."""
    with Bridge(address) as bridge:
        made = bridge.session()
        assert made.connect() == PROCEED
        yield made


def message(subject: str, *more: str) -> list[str]:
    """A message that asks for something."""
    return ["From: alice@example.org", f"Subject: {subject}", *more, "", "Hello"]


def test_it_hears_all_of_a_session_and_its_messages(client: Client) -> None:
    client.starttls()
    client.auth("alice")
    for _ in range(2):
        client.mail(parameters=" SIZE=10")
        assert client.rcpt("later@example.net") == "reject|451 4.7.1 Please try again later"
        assert client.rcpt() == PROCEED
        assert client.data() == PROCEED
        lines = client.content(message("nothing"))
        assert [line for line in lines if line.startswith("X-Seen")] == [
            "X-Seen-0: connect client.example.net 2 192.0.2.1",
            "X-Seen-1: helo client.example.net None",
            "X-Seen-2: helo client.example.net TLSv1.3",
            "X-Seen-3: mail <alice@example.org> SIZE=10 alice",
            f"X-Seen-4: rcpt <bob@example.net> {client.msgid}",
            "X-Seen-5: body 7",
        ]
        assert client.commit() == PROCEED


def test_its_refusals_are_said_and_the_session_goes_on(client: Client) -> None:
    assert client.mail("refused@example.org") == "reject|550 5.7.1 Not this one not ever"
    assert client.deliver(message("refuse")) == (message("refuse"), "reject|554 5.7.1 Virus")
    assert client.deliver(message("discard")) == (message("discard"), "reject|550 5.7.1 Message refused")
    assert client.deliver(message("nothing"))[1] == PROCEED
    client.mail()
    client.reset()
    lines, decision = client.deliver(message("quarantine"))
    assert (lines[0], decision) == ("X-Spam: Yes", PROCEED)


def test_its_changes_are_made(client: Client) -> None:
    lines, decision = client.deliver(message("change", "X-Twice: one", "X-Twice: two"))
    assert decision == PROCEED
    seen = [line for line in lines if line.startswith("X-Seen")]
    expected = ["X-First: yes", "From: alice@example.org", "Subject: change", "X-Twice: changed", "\tand folded"]
    assert lines == [*expected, *seen, "", *["new"] * 50_000]


def test_a_body_is_sent_until_it_has_enough(client: Client) -> None:
    body = ["x" * 70] * 20_000
    lines, _ = client.deliver([*message("nothing"), *body])
    assert lines[-20_000:] == body
    assert "X-Seen-4: body 131070" in lines


@pytest.mark.parametrize("subject", ["redirect", "sender"])
def test_what_no_filter_can_do_is_refused_for_now(client: Client, subject: str) -> None:
    unable = "reject|451 4.3.5 System incorrectly configured, please try again later"
    assert client.deliver(message(subject))[1] == unable
    assert client.deliver(message("nothing"))[1] == PROCEED
