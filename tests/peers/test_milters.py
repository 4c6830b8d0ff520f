"""OpenDKIM behind `filter-milter`: under us in both wirings, and under the real OpenSMTPD, Debian's."""

import contextlib
import signal
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.servers import LOCAL, PORT, OpenSMTPD
from tests.milter.opendkim import OpenDKIM
from tests.milter.scripted import CONTINUE, REJECT, ScriptedMilter, body, numbered, packet
from tests.peers.programs import opensmtpd
from tests.sdk.child import installed
from tests.system.server import Server, Wiring, free_port, kill, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

HEADER = (
    b"From: Sender <s@example.org>\r\n"
    b"To: alice@example.org,\r\n\tbob@example.org\r\n"
    b"Date: Thu, 26 Nov 2026 07:00:00 +0000\r\n"
    b"Message-ID: <test@example.org>\r\n"
    b"Subject:   folded\r\n   and   spaced \r\n\r\n"
)
BODIES = [
    b"First line\r\n\r\nLast line\r\n",
    b"",
    b".\r\n..\r\n.x\r\nx.\r\n",
    b"  leading\r\ntrailing \t \r\n\r\n\r\n\r\n",
    "Grüße, 日本\r\n".encode(),
    b"x" * 990 + b"\r\n" + b"line\r\n" * 20_000,
]


@pytest.fixture
def opendkim(folder: Path) -> Iterator[OpenDKIM]:
    """It runs, and signs what this machine sends."""
    place = folder / "opendkim"
    place.mkdir(mode=0o755)
    with OpenDKIM(place, hosts="127.0.0.1") as made:
        yield made


@contextlib.contextmanager
def filtering(folder: Path, wiring: Wiring, address: str, options: str = "") -> Iterator[tuple[Server, int]]:
    """A server whose mail goes by a milter, and its port."""
    port = free_port()
    config = (
        f'filter "milter" proc-exec "filter-milter {options} {address}"\n'
        f'listen on 127.0.0.1 port {port} hostname mail.example.org filter "milter"\n'
        'listen on socket filter "milter"\n'
        'action "a" maildir\nmatch from any for any action "a"\n'
    )
    with Server(folder / "server", config, wiring) as server:
        yield server, port


