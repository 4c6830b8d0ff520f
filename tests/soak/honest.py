"""The load that must not notice: clients that deliver numbered messages, and how long each message took."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

from tests.system.load import Tally

CLIENTS = 4
_PAUSE = 0.1  # seconds between two messages of a client
_PATIENCE = 60.0  # seconds for an answer
_A_SESSION = 50  # messages
_BODY = b"An honest line of text, as people write them to each other.\r\n" * 30


@dataclass
class Window:
    """Some seconds, and the messages that were sent in them."""

    attacked: bool
    cpu: float = 0.0  # of the server, in processors
    seconds: list[float] = field(default_factory=list)  # from MAIL to the 250

    def quantile(self, share: float) -> float:
        """The time within which this share of the messages were taken."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("inf")


class Load:
    """Several clients, each in sessions one after the other."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port, self._tally = port, tally
        self.windows: list[Window] = []
        self.problems: list[str] = []
        self._numbers = itertools.count()

    def begin(self, *, attacked: bool) -> None:
        """What is sent from now on belongs to a new window."""
        self.windows.append(Window(attacked))

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop."""
        await asyncio.gather(*(self._client(number, stop) for number in range(CLIENTS)))

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await _say(reader, writer, b"", b"220")
                    await _say(reader, writer, b"EHLO honest.example.net\r\n", b"250")
                    for _ in range(_A_SESSION):
                        if stop.is_set():
                            break
                        await self._message(reader, writer, f"{number}.{next(self._numbers)}")
                        await asyncio.sleep(_PAUSE)
                    await _say(reader, writer, b"QUIT\r\n", b"221")
                finally:
                    writer.close()
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as problem:
                self.problems.append(repr(problem))
                await asyncio.sleep(_PAUSE)

    async def _message(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subject: str) -> None:
        window, began = self.windows[-1], time.perf_counter()
        await _say(reader, writer, b"MAIL FROM:<s@client.example.net>\r\n", b"250")
        await _say(reader, writer, b"RCPT TO:<local@bench.test>\r\n", b"250")
        await _say(reader, writer, b"DATA\r\n", b"354")
        self._tally.sent.add(subject)
        text = f"From: <s@client.example.net>\r\nSubject: {subject}\r\n\r\n".encode() + _BODY
        await _say(reader, writer, text + b".\r\n", b"250")
        self._tally.acknowledged.add(subject)
        window.seconds.append(time.perf_counter() - began)


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, code: bytes) -> None:
    """Raises ValueError where the answer is another."""
    writer.write(data)
    async with asyncio.timeout(_PATIENCE):
        while (line := await reader.readuntil(b"\r\n"))[3:4] == b"-":
            pass
    if not line.startswith(code):
        raise ValueError(f"{line!r} to {data[:40]!r}")
