"""`python -m tests.soak.clients PORT SMTPS_PORT COUNT [vanish]`: so many clients that misbehave, each in its own way,
until stdin ends; then it prints what it did as JSON.

They run in a process of their own, so that what they cost is not counted as the slowness of the server.
"""

import asyncio
import contextlib
import functools
import json
import os
import random
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

_TCP_REPAIR = 19
_HOLD = 3.0  # seconds that who does nothing stays
_BEGIN = b"EHLO client.example.net\r\nMAIL FROM:<s@client.example.net>\r\nRCPT TO:<local@bench.test>\r\n"


class Client:
    """One connection of a client with an address of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send, as far as the server takes it."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> bytes:
        """The last line of a reply."""
        while (line := await self.reader.readline())[3:4] == b"-":
            pass
        if not line:
            raise ConnectionResetError
        return line

    async def begin(self) -> None:
        """Up to where a message may follow."""
        await self.reply()
        await self.send(_BEGIN)
        for _ in range(3):
            await self.reply()

    def reset(self) -> None:
        """End with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def slow(client: Client) -> None:
    """A dialogue byte by byte."""
    for byte in _BEGIN + b"DATA\r\nSubject: slow\r\n\r\n":
        await client.send(bytes([byte]))
        await asyncio.sleep(0.1)


async def silent(client: Client) -> None:
    """Nothing at all."""
    await asyncio.sleep(_HOLD)


async def half_closed(client: Client) -> None:
    """Half a command, and the end of its side."""
    await client.send(b"EHLO client.exam")
    client.writer.write_eof()
    await client.reader.read()


async def garbage(client: Client) -> None:
    """Bytes of no meaning."""
    for _ in range(20):
        await client.send(random.randbytes(random.randrange(200)) + random.choice([b"", b"\r\n", b"\n", b"\0\r\n"]))
        await asyncio.sleep(0.1)


async def reset(client: Client) -> None:
    """A RST at some point of a transaction."""
    await client.begin()
    await client.send(random.choice([b"", b"DATA\r\n", b"DATA\r\nSubject: x\r\n\r\nxx", b"MAIL FROM:<"]))
    client.reset()


async def gone_in_message(client: Client) -> None:
    """The end of the connection within a message, by DATA or in a chunk."""
    await client.begin()
    await client.send(random.choice([b"DATA\r\n", b"BDAT 1000000\r\n"]) + b"Subject: x\r\n\r\n" + b"x\r\n" * 70_000)


async def endless_header(client: Client) -> None:
    """Header lines until that is refused."""
    await client.begin()
    await client.send(b"DATA\r\n")
    for number in range(100):
        await client.send(b"".join(b"X-%d-%d: y\r\n" % (number, line) for line in range(200)))
        await asyncio.sleep(0.02)


async def endless_line(client: Client) -> None:
    """A line that does not end."""
    for _ in range(40):
        await client.send(b"x" * 4000)
        await asyncio.sleep(0.02)


async def never_reading(client: Client) -> None:
    """Commands for which it never takes the answers."""
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_HOLD):
            while True:
                await client.send(b"HELP\r\n" * 200)
                await asyncio.sleep(0.1)
    client.reset()


async def flood(client: Client) -> None:
    """Hundreds of commands at once, whose answers are read."""
    await client.reply()
    await client.send(b"EHLO client.example.net\r\n")
    await client.reply()
    commands = [b"MAIL FROM:<a@x.example>\r\n", b"RCPT TO:<local@bench.test>\r\n", b"RSET\r\n", b"NOOP\r\n", b"XX\r\n"]
    for _ in range(3):
        await client.send(b"".join(commands) * 40)
        for _ in range(40 * len(commands)):
            await client.reply()
        await asyncio.sleep(0.5)


async def tls_abort(client: Client) -> None:
    """STARTTLS, and then no TLS, or only the beginning of it."""
    await client.reply()
    await client.send(b"EHLO client.example.net\r\n")
    await client.reply()
    await client.send(b"STARTTLS\r\n")
    await client.reply()
    await client.send(client_hello()[: random.randrange(1, 200)] if random.random() < 0.7 else random.randbytes(300))
    await asyncio.sleep(random.random())
    if random.random() < 0.5:
        client.reset()


async def smtps_abort(client: Client) -> None:
    """An end within the handshake of a connection that is TLS from its first byte."""
    hello = client_hello()
    await client.send(hello if random.random() < 0.5 else hello[: len(hello) // 2])
    await asyncio.sleep(random.random())
    client.reset()


async def tls_reset(client: Client) -> None:
    """A RST within a message over TLS."""
    await client.reply()
    await client.send(b"EHLO client.example.net\r\nSTARTTLS\r\n")
    await client.reply()
    await client.reply()
    await client.writer.start_tls(_trusting(), server_hostname="mail.bench.test", ssl_handshake_timeout=20)
    await client.send(_BEGIN + b"DATA\r\nSubject: x\r\n\r\nxxx\r\n")
    await asyncio.sleep(random.random())
    client.reset()


async def vanish(client: Client) -> None:
    """As if its cable was pulled: nothing comes any more, neither FIN nor RST (needs CAP_NET_ADMIN)."""
    await client.begin()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    client.writer.transport.abort()
    await asyncio.sleep(20)  # the server keeps it for its five minutes


Behaviour = Callable[[Client], Awaitable[None]]
_MANY: list[Behaviour] = [
    slow, silent, half_closed, garbage, reset, gone_in_message, endless_line, tls_abort, smtps_abort, tls_reset,
]  # fmt: skip
_FEW: list[Behaviour] = [endless_header, never_reading, flood]  # each costs the server as much as a busy client
BEHAVIOURS = _MANY * 3 + _FEW


def client_hello() -> bytes:
    """The first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _trusting().wrap_bio(incoming, outgoing, server_hostname="mail.bench.test").do_handshake()
    return outgoing.read()


@functools.cache
def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def misbehave(number: int, behaviour: Behaviour, port: int, done: Counter[str]) -> None:
    """Connect again and again."""
    source = f"127.2.{number // 250}.{1 + number % 250}"
    await asyncio.sleep(random.random())
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
                try:
                    done[behaviour.__name__] += 1
                    await behaviour(Client(reader, writer))
                finally:
                    writer.close()
        await asyncio.sleep(random.uniform(1.0, 3.0))


async def main() -> None:
    """Until stdin ends."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)  # in the world they would have machines of their own
    port, smtps, count = map(int, sys.argv[1:4])
    behaviours = BEHAVIOURS + [vanish] * ("vanish" in sys.argv[4:])
    done: Counter[str] = Counter()
    tasks = []
    for number in range(count):
        behaviour = behaviours[number % len(behaviours)]
        work = misbehave(number, behaviour, smtps if behaviour is smtps_abort else port, done)
        tasks.append(asyncio.create_task(work))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        if task.done():
            task.result()  # a defect of ours
        task.cancel()
    await asyncio.wait(tasks, timeout=10)
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
