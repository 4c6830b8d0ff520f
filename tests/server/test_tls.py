"""STARTTLS, smtps and what is allowed over them, on asyncio's loop and on uvloop."""

import asyncio
import datetime
import functools
import socket
import ssl
from base64 import b64encode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.errors import PermFail
from pillarbox.server import session, tls
from pillarbox.server.tls import Material, build_context, build_contexts, parse_protocols
from pillarbox.smtp import replies

from .memory import Dialogue, World, world

uvloop = pytest.importorskip("uvloop")
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@functools.cache
def certificate(*names: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    start = datetime.datetime(2020, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM), pem


def material(*names: str, dhe: str = "none") -> Material:
    cert, key = certificate(*names)
    return Material(cert=cert, key=key, dhe=dhe)


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def run(scenario, factory=asyncio.new_event_loop, **options):
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), **options)
    config = Config(hostname="host.example.org", listeners=(listener,))
    contexts = build_contexts(config, {"srv": material("mail.example.org", dhe="auto")}, {})

    async def inside():
        async with world(listener, config, contexts) as w:
            await scenario(w)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(inside())


async def secured(w: World) -> Dialogue:
    c = await w.greeted()
    assert await c.send("STARTTLS") == "220 2.0.0 Ready to start TLS"
    await c.start_tls(trusting())
    return c


def test_requiretls_is_there_over_tls_only_and_kept_with_the_message():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert "REQUIRETLS" not in await c.send("EHLO x")
        assert (await c.send("MAIL FROM:<s@x.example> REQUIRETLS"))[:3] == "503"
        assert await c.send("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await c.start_tls(trusting())
        assert "\n250-REQUIRETLS\n" in await c.send("EHLO x")
        for parameters in (" REQUIRETLS", ""):
            assert (await c.send(f"MAIL FROM:<s@x.example>{parameters}"))[:3] == "250"
            await c.send("RCPT TO:<alice@example.org>")
            await c.send("DATA")
            assert (await c.send(b"Subject: x\r\n\r\n.\r\n"))[:3] == "250"
        assert [message.require_tls for message in w.queue.committed] == [True, False]

    run(scenario, tls=TlsMode.STARTTLS)


@pytest.mark.parametrize("factory", LOOPS)
def test_starttls(factory):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert "STARTTLS" in await c.send("EHLO x")
        assert (await c.send("STARTTLS now"))[:3] == "501"
        await c.send("STARTTLS")
        await c.start_tls(trusting())
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "503"
        assert "STARTTLS" not in await c.send("EHLO x")
        assert await c.send("STARTTLS") == "503 5.5.1 Invalid command: Channel already secured"
        assert (await c.message())[:3] == "250"
        assert " with ESMTPS id " in w.queue.text() and ":NO)\n\tfor " in w.queue.text()
        assert any(line.startswith("smtp tls ciphers=TLSv1.3:") for line in w.log)
        assert (await w.server.stats())["smtp.tls"] == 1
        await c.send("QUIT")
        await w.until(lambda: not w.server._sessions)
        assert (await w.server.stats())["smtp.tls"] == 0

    run(scenario, factory, tls=TlsMode.STARTTLS)


@pytest.mark.parametrize("factory", LOOPS)
def test_commands_behind_starttls_are_never_run(factory):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        reply = await c.send(b"STARTTLS\r\nMAIL FROM:<evil@x.example>\r\n")
        assert reply == "503 5.5.1 Invalid command: No data may follow STARTTLS"
        assert await c.closed()

    run(scenario, factory, tls=TlsMode.STARTTLS)


@pytest.mark.parametrize("factory", LOOPS)
def test_smtps(factory):
    async def scenario(w: World) -> None:
        for _ in range(20):  # a ClientHello must not get lost, however early it comes
            c = Dialogue(*await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting()))
            assert (await c.reply())[:3] == "220"
            await c.send("QUIT")
        assert (await w.server.stats()).get("smtp.smtps") is not None

    run(scenario, factory, tls=TlsMode.SMTPS)


