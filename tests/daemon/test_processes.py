"""Processes that are killed while mail is under way: they come back, and what was in flight is settled exactly."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.server import Server, Wiring, free_port, kill, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")
PATIENCE = 15.0  # seconds
RETRY, ERRORLINE = 10, 13  # fields of `show queue`
ROLES = ("lookup", "queue", "control", "dispatcher")


class Exchanger:
    """A next hop that answers the end of data only when it may; `subjects` are those it was given whole."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.answering = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.answering.set()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            try:
                self._talk(stream)
            except OSError:
                return

    def _talk(self, stream: object) -> None:
        def say(text: bytes) -> None:
            stream.write(text + b"\r\n")  # type: ignore[attr-defined]
            stream.flush()  # type: ignore[attr-defined]

        say(b"220 far.example")
        for line in stream:  # type: ignore[attr-defined]
            if line.upper().startswith(b"DATA"):
                say(b"354 go")
                for text in stream:  # type: ignore[attr-defined]
                    if text.startswith(b"Subject: "):
                        self.subjects.append(text[9:].decode().strip())
                    if text == b".\r\n":
                        break
                self.answering.wait(60)
            say(b"250 fine")


@pytest.fixture
def hop() -> Iterator[Exchanger]:
    it = Exchanger()
    yield it
    it.close()


class Running(Server):
    """A server of several processes that relays far.example to `hop` and delivers for local.example."""

    def __init__(self, folder: Path, hop: Exchanger) -> None:
        self.port = free_port()
        self.mail = folder / "mail"
        self.mail.mkdir()
        self.mail.chmod(0o777)
        config = f"""\
mta limit conn-delay-route 0 conn-delay-relay 0 reconn-delay-route 0
listen on 127.0.0.1 port {self.port} hostname mail.local.example
action "files" maildir "{self.mail}/Maildir"
action "slow" mda "sleep 2; cat >>{self.mail}/slow; echo end >>{self.mail}/slow"
action "out" relay host smtp://127.0.0.1:{hop.port}
match from any for domain "local.example" action "files"
match from any for domain "slow.example" action "slow"
match from any for any action "out"
"""
        super().__init__(folder, config, Wiring.MANY, dispatchers=1)

    def role(self, name: str) -> int:
        """The process of a role, 0 while there is none."""
        for pid in self.pids()[1:]:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name.encode() in words or f"pillarbox.mda.{name}".encode() in words:
                return pid
        return 0

    def kill(self, *names: str) -> None:
        """SIGKILL to these roles at once, and wait until others are in their place."""
        before = {name: self.role(name) for name in names}
        assert all(before.values()), before
        for pid in before.values():
            kill(pid, signal.SIGKILL)
        assert wait_for(lambda: all(self.role(n) not in (0, before[n]) for n in names), PATIENCE), self.log()[-3000:]

    def send(self, subject: str, rcpt: str) -> None:
        """Submit a message; a client comes again while it is put off."""
        assert wait_for(lambda: self._submit(subject, rcpt), PATIENCE, every=0.2), self.log()[-3000:]

    def _submit(self, subject: str, rcpt: str) -> bool:
        body = f"Subject: {subject}\r\n\r\nhello\r\n."
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as client, client.makefile("rwb") as stream:
                for line in ("", "EHLO client", "MAIL FROM:<alice@local.example>", f"RCPT TO:<{rcpt}>", "DATA", body):
                    if line:
                        stream.write(line.encode() + b"\r\n")
                        stream.flush()
                    while (reply := stream.readline())[3:4] == b"-":
                        pass
                    if reply[:1] not in b"23" or not reply:
                        return False
        except OSError:
            return False
        return True

    def delivered(self) -> list[str]:
        """The subjects in the Maildir."""
        files = list(self.mail.glob("Maildir/new/*"))
        lines = [line for file in files for line in file.read_text().split("\n")]
        return sorted(line[9:] for line in lines if line.startswith("Subject: "))

    def settled(self) -> bool:
        """Does queue answer, and hold nothing?"""
        result = self.ctl("show", "queue")
        return result.exit == 0 and not result.out


@contextmanager
def running(folder: Path, hop: Exchanger) -> Iterator[Running]:
    server = Running(folder, hop)
    with server:
        yield server


def until(server: Server, condition: Callable[[], object]) -> None:
    assert wait_for(condition, PATIENCE, every=0.1), server.log()[-3000:]


