"""A load whose every message is counted: numbered messages go in, and what comes out is told apart by its number.

Used by the tests that kill servers, and by `bench.crash`.
"""

import asyncio
import re
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_BODY = b"X" * 78 + b"\r\n"
_SUBJECT = re.compile(rb"^Subject: (\d+\.\d+)\r?$", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID: (\S+)", re.MULTILINE | re.IGNORECASE)


@dataclass
class Tally:
    """What was sent, what was acknowledged, and how often each message arrived."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    arrived: Counter[str] = field(default_factory=Counter)
    last: float = 0.0  # monotonic time of the last arrival

    @property
    def lost(self) -> set[str]:
        """Acknowledged and never delivered."""
        return self.acknowledged - set(self.arrived)

    @property
    def doubled(self) -> int:
        """Delivered more than once: allowed after a crash, never wanted."""
        return sum(count > 1 for count in self.arrived.values())


class RecordingSink:
    """An SMTP server that counts messages in a tally; recipients that begin with `refused` get a 550."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(OSError, asyncio.IncompleteReadError):
            writer.write(b"220 sink.bench.test ESMTP\r\n")
            while line := await reader.readline():
                writer.write(await self._answer(line, reader, writer))
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        verb = line[:4].upper()
        if verb == b"EHLO":
            return b"250-sink.bench.test\r\n250 8BITMIME\r\n"
        if verb == b"RCPT" and b"<refused" in line:
            return b"550 5.1.1 no such user\r\n"
        if verb == b"DATA":
            writer.write(b"354 go\r\n")
            message = await reader.readuntil(b"\r\n.\r\n")
            if found := _SUBJECT.search(message):
                self.tally.arrived[found[1].decode()] += 1
                self.tally.last = time.monotonic()
        return b"250 2.0.0 ok\r\n"


@dataclass
class Sender:
    """One client. With `again` it comes back when the server goes away, else that ends it."""

    tally: Tally
    number: int
    port: int
    rcpts: tuple[str, ...]
    sender: str = "sender@client.bench.test"
    size: int = 4096
    again: bool = False
    count: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Send messages until told to stop."""
        while not stop.is_set():
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._session(stop)
            if not self.again:
                return
            await asyncio.sleep(0.05)

    async def _session(self, stop: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await _reply(reader)
            await _command(reader, writer, b"EHLO client.bench.test\r\n")
            for _ in range(90):  # messages a session: below the server's default limit
                if stop.is_set():
                    return
                await self._message(reader, writer)
        finally:
            writer.close()

    async def _message(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = f"{self.number}.{self.count}"
        self.count += 1
        await _command(reader, writer, f"MAIL FROM:<{self.sender}>\r\n".encode())
        for rcpt in self.rcpts:
            reply = await _command(reader, writer, f"RCPT TO:<{rcpt}>\r\n".encode())
            if not reply.startswith(b"250"):
                await _command(reader, writer, b"RSET\r\n")
                return
        await _command(reader, writer, b"DATA\r\n")
        self.tally.sent.add(number)
        head = f"From: <{self.sender}>\r\nSubject: {number}\r\n\r\n".encode()
        reply = await _command(reader, writer, head + _BODY * (self.size // len(_BODY)) + b".\r\n")
        if reply.startswith(b"250"):
            self.tally.acknowledged.add(number)


async def _command(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    return await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(30):
        while (line := await reader.readuntil(b"\r\n"))[3:4] == b"-":
            pass
    return line


@dataclass
class Mailbox:
    """What a Maildir holds of a load: how often each message, and which bounces name it."""

    arrived: Counter[str]
    bounces: dict[str, set[bytes]]  # number → Message-IDs of the bounces about it


def read_maildir(path: Path) -> Mailbox:
    """Sort a Maildir's messages by their numbers. A bounce quotes the headers of the message that it is about."""
    box = Mailbox(Counter(), defaultdict(set))
    for file in path.glob("new/*"):
        data = file.read_bytes()
        numbers = [found.decode() for found in _SUBJECT.findall(data)]
        if b"\nFrom: Mailer Daemon <MAILER-DAEMON@" in data:
            message_id = _MESSAGE_ID.search(data)
            for number in numbers:
                box.bounces[number].add(message_id[1] if message_id else b"")
        else:
            box.arrived.update(numbers[:1])
    return box