@pytest.mark.parametrize("mode", [TlsMode.STARTTLS, TlsMode.SMTPS])
@pytest.mark.parametrize("factory", LOOPS)
def test_a_failed_handshake_ends_the_session(factory, mode):
    async def scenario(w: World) -> None:
        c = await w.connect()
        if mode is TlsMode.STARTTLS:
            await c.reply()
            await c.send("EHLO x")
            await c.send("STARTTLS")
        c.writer.write(b"MAIL FROM:<evil@x.example>\r\n" * 10)
        await w.until(lambda: not w.server._sessions)
        assert w.log[-1].startswith('smtp disconnected reason="io-error: handshake failed: ')

    run(scenario, factory, tls=mode)


def test_stopping_within_a_handshake_ends_the_session_once_it_is_done():
    async def scenario(w: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        await w.until(lambda: bool(w.server._sessions))
        stopping = asyncio.ensure_future(w.server.drain(5))
        await asyncio.sleep(0.01)
        await writer.start_tls(trusting())
        assert await reader.read() == b"421 4.3.2 Service shutting down\r\n"
        await stopping

    run(scenario, tls=TlsMode.SMTPS)


def test_tls_require():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        reply = await c.send("MAIL FROM:<s@x.example>")
        assert reply == "530 5.5.1 Invalid command: Must issue a STARTTLS command first"
        c = await secured(w)
        await c.send("EHLO x")
        assert (await c.message())[:3] == "250"

    run(scenario, tls=TlsMode.STARTTLS_REQUIRE)


def plain(user: str, password: str) -> str:
    return "AUTH PLAIN " + b64encode(f"\0{user}\0{password}".encode()).decode()


def test_auth():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send(plain("alice", "alice-pw")) == "503 5.5.1 Invalid command: Command not supported"
        reply = await c.send("MAIL FROM:<s@x.example>")
        assert reply == "530 5.5.1 Invalid command: Must issue an AUTH command first"
        c = await secured(w)
        assert "AUTH PLAIN LOGIN" in await c.send("EHLO x")
        assert await c.send(plain("alice", "wrong")) == "535 Authentication failed"
        assert await c.send(plain("ghost", "ghost-pw")) == "535 Authentication failed"
        assert (await c.send("AUTH CRAM-MD5"))[:3] == "504"
        assert (await c.send("AUTH"))[:3] == "501"
        assert await c.send("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await c.send("*") == "501 5.5.2 Syntax error: Syntax error"
        assert await c.send("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await c.send("YWxpY2U=") == "334 UGFzc3dvcmQ6"
        assert await c.send("YWxpY2UtcHc=") == "235 2.0.0 Authentication succeeded"
        assert (await c.send(plain("alice", "alice-pw")))[:3] == "503"
        assert "AUTH" not in await c.send("EHLO x")
        assert (await c.message())[:3] == "250"
        assert " with ESMTPSA id " in w.queue.text() and " auth=yes user=alice\n" in w.queue.text()
        assert "smtp authentication user=alice result=permfail" in w.log
        assert "smtp authentication user=alice result=ok" in w.log
        assert not any("AGFsaWNl" in line for line in w.log)

    run(scenario, tls=TlsMode.STARTTLS, auth="creds", received_auth=True)


@pytest.mark.parametrize(
    "attempt",
    [
        ["AUTH PLAIN {plain}"],
        ["AUTH\tPLAIN {plain}"],
        ["AUTH PLAIN {plain}\0"],
        ["AUTH PLAIN={plain}"],
        ["auth {plain}"],
        [" AUTH PLAIN {plain}"],
        ["\tauth plain {plain}", "{plain}"],
        ["\0AUTH PLAIN {plain}"],
        ["AUTH\0PLAIN swordfish"],
        ["\0AUTH LOGIN", "{user}", "{secret}"],
        ["AUTHPLAIN {plain}"],
        ["AUTH PLAIN", "{plain}"],
        ["AUTH LOGIN", "{user}", "{secret}"],
        ["AUTH CRAM-MD5 {secret}", "{secret}"],
        ["MAIL FROM:<a@b>", "AUTH PLAIN {plain}", "{plain}"],
    ],
)
@pytest.mark.parametrize("secured", [True, False])
def test_no_password_reaches_the_log_however_it_is_sent(attempt, secured):
    words = {"plain": b"\0alice\0swordfish", "user": b"alice", "secret": b"swordfish"}
    encoded = {name: b64encode(value).decode() for name, value in words.items()}

    async def scenario(w: World) -> None:
        client = await w.greeted()
        if secured:
            await client.send("STARTTLS")
            await client.start_tls(trusting())
            await client.send("EHLO client.example.net")
        for line in attempt:
            await client.send(line.format_map(encoded))
        await client.send("QUIT")
        log = "\n".join(w.log)
        assert "failed-command" in log
        assert encoded["plain"] not in log and encoded["secret"] not in log and "swordfish" not in log

    run(scenario, tls=TlsMode.STARTTLS, auth="users", auth_optional=True)


def test_lines_that_are_no_commands_are_logged_unless_they_may_be_a_password():
    async def scenario(w: World) -> None:
        client = await w.greeted()
        for line in ("NONSENSE", "AUTH LOGIN", "c2VjcmV0", "NOOP", "NONSENSE again"):
            await client.send(line)
        commands = [line.partition('command="')[2].partition('"')[0] for line in w.log if "failed-command" in line]
        assert commands == ["NONSENSE", "AUTH LOGIN", "(...)", "NONSENSE again"]

    run(scenario, tls=TlsMode.STARTTLS, auth="users", auth_optional=True)


def test_auth_that_cannot_be_checked():
    async def scenario(w: World) -> None:
        c = await secured(w)
        await c.send("EHLO x")
        w.lookup.fail = True
        assert await c.send(plain("alice", "alice-pw")) == "454 4.7.0 Temporary authentication failure"
        w.lookup.fail = False
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "250"

    run(scenario, tls=TlsMode.STARTTLS, auth="creds", auth_optional=True)


def test_senders_and_masquerade():
    async def scenario(w: World) -> None:
        c = await secured(w)
        await c.send("EHLO x")
        await c.send(plain("alice", "alice-pw"))
        assert await c.send("MAIL FROM:<bob@example.org>") == "530 Sender rejected"
        assert await c.send("MAIL FROM:<>") == "530 Sender rejected"
        await c.send("MAIL FROM:<alice@example.org>")
        await c.send("RCPT TO:<bob@example.org>")
        await c.send("DATA")
        await c.send(b"From: Boss <boss@example.org>\r\n\r\nb\r\n.\r\n")
        assert "\nFrom: Boss <alice@example.org>\n" in w.queue.text()

    run(scenario, tls=TlsMode.STARTTLS, auth="creds", senders="who", masquerade=True)


def test_clients_with_and_without_a_certificate():
    cert, key = certificate("client.example.net")
    listener = Listener(
        id=1, hostname="mail.example.org", pki=("srv",), ca="corp", tls=TlsMode.STARTTLS_REQUIRE, tls_verify=True
    )
    config = Config(hostname="host.example.org", listeners=(listener,))
    contexts = build_contexts(config, {"srv": material("mail.example.org")}, {"corp": cert})

    async def inside(path: str) -> None:
        async with world(listener, config, contexts) as w:
            c = await w.greeted()
            await c.send("STARTTLS")
            context = trusting()
            context.load_cert_chain(path)
            await c.start_tls(context)
            await c.send("EHLO x")
            assert (await c.message())[:3] == "250"
            assert ":YES)\n\tfor " in w.queue.text()
            assert any(line.startswith('smtp cert-check result="verified" fingerprint="SHA256:') for line in w.log)
            c = await w.greeted()
            await c.send("STARTTLS")
            context = trusting()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await c.start_tls(context)

    descriptors: list[int] = []
    asyncio.run(inside(tls._path(key + cert, descriptors)))


def test_sni_chooses_among_several_certificates():
    listener = Listener(id=1, pki=("a", "b"), tls=TlsMode.SMTPS)
    config = Config(hostname="host.example.org", listeners=(listener,))
    materials = {"a": material("a.example"), "b": material("b.example", "*.b.example")}
    contexts = {1: build_context(listener, config, materials, {})}

    async def inside() -> None:
        async with world(listener, config, contexts) as w:
            for asked, expected in (("a.example", "a"), ("B.example", "b"), ("x.b.example", "b"), ("z.example", "a")):
                _, writer = await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting(), server_hostname=asked)
                found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                assert ssl.DER_cert_to_PEM_cert(found).encode() == materials[expected].cert
                writer.close()

    asyncio.run(inside())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "23"),
        ("secure", "23"),
        ("tlsv1.2", "22"),
        ("tlsv1.3", "33"),
        ("all,!tlsv1.3", "22"),
        ("!tlsv1.2", "33"),
        ("tlsv1.0:tlsv1.2", "22"),
    ],
)
def test_protocols(text, expected):
    versions = {"2": ssl.TLSVersion.TLSv1_2, "3": ssl.TLSVersion.TLSv1_3}
    assert parse_protocols(text) == (versions[expected[0]], versions[expected[1]])