def test_every_role_comes_back_and_the_service_goes_on(folder: Path, hop: Exchanger) -> None:
    hop.answering.set()
    with running(folder, hop) as server:
        server.send("0", "alice@local.example")  # the delivery process is there, too
        groups = [*((name,) for name in ROLES), ("forker",), ("lookup", "queue", "dispatcher"), ROLES]
        for number, names in enumerate(groups, 1):
            if names == ("forker",):
                kill(server.role("forker"), signal.SIGKILL)
            else:
                server.kill(*names)
            server.send(f"{number}", "alice@local.example")
            server.send(f"{number}", "bob@far.example")
            # With queue and dispatcher killed at once, an outcome that only they knew would be lost, and sent again.
            until(server, server.settled)
        expected = [str(n) for n in range(len(groups) + 1)]
        assert server.delivered() == sorted(expected)
        assert sorted(hop.subjects) == sorted(expected[1:])
        for name in ROLES:
            assert f"{name}" in server.log()
        assert "killed by SIGKILL; starting it again" in server.log()


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_dispatcher_sends_while_queue_is_killed_is_sent_once(folder: Path, hop: Exchanger, when: str) -> None:
    """The next hop answers before the new queue is there, or after it knows that the attempt is under way."""
    with running(folder, hop) as server:
        server.send("once", "bob@far.example")
        until(server, lambda: hop.subjects)
        if when == "before":
            kill(server.role("queue"), signal.SIGKILL)
            hop.answering.set()
        else:
            server.kill("queue")
            until(server, lambda: "|inflight|" in server.ctl("show", "queue").out)
            hop.answering.set()
        until(server, server.settled)
        assert hop.subjects == ["once"]


def test_what_a_killed_dispatcher_was_sending_is_due_again_and_no_fault_of_the_next_hop(
    folder: Path, hop: Exchanger
) -> None:
    with running(folder, hop) as server:
        server.send("again", "bob@far.example")
        until(server, lambda: hop.subjects)
        server.kill("dispatcher")
        (row,) = server.queue()
        assert (row[RETRY], row[ERRORLINE]) == ("0", "")
        hop.answering.set()
        until(server, server.settled)
        assert hop.subjects == ["again", "again"]


def test_what_is_delivered_while_queue_or_the_forker_is_killed_is_delivered_once(folder: Path, hop: Exchanger) -> None:
    with running(folder, hop) as server:
        for number, name in enumerate(("queue", "forker"), 1):
            server.send(f"slow{number}", "alice@slow.example")
            until(server, lambda: "|inflight|" in server.ctl("show", "queue").out)
            kill(server.role(name), signal.SIGKILL)
            until(server, server.settled)
            assert (server.mail / "slow").read_text().count("end\n") == number


def test_what_was_paused_stays_paused_in_processes_that_start_again(folder: Path, hop: Exchanger) -> None:
    hop.answering.set()
    with running(folder, hop) as server:
        for what in (("pause", "mda"), ("pause", "smtp"), ("log", "verbose")):
            assert server.ctl(*what).exit == 0
        server.kill("queue", "dispatcher", "control")
        until(server, lambda: server.ctl("show", "status").exit == 0)
        status = server.ctl("show", "status").out
        assert ("MDA paused" in status, "MTA running" in status, "SMTP paused" in status) == (True, True, True), status
        assert server.ctl("resume", "smtp").exit == 0
        server.send("held", "alice@local.example")
        server.send("sent", "bob@far.example")
        until(server, lambda: hop.subjects == ["sent"])
        assert server.delivered() == []
        assert server.ctl("resume", "mda").exit == 0
        until(server, lambda: server.delivered() == ["held"])


def test_a_new_server_starts_at_once_after_its_predecessor_was_killed(folder: Path, hop: Exchanger) -> None:
    with running(folder, hop) as server:
        server.send("kept", "bob@far.example")
        server.send("slow", "alice@slow.example")
        until(server, lambda: hop.subjects)
        assert server.process is not None
        old = server.pids()
        server.process.kill()
        server.process.wait()
        hop.answering.set()
        began = time.monotonic()
        server.start()
        assert time.monotonic() - began < PATIENCE
        children = {pid for pid in old if os.path.exists(f"/proc/{pid}")} - {server.process.pid}
        until(server, lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
        until(server, server.settled)
        assert set(hop.subjects) == {"kept"}
        assert "Subject: slow" in (server.mail / "slow").read_text()


def test_a_second_server_on_the_same_state_is_refused_by_name(folder: Path, hop: Exchanger) -> None:
    with running(folder, hop) as server:
        assert server.process is not None
        other = Server(folder / "other", server.config, Wiring.MANY)
        other.state = server.folder / "state"
        other.launch()
        assert other.process is not None
        assert other.process.wait(PATIENCE) == 1
        other.process = None
        assert f"is in use by process {server.process.pid}: stop that server" in other.log()
        server.send("still here", "alice@local.example")


def test_a_stop_in_the_middle_settles_what_is_under_way(folder: Path, hop: Exchanger) -> None:
    with running(folder, hop) as server:
        server.send("last", "bob@far.example")
        server.send("slow", "alice@slow.example")
        until(server, lambda: hop.subjects and server.role("forker"))
        parent, *others = server.pids()
        assert parent not in {os.getpgid(pid) for pid in others}, "a signal from the terminal is the parent's alone"
        threading.Timer(0.5, hop.answering.set).start()
        assert server.stop(PATIENCE) == 0
        server.start()
        assert server.settled()
        assert hop.subjects == ["last"]
        assert (server.mail / "slow").read_text().count("end\n") == 1
