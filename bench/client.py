"""`python -m bench.client PORT plain|starttls COUNT SESSIONS RCPT`: connections with a message each, SESSIONS at once.

Prints the seconds of each, from before the connection to the 250 of its message, as JSON. A process of its own, so that
its work is on no server's account; several run side by side.
"""

import asyncio
import json
import ssl
import sys
import time

import uvloop

_DEADLINE = 60.0  # seconds for one connection
_BODY = b"A line of the usual length, as they are in most of the messages.\r\n" * 60  # 4 KB


async def deliver(port: int, context: ssl.SSLContext | None, rcpt: str) -> float:
    """One connection; seconds until its message was taken."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _say(reader, writer, b"", b"220")
        await _say(reader, writer, b"EHLO client.bench.test\r\n", b"250")
        if context is not None:
            await _say(reader, writer, b"STARTTLS\r\n", b"220")
            await writer.start_tls(context)
            await _say(reader, writer, b"EHLO client.bench.test\r\n", b"250")
        await _say(reader, writer, b"MAIL FROM:<sender@client.bench.test>\r\n", b"250")
        await _say(reader, writer, f"RCPT TO:<{rcpt}>\r\n".encode(), b"250")
        await _say(reader, writer, b"DATA\r\n", b"354")
        await _say(reader, writer, b"Subject: bench\r\n\r\n" + _BODY + b".\r\n", b"250")
        taken = time.perf_counter() - began
        await _say(reader, writer, b"QUIT\r\n", b"221")
        return taken
    finally:
        writer.close()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, code: bytes) -> None:
    writer.write(data)
    while (line := await reader.readline())[3:4] == b"-":
        pass
    if not line.startswith(code):
        raise ConnectionError(f"{line!r} to {data[:40]!r}")


async def deliver_all(port: int, context: ssl.SSLContext | None, count: int, sessions: int, rcpt: str) -> list[float]:
    """All of them."""
    numbers, taken = iter(range(count)), list[float]()

    async def session() -> None:
        for _ in numbers:
            async with asyncio.timeout(_DEADLINE):
                taken.append(await deliver(port, context, rcpt))

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(session())
            await asyncio.sleep(0.015)  # OpenSMTPD's listen backlog is 5
    return taken


def main() -> None:
    """Run, and print."""
    port, way, count, sessions, rcpt = sys.argv[1:6]
    context = None
    if way == "starttls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = runner.run(deliver_all(int(port), context, int(count), int(sessions), rcpt))
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main()