@pytest.mark.parametrize("text", ["tlsv1.1", "bogus", "!all"])
def test_protocols_that_leave_nothing(text):
    with pytest.raises(ValueError, match="protocol"):
        parse_protocols(text)


def test_a_key_that_does_not_fit_names_the_listener():
    listener = Listener(id=1, line=7, interface="lo", pki=("a",), tls=TlsMode.STARTTLS)
    wrong = Material(cert=certificate("a.example")[0], key=certificate("b.example")[1])
    with pytest.raises(PermFail, match=":7: listen on lo: TLS: "):
        build_context(listener, Config(hostname="h"), {"a": wrong}, {})


async def refused(w: World, behind: bytes) -> str:
    """What a client hears that goes on sending this behind a line that is too long; "" where it is reset."""

    def client() -> str:
        plain = socket.create_connection(("127.0.0.1", w.port), timeout=5)
        with trusting().wrap_socket(plain, suppress_ragged_eofs=False) as connection:
            connection.recv(1000)
            connection.sendall(b"x" * 200_000)  # more than is read before the line is too long
            connection.sendall(behind)
            heard = connection.recv(1000)
            connection.sendall(behind)  # it has not looked yet
            assert connection.recv(1000) == b""  # a close_notify
            return heard.decode()

    try:
        return await asyncio.to_thread(client)
    except (ConnectionError, ssl.SSLError):
        return ""


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_a_client_that_is_still_sending_over_tls_hears_why_it_was_refused(factory, version):
    async def scenario(w: World) -> None:
        assert await refused(w, b"y" * 20_000) == "500 5.0.0 Line too long\r\n"
        await w.until(lambda: not w.server._sessions)
        assert w.log[-1] == "smtp disconnected reason=quit"

    run(scenario, factory, tls=TlsMode.SMTPS, protocols=version)


