"""A server whose configuration changes while clients of every kind talk to it, and what became of each of them."""

import asyncio
import itertools
import os
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.certificates import write_pair
from tests.system.load import read_maildir
from tests.system.server import Result, Server, Wiring, free_port
from tests.system.test_crash import account

PATIENCE = 30.0  # seconds for one answer


@dataclass
class Site:
    """What the configuration says now; `write` puts it where the server reads it."""

    folder: Path
    wiring: Wiring
    dispatchers: int = 2
    name: str = "mail.bench.test"
    box: str = "A"  # the Maildir of the action
    doors: bool = False  # a second and a third listener
    domains: tuple[str, ...] = ("bench.test",)
    more: str = ""
    port: int = field(default_factory=free_port)
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))

    def __post_init__(self) -> None:
        self.mail = self.folder / "mail"
        self.mail.mkdir(parents=True)
        os.chown(self.mail, account().pw_uid, account().pw_gid)
        self.cert, self.key = self.folder / "cert.pem", self.folder / "key.pem"
        self.der = write_pair(self.cert, self.key, self.name)
        self.write_domains()
        self.server = Server(self.folder / "server", self.text(), self.wiring, dispatchers=self.dispatchers)
        self.server.args = ("-v",)

    def text(self) -> str:
        """The configuration."""
        more = [f"listen on 127.0.0.1 port {port} tag visitors hostname {self.name}\n" for port in self.ports]
        return f"""\
pki "server" cert "{self.cert}"
pki "server" key "{self.key}"
table domains file:{self.folder}/domains
table users {{ "@" = "{account().pw_name}" }}
listen on 127.0.0.1 port {self.port} tls pki "server" hostname {self.name}
{"".join(more) if self.doors else ""}{self.more}
action "local" maildir "{self.mail}/{self.box}" virtual <users>
match from any for domain <domains> action "local"
"""

    def write_domains(self) -> None:
        """The table's file."""
        (self.folder / "domains").write_text("".join(f"{domain}\n" for domain in self.domains))

    def write(self) -> None:
        """Change the file under the running server."""
        self.write_domains()
        self.server.conf.write_text(self.text())

    def reload(self) -> Result:
        """Write, and have it read."""
        self.write()
        return self.server.ctl("reload")

    def must_reload(self) -> None:
        """As `reload`; it has to succeed."""
        result = self.reload()
        assert (result.exit, result.out) == (0, "command succeeded\n"), (result, self.server.log()[-3000:])

    def delivered(self) -> Counter[str]:
        """How often each message is in a Maildir, whichever the action named when it was delivered."""
        found: Counter[str] = Counter()
        for box in self.mail.iterdir():
            found.update(read_maildir(box).arrived)
        return found


@contextmanager
def site(folder: Path, wiring: Wiring, **options: object) -> Iterator[Site]:
    """One that runs."""
    made = Site(folder, wiring, **options)  # type: ignore[arg-type]
    with made.server:
        yield made


@dataclass
class Record:
    """What clients saw. `faults` must stay empty; `refused` counts connections that nobody listened for."""

    acknowledged: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    refused: int = 0
    sessions: Counter[str] = field(default_factory=Counter)
    certificates: set[bytes] = field(default_factory=set)


class Client:
    """Talks SMTP to a port again and again until told to stop. `kind` names it in the record.

    `messages` a session; `tls`: after STARTTLS; `optional`: its listener may be gone, but who has got in is served.
    """

    _numbers = itertools.count()

    def __init__(
        self, record: Record, kind: str, port: int, *, messages: int = 1, tls: bool = False, optional: bool = False
    ) -> None:
        self.record, self.kind, self.port = record, kind, port
        self.messages, self.tls, self.optional = messages, tls, optional
        self.number = next(self._numbers)
        self.count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop."""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                if not self.optional:
                    self.record.faults.append(f"{self.kind}: connect: {error}")
                self.record.refused += 1
                await asyncio.sleep(0.05)
                continue
            try:
                await self._session(reader, writer, stop)
                self.record.sessions[self.kind] += 1
            except (OSError, EOFError, TimeoutError, AssertionError) as error:
                self.record.faults.append(f"{self.kind}: {type(error).__name__}: {error}")
            finally:
                writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
        await _expect(reader, "220")
        await _say(reader, writer, "EHLO client.bench.test", "250")
        if self.tls:
            await _say(reader, writer, "STARTTLS", "220")
            await writer.start_tls(_trusting(), server_hostname="mail.bench.test")
            self.record.certificates.add(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            await _say(reader, writer, "EHLO client.bench.test", "250")
        for _ in range(self.messages):
            await self._message(reader, writer)
            if stop.is_set():
                break
            await asyncio.sleep(0.02)
        await _say(reader, writer, "QUIT", "221")

    async def _message(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = f"{self.number}.{self.count}"
        self.count += 1
        await _say(reader, writer, "MAIL FROM:<sender@client.example>", "250")
        await _say(reader, writer, "RCPT TO:<local@bench.test>", "250")
        await _say(reader, writer, "DATA", "354")
        await _say(reader, writer, f"Subject: {number}\r\n\r\nhello\r\n.", "250")
        self.record.acknowledged.add(number)


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str, code: str) -> None:
    writer.write(line.encode() + b"\r\n")
    await _expect(reader, code)


async def _expect(reader: asyncio.StreamReader, code: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (line := await reader.readuntil(b"\r\n"))[3:4] == b"-":
            pass
    assert line[:3].decode() == code, line


class Dialogue:
    """A client by hand, over a plain socket that blocks."""

    def __init__(self, port: int) -> None:
        import socket

        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.lines = self.socket.makefile("rb")
        self.greeting = self.read()

    def read(self) -> str:
        """The last line of a reply, "" where the connection is closed."""
        while (line := self.lines.readline())[3:4] == b"-":
            pass
        return line.decode().rstrip()

    def say(self, line: str) -> str:
        """A command, and the reply to it."""
        self.socket.sendall(line.encode() + b"\r\n")
        return self.read()

    def message(self, subject: str, rcpt: str = "local@bench.test") -> str:
        """A whole message; the last reply, or that of the recipient where it was refused."""
        self.say("MAIL FROM:<sender@client.example>")
        reply = self.say(f"RCPT TO:<{rcpt}>")
        if not reply.startswith("250"):
            self.say("RSET")
            return reply
        self.say("DATA")
        return self.say(f"Subject: {subject}\r\n\r\nhello\r\n.")

    def close(self) -> None:
        """Hang up."""
        self.lines.close()
        self.socket.close()
