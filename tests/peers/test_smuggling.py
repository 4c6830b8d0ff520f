"""A message that hides a second one goes through us into our own Maildir, into Postfix and into OpenSMTPD.

What is tried is CVE-2023-51764, -51765 and -51766 and their relatives: ends of data that one server takes for an end
and another does not. Whatever each of the three thinks of it, as many messages arrive as a 250 was said for.
"""

import smtplib
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.servers import LOCAL, PORT, OpenSMTPD, Postfix
from tests.peers.programs import opensmtpd, program
from tests.peers.test_deliver import server_with
from tests.system.server import BIN, Wiring, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

# What a careless server takes for the end of a message.
SEQUENCES = [
    *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r", b"\r.\n"),
    *(b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\r\n\r.\r\n", b"\r\n.\n\r\n", b"\n\r.\r\n"),
    *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\0\r\n.\0\r\n\0", b"\r\0\n.\r\0\n", b"\r\n\0.\n", b"\0\n.\n", b"\n.\0\n"),
    *(b"\r\n..\r\n", b"\r\n .\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\n\x1a\r\n", b"\r\n\x85.\x85"),
    *(b"\xe2\x80\xa8.\xe2\x80\xa8", b"\r\n\x0b.\x0b\r\n", b"\x0c.\x0c", b"\r\n\xff.\r\n", b"\r\n\x8d\x8a.\x8d\x8a"),
]  # fmt: skip
# These are ends of DATA for everybody (what follows is no secret, and is answered); in chunks they are content.
ENDS = [b"\r\n.\r\n", b"\r\r\n.\r\n"]
HIDDEN = (
    f"MAIL FROM:<evil@example.net>\r\nRCPT TO:<{LOCAL}>\r\nRCPT TO:<alice@example.org>\r\n"
    "DATA\r\nSubject: smuggled\r\nFrom: <evil@example.net>\r\n\r\nsmuggled\r\n"
).encode()
POLICIES = {"": "as it is", "smtp bare-newline normalize\n": "normalizing"}


@dataclass
class Attacker:
    """A client that sends each sequence in a message of its own, from connections of their own."""

    port: int
    taken: set[str] = field(default_factory=set)  # the subjects of messages that were answered with 250
    refused: int = 0

    def try_all(self) -> None:
        """Send all of them by DATA, and by BDAT if that is offered."""
        for number, sequence in enumerate(SEQUENCES):
            self._data(f"by data {number}", sequence)
        with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as client:
            client.ehlo("client.example.net")
            if not client.has_extn("chunking"):
                return
        for number, sequence in enumerate([*SEQUENCES, *ENDS]):
            for cut in range(1, 2 + len(sequence)):  # a chunk ends within it, or, last, behind it
                self._chunks(f"by chunks {number} {cut}", sequence, cut)

    def _data(self, subject: str, sequence: bytes) -> None:
        with Conversation(self.port) as said:
            said.ask(b"DATA\r\n", b"354")
            self._note(subject, said.answer_to(carrier(subject) + sequence + HIDDEN + b"\r\n.\r\n"))
            said.end()

    def _chunks(self, subject: str, sequence: bytes, cut: int) -> None:
        first, second = carrier(subject) + sequence[:cut], sequence[cut:] + HIDDEN
        with Conversation(self.port) as said:
            first_answer = said.answer_to(b"BDAT %d\r\n" % len(first) + first)
            answer = said.answer_to(b"BDAT %d LAST\r\n" % len(second) + second)
            assert first_answer[:1] == b"2" or answer[:1] == b"5", (first_answer, answer)
            self._note(subject, answer)
            said.end()

    def _note(self, subject: str, answer: bytes) -> None:
        assert answer[:1] in b"25", answer
        if answer[:1] == b"2":
            self.taken.add(subject)
        else:
            self.refused += 1


class Conversation:
    """One connection, ready for a message; it counts the answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.answers = self.socket.makefile("rb")

    def __enter__(self) -> "Conversation":
        assert self.answer_to(b"").startswith(b"220")
        self.ask(b"EHLO client.example.net\r\n", b"250")
        self.ask(b"MAIL FROM:<s@client.example.net>\r\n", b"250")
        for rcpt in (LOCAL, "alice@example.org"):
            self.ask(f"RCPT TO:<{rcpt}>\r\n".encode(), b"250")
        return self

    def __exit__(self, *exc: object) -> None:
        self.answers.close()
        self.socket.close()

    def ask(self, data: bytes, code: bytes) -> None:
        """Send what must be answered by this code."""
        answer = self.answer_to(data)
        assert answer.startswith(code), (data, answer)

    def answer_to(self, data: bytes) -> bytes:
        """Send something; the last line of the answer."""
        self.socket.sendall(data)
        while (line := self.answers.readline())[3:4] == b"-":
            pass
        return line

    def end(self) -> None:
        """What was hidden got no answer of its own: the next one is QUIT's, and the last."""
        try:
            self.socket.sendall(b"QUIT\r\n")
            rest = self.answers.read()
        except ConnectionError:
            return  # it had refused and hung up
        assert rest == b"" or (rest.startswith(b"221 ") and rest.count(b"\n") == 1), rest


def carrier(subject: str) -> bytes:
    """The beginning of the message that is sent openly."""
    return f"From: <s@client.example.net>\r\nSubject: {subject}\r\n\r\nopen".encode()


def subjects(maildir: Path) -> list[str]:
    """The subjects in the headers of a Maildir's messages, sorted."""
    found = []
    for file in maildir.glob("new/*"):
        header = file.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        found += [line[9:].decode() for line in header.split(b"\n") if line.startswith(b"Subject: ")]
    return sorted(found)


@pytest.mark.parametrize("policy", POLICIES, ids=POLICIES.get)
@pytest.mark.parametrize("peer", [Postfix, OpenSMTPD], ids=lambda peer: peer.name)
def test_no_second_message_is_born(folder: Path, peer: type[Postfix | OpenSMTPD], policy: str) -> None:
    program("postfix") if peer is Postfix else opensmtpd()
    port, other = free_port(), peer(folder / "peer", deliver=True)
    rules = f"""\
mta limit conn-delay-route 0 conn-delay-relay 0 session-mail-max 10000
action "in" maildir
action "out" relay host smtp://127.0.0.1:{PORT}
match from any for domain "example.org" action "in"
match from any for any action "out"
"""
    if policy:
        known(folder, policy)
    other.start()
    try:
        with server_with(folder, Wiring.MANY, port, policy + rules) as server:
            attacker = Attacker(port)
            attacker.try_all()
            assert attacker.taken and (attacker.refused or policy)
            assert wait_for(lambda: other.delivered() >= len(attacker.taken), 40), server.log()[-3000:] + other.log()
            assert server.wait_empty(10), server.log()[-3000:]
            # One after them all: whatever of theirs was still on its way has come before it.
            with smtplib.SMTP("127.0.0.1", PORT, timeout=20) as client:
                client.sendmail("s@client.example.net", [LOCAL], "Subject: the last\r\n\r\nx\r\n")
            assert wait_for(lambda: "the last" in subjects(other.maildir), 20), other.log()
            assert subjects(other.maildir) == sorted([*attacker.taken, "the last"])
            assert subjects(Path("/home/alice/Maildir")) == sorted(attacker.taken)
    finally:
        other.stop()


def known(folder: Path, policy: str) -> None:
    """Skip where the grammar has no such policy."""
    conf = folder / "policy.conf"
    rule = 'action "a" maildir\nmatch from any for any action "a"\n'
    conf.write_text(f"{policy}listen on 127.0.0.1\n{rule}")
    if subprocess.run([BIN / "smtpd", "-n", "-f", conf], capture_output=True, check=False).returncode:
        pytest.skip(f"no such statement: {policy.strip()}")