@pytest.mark.parametrize("factory", LOOPS)
def test_a_client_that_was_paused_when_it_is_refused_over_tls_hears_why(factory):
    async def scenario(w: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting())
        c = Dialogue(reader, writer)
        await c.reply()
        (it,) = w.server._sessions
        it.pause_reading()  # as when more came meanwhile than is read ahead
        writer.write(b"NOOP\r\n" * 5000)
        await w.until(lambda: writer.transport.get_write_buffer_size() == 0)
        for _ in range(10):  # it is in the transport, and no further
            await asyncio.sleep(0)
        it.send(replies.INTERNAL_ERROR)
        it._pump()
        assert (await c.reply())[:3] == "421"
        assert await c.closed()
        await w.until(lambda: not w.server._sessions)

    run(scenario, factory, tls=TlsMode.SMTPS)


@pytest.mark.parametrize("factory", LOOPS)
def test_a_refused_client_that_sends_on_and_on_over_tls_is_cut_off(factory, monkeypatch):
    monkeypatch.setattr(session, "HEAR_OUT", 3600.0)

    async def scenario(w: World) -> None:
        assert await refused(w, b"y" * 10_000_000) == ""
        await w.until(lambda: not w.server._sessions)

    run(scenario, factory, tls=TlsMode.SMTPS)


@pytest.mark.parametrize("factory", LOOPS)
def test_a_refused_client_that_stays_over_tls_is_closed_after_a_moment(factory, monkeypatch):
    monkeypatch.setattr(session, "HEAR_OUT", 0.0)
    monkeypatch.setattr(session, "LINGER", 0.0)

    async def scenario(w: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting().wrap_bio(incoming, outgoing)  # one that answers nothing by itself, unlike a transport
        await _shake_hands(client, incoming, outgoing, reader, writer)
        client.write(b"x" * 200_000)
        writer.write(outgoing.read())
        await w.until(lambda: not w.server._sessions)

    run(scenario, factory, tls=TlsMode.SMTPS)


async def _shake_hands(client, incoming, outgoing, reader, writer):
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
        else:
            writer.write(outgoing.read())
            return