def send(port: int, body: bytes, *rcpts: str) -> None:
    """Send a message; raises what smtplib does when it is refused."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        code, text = client.ehlo("client.example.net")
        if code != 250:
            raise smtplib.SMTPHeloError(code, text)
        client.sendmail("s@example.org", rcpts or ["alice@example.org"], HEADER + body)


def delivered(user: str = "alice") -> list[bytes]:
    """What is in a Maildir, as it went over the wire."""
    new = Path("/home", user, "Maildir/new")
    return [file.read_bytes().replace(b"\n", b"\r\n") for file in new.iterdir()] if new.exists() else []


def arrives(server: Server, count: int, user: str = "alice") -> list[bytes]:
    """That many messages, as soon as they are there."""
    assert wait_for(lambda: len(delivered(user)) == count, 30), server.log()
    return delivered(user)


def test_signatures_hold_whatever_is_in_the_body(folder: Path, wiring: Wiring, opendkim: OpenDKIM) -> None:
    with filtering(folder, wiring, opendkim.address) as (server, port):
        for body in BODIES:
            send(port, body, "alice@example.org", "bob@example.org")
        found = arrives(server, len(BODIES)) + arrives(server, len(BODIES), "bob")
    assert all(opendkim.signed(message) for message in found)
    assert not any(opendkim.signed(message.replace(b"Sender", b"Sendex")) for message in found)


def test_many_messages_of_a_session_are_signed_each_for_itself(
    folder: Path, wiring: Wiring, opendkim: OpenDKIM
) -> None:
    with filtering(folder, wiring, opendkim.address) as (server, port):
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            for number in range(30):
                client.sendmail("s@example.org", ["alice@example.org"], HEADER + b"%d\r\n" % number)
        found = arrives(server, 30)
    assert all(opendkim.signed(message) for message in found)
    assert sorted(int(message.partition(b"\r\n\r\n")[2]) for message in found) == list(range(30))


def test_what_comes_by_sendmail_or_in_chunks_is_signed_too(folder: Path, wiring: Wiring, opendkim: OpenDKIM) -> None:
    with filtering(folder, wiring, opendkim.address) as (server, port):
        text = (HEADER + BODIES[0]).replace(b"\r\n", b"\n").decode()
        done = server.ctl("-f", "s@example.org", "alice@example.org", program="sendmail", stdin=text)
        assert done.exit == 0, done
        (first,) = arrives(server, 1)
        with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
            client.ehlo()
            client.mail("s@example.org")
            client.rcpt("alice@example.org")
            whole = HEADER + BODIES[2]
            client.send(b"BDAT 100\r\n" + whole[:100])
            assert client.getreply()[0] == 250
            client.send(b"BDAT %d LAST\r\n" % (len(whole) - 100) + whole[100:])
            assert client.getreply()[0] == 250
        found = arrives(server, 2)
    assert first in found and all(opendkim.signed(message) for message in found)


def test_what_a_milter_decides_is_said_and_done(folder: Path, wiring: Wiring) -> None:
    with ScriptedMilter(folder) as milter, filtering(folder, wiring, milter.address) as (server, port):
        milter.path.chmod(0o777)
        with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
            client.ehlo()
            milter.answers["M"] = packet(b"y", b"550-5.7.1 Not\r\n550 5.7.1 you")
            assert client.mail("s@example.org") == (550, b"5.7.1 Not you")
            milter.answers = {"R": lambda told: REJECT if b"eve" in told else CONTINUE}
            assert client.mail("s@example.org", ["SIZE=1000"])[0] == 250
            assert client.rcpt("eve@example.org") == (550, b"5.7.1 Command rejected")
            assert client.rcpt("alice@example.org")[0] == 250
            milter.answers["E"] = packet(b"y", b"451 4.7.1 Come back")
            assert client.data(HEADER) == (451, b"4.7.1 Come back")
            milter.answers = {"E": packet(b"q", b"why") + packet(b"h", b"X-Milter", b"yes") + CONTINUE}
            client.sendmail("s@example.org", ["alice@example.org"], HEADER + b"body\r\n")
        (message,) = arrives(server, 1)
        heard = milter.last
        assert message.startswith(b"X-Spam: Yes\r\n") or b"\r\nX-Spam: Yes\r\n" in message
        assert b"\r\nX-Milter: yes\r\n" in message and message.endswith(b"\r\n\r\nbody\r\n")
        assert heard.said("M")[1] == [b"<s@example.org>", b"SIZE=1000"]
        assert b"Received" not in [fields[0] for fields in heard.said("L")]  # ours is hidden
        assert heard.macros("E")["i"] in server.log()
        assert heard.macros("H")["j"] == "mail.example.org"
        milter.answers = {"C": packet(b"y", b"550 5.7.1 Go away")}
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            smtplib.SMTP("127.0.0.1", port, timeout=60)
        assert (refused.value.smtp_code, refused.value.smtp_error) == (554, b"5.7.1 Go away")


def test_milters_in_a_row_see_what_those_before_them_made(folder: Path, wiring: Wiring) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir(mode=0o755)
    port = free_port()
    with ScriptedMilter(folder / "one") as one, ScriptedMilter(folder / "two") as two:
        config = (
            f'filter "one" proc-exec "filter-milter {one.address}"\n'
            f'filter "two" proc-exec "filter-milter {two.address}"\n'
            'filter "both" chain { "one", "two" }\n'
            f'listen on 127.0.0.1 port {port} hostname mail.example.org filter "both"\n'
            'action "a" maildir\nmatch from any for any action "a"\n'
        )
        change, first = numbered(b"m", 1, b"Subject", b"changed"), numbered(b"i", 0, b"X-One", b"yes")
        one.answers["E"] = change + first + body(b"new\r\n") + packet(b"q", b"why") + CONTINUE
        two.answers["E"] = numbered(b"m", 1, b"X-One", b"seen") + packet(b"h", b"X-Two", b"yes") + CONTINUE
        for milter in (one, two):
            milter.path.chmod(0o777)
        with Server(folder / "server", config, wiring) as server:
            send(port, b"old\r\n")
            (message,) = arrives(server, 1)
    assert [two.last.body(), one.last.body()] == [b"new\r\n", b"old\r\n"]
    assert [b"Subject", b"changed"] in two.last.said("L") and [b"X-One", b"yes"] in two.last.said("L")
    assert b"Received" not in [fields[0] for fields in one.last.said("L") + two.last.said("L")]
    for line in (b"X-Spam: Yes", b"X-One: seen", b"Subject: changed", b"X-Two: yes"):
        assert message.count(b"\r\n" + line + b"\r\n") == 1
    assert message.endswith(b"\r\n\r\nnew\r\n")


def test_without_its_milter_mail_waits_and_with_it_again_goes_on(folder: Path, wiring: Wiring) -> None:
    with ScriptedMilter(folder) as milter, filtering(folder, wiring, milter.address) as (server, port):
        milter.path.chmod(0o777)
        milter.stop()
        with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
            client.ehlo()
            later = (451, b"4.7.1 Service unavailable, please try again later")
            assert client.mail("s@example.org") == later
            milter.start()
            milter.path.chmod(0o777)
            client.sendmail("s@example.org", ["alice@example.org"], HEADER)
            assert milter.last.said("C")[0][0] == b"localhost"
            client.mail("s@example.org")
            client.rcpt("alice@example.org")
            milter.answers["E"] = None
            assert client.data(HEADER) == later
        assert len(arrives(server, 1)) == 1
        assert "the milter fails" in server.log()


def bridges(server: Server) -> list[int]:
    """The processes of `filter-milter`."""
    found = []
    for pid in server.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            if b"filter-milter" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_bridge_that_is_started_again_knows_the_clients_that_are_there(folder: Path, wiring: Wiring) -> None:
    def goes_through() -> bool:
        with contextlib.suppress(smtplib.SMTPException):
            send(port, b"body\r\n")
            return True
        return False

    with ScriptedMilter(folder) as milter, filtering(folder, wiring, milter.address) as (server, port):
        milter.path.chmod(0o777)
        with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
            client.ehlo()
            client.sendmail("s@example.org", ["alice@example.org"], HEADER)
            for pid in bridges(server):
                kill(pid, signal.SIGKILL)
            assert wait_for(goes_through, 30), server.log()
            client.sendmail("s@example.org", ["alice@example.org"], HEADER)
        first, last = milter.connections[0], milter.last
        assert (last.said("C"), last.said("H")) == (first.said("C"), first.said("H"))
        assert len(arrives(server, 3)) == 3


@pytest.mark.parametrize("victim", ["milter", "bridge"])
def test_whatever_is_killed_under_load_all_that_is_accepted_is_signed_and_delivered(
    folder: Path, wiring: Wiring, opendkim: OpenDKIM, victim: str
) -> None:
    accepted: list[int] = []
    refused: set[int] = set()

    def work(port: int, name: int) -> None:
        """Comes back with each message until it is accepted, as a server that relays does."""
        for number in range(25):
            while True:
                try:
                    send(port, b"%d of %d\r\n" % (number, name))
                    break
                except smtplib.SMTPResponseException as error:
                    refused.add(error.smtp_code)
                except smtplib.SMTPRecipientsRefused as error:
                    refused.update(code for code, _ in error.recipients.values())
                time.sleep(0.1)
            accepted.append(number)

    with filtering(folder, wiring, opendkim.address) as (server, port):
        threads = [threading.Thread(target=work, args=(port, name), daemon=True) for name in range(6)]
        for thread in threads:
            thread.start()
        for part in (20, 60):
            assert wait_for(lambda: len(accepted) >= part, 60), server.log()  # noqa: B023 - asked at once
            if victim == "bridge":
                for pid in bridges(server):
                    kill(pid, signal.SIGKILL)
            else:
                opendkim.kill()
                refused.clear()
                assert wait_for(lambda: refused, 30), server.log()
                opendkim.start()
        for thread in threads:
            thread.join(60)
        assert len(accepted) == 150 and refused <= {451, 421}
        found = arrives(server, 150)
        assert len({message.rpartition(b"\r\n\r\n")[2] for message in found}) == 150
        assert all(opendkim.signed(message) for message in found)


class Signed(OpenSMTPD):
    """The real server with the bridge as its filter; `address`: of the milter."""

    address: Callable[[], str]

    def setup(self) -> None:
        super().setup()
        self.conf.write_text(
            f'filter "dkim" proc-exec "{installed("filter-milter")} {self.address()}"\n'
            f'listen on 127.0.0.1 port {PORT} hostname mx.bench.test filter "dkim"\n'
            f'action "local" maildir "{self.maildir}"\nmatch from any for domain "bench.test" action "local"\n'
        )


def test_mail_is_signed_under_opensmtpd_too(folder: Path, opendkim: OpenDKIM) -> None:
    opensmtpd()
    server = Signed(folder / "peer", deliver=True)
    server.address = lambda: opendkim.address
    server.start()
    try:
        for body in BODIES:
            send(PORT, body, LOCAL)
        assert wait_for(lambda: server.delivered() == len(BODIES), 30), server.log()
        assert server.process is not None and server.process.poll() is None, server.log()
        found = [file.read_bytes().replace(b"\n", b"\r\n") for file in (server.maildir / "new").iterdir()]
        assert all(opendkim.signed(message) for message in found)
    finally:
        server.stop()
