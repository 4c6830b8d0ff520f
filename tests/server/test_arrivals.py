"""Connections behind a proxy: the client is who the header says, and nobody who sends none gets a word."""

import asyncio
import socket
import ssl

import pytest

from pillarbox.conf.model import Config, Listener, SmtpOptions, TlsMode
from pillarbox.server.tls import build_contexts

from .memory import Dialogue, World, world
from .test_limits import Clock, run
from .test_tls import material, trusting

TCP4 = bytes.fromhex("0d0a0d0a000d0a515549540a2111000ccb007105c633640712340019")  # 203.0.113.5
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a20000000")
V1 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n"
EITHER = Listener(id=1, hostname="mail.example.org", proxy=True)
BANNER = "220 mail.example.org ESMTP Pillarbox"


async def through(w: World, header: bytes) -> Dialogue:
    c = await w.connect()
    c.writer.write(header)
    return c


@pytest.mark.parametrize(("header", "address"), [(TCP4, "203.0.113.5"), (V1, "2001:db8::7"), (LOCAL, "127.0.0.1")])
def test_the_session_goes_by_the_address_in_the_header(header, address):
    async def scenario(w: World, _clock: Clock) -> None:
        w.lookup.names["203.0.113.5"] = "client.example"
        c = await through(w, header + b"EHLO c.example.net\r\n")
        assert await c.reply() == BANNER
        assert f" c.example.net [{address}], pleased" in (await c.reply()).splitlines()[0]
        assert (await c.message()).startswith("250 ")
        asked = w.lookup.asked[0].client
        assert (asked.address, asked.local) == (address, address == "127.0.0.1")
        assert f"[{address}])" in w.queue.text()
        assert w.log[0] == "smtp event=proxy address=127.0.0.1"
        name = w.lookup.names.get(address, "<unknown>")
        shown = f"[{address}]" if ":" in address else address
        assert f"smtp connected address={shown} host={name}" in w.log

    run(scenario, listener=EITHER)


def test_a_header_may_come_byte_by_byte():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.connect()
        for byte in TCP4:
            c.writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert await c.reply() == BANNER

    run(scenario, listener=EITHER)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"EHLO client.example.net\r\n", "protocol error (invalid signature)"),
        (b"PROXY TCP4 nonsense\r\n", "protocol error (invalid header)"),
        (TCP4[:13] + b"\x12" + TCP4[14:], "protocol error (unsupported address family)"),
        (b"", "disconnected"),
        (TCP4[:20], "disconnected"),
    ],
)
def test_without_a_header_a_connection_is_closed_and_nothing_said(sent, reason):
    async def scenario(w: World, _clock: Clock) -> None:
        c = await through(w, sent)
        if reason == "disconnected":
            c.writer.write_eof()
        assert await c.closed()
        await w.until(lambda: len(w.log) == 2)
        assert w.log[1].endswith(f' event=closed address=127.0.0.1 reason="{reason}"')
        assert not w.server._sessions
        assert not len(w.server._arrivals)

    run(scenario, listener=EITHER)


def test_the_binary_form_alone_is_what_proxy_v2_means():
    async def scenario(w: World, _clock: Clock) -> None:
        assert await (await through(w, V1)).closed()
        assert await (await through(w, TCP4)).reply() == BANNER

    run(scenario, listener=Listener(id=1, hostname="mail.example.org", proxy_v2=True))


def test_a_header_has_five_minutes():
    async def scenario(w: World, clock: Clock) -> None:
        c = await through(w, TCP4[:-1])
        await w.until(lambda: len(w.server._arrivals) == 1)
        await asyncio.sleep(0.05)
        await clock.advance(299)
        assert len(w.server._arrivals) == 1
        await clock.advance(2)
        assert await c.closed()
        assert w.log[1].endswith('reason="timeout"')

    run(scenario, listener=EITHER)


def test_only_trusted_proxies_are_listened_to():
    listener = Listener(id=1, hostname="mail.example.org", proxy=True, proxy_from="proxies")

    async def scenario(w: World, _clock: Clock) -> None:
        assert await (await through(w, TCP4)).reply() == BANNER
        w.lookup.proxies.clear()
        assert await (await w.connect()).closed()
        assert w.log[-1].endswith('event=closed address=127.0.0.1 reason="not a trusted proxy"')
        w.lookup.fail = True
        assert await (await w.connect()).closed()
        assert "not known to be a trusted proxy" in w.log[-1]

    run(scenario, listener=listener)


def test_limits_are_those_of_the_client_and_not_of_its_proxy():
    config = Config(hostname="h.example", listeners=(EITHER,), smtp=SmtpOptions(max_session_per_source=1))

    async def scenario(w: World, _clock: Clock) -> None:
        assert await (await through(w, TCP4)).reply() == BANNER
        assert await (await through(w, V1)).reply() == BANNER
        assert (await (await through(w, TCP4)).reply()).startswith("421 4.7.0 ")

    run(scenario, config=config)


def test_those_who_owe_a_header_count_as_sessions_and_are_sent_away_when_the_server_stops():
    async def scenario(w: World, _clock: Clock) -> None:
        waiting = [await w.connect() for _ in range(3)]
        await w.until(lambda: len(w.server._arrivals) == 3)
        assert (await (await w.connect()).reply()).startswith("421 4.3.2 Too many connections")
        assert w.server.generations() == {0}
        await w.server.drain(1)
        for c in waiting:
            assert await c.closed()

    run(scenario, listener=EITHER, max_sessions=3)


def test_a_configuration_that_has_retired_waits_for_no_header():
    async def scenario(w: World, _clock: Clock) -> None:
        c = await w.connect()
        await w.until(lambda: len(w.server._arrivals) == 1)
        w.configure(Config(hostname="h.example", generation=1, listeners=(EITHER,)))
        w.server.retire(0)
        assert await c.closed()
        await w.until(lambda: w.server.generations() == {1})

    run(scenario, listener=EITHER)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tls_begins_right_behind_the_header(loop):
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=TlsMode.SMTPS, proxy=True)
    config = Config(hostname="h.example", listeners=(listener,))
    contexts = build_contexts(config, {"srv": material("mail.example.org")}, {})

    def client(port: int, header: bytes) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            # The header and the client's hello in one segment, as a proxy may send them.
            outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting().wrap_bio(incoming, outgoing, server_hostname="mail.example.org")
            said = [header]
            lines: list[bytes] = []
            while len(lines) < 2:
                try:
                    lines.append(tls.read(4096))
                    tls.write(b"EHLO c.example.net\r\n")
                except ssl.SSLWantReadError:
                    plain.sendall(said.pop() + outgoing.read() if said else outgoing.read())
                    incoming.write(plain.recv(65536))
            return lines

    async def inside() -> None:
        async with world(listener, config, contexts) as w:
            for header, address in ((TCP4, b"[203.0.113.5]"), (V1, b"[2001:db8::7]")):
                banner, hello = await asyncio.to_thread(client, w.port, header)
                assert banner == f"{BANNER}\r\n".encode()
                assert address in hello

    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(inside())
