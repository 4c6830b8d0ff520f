"""AUTH in sessions: which mechanisms are offered, each exchange, and what becomes of those who guess."""

import asyncio
import json
import ssl
from base64 import b64decode, b64encode
from pathlib import Path

import msgspec
import pytest

from pillarbox.conf.model import Config, Listener, SmtpOptions, TlsMode
from pillarbox.errors import PermFail, TempFail
from pillarbox.server.tls import Material, build_contexts
from tests.smtp.sasl.client import ScramClient

from .memory import Dialogue, World, world
from .test_tls import LOOPS, certificate, material, plain, trusting

SUCCEEDED = "235 2.0.0 Authentication succeeded"
FAILED = "535 Authentication failed"
BAD_CHUNK = "501 5.5.4 Invalid command arguments: BDAT size [LAST]"
OAUTH = b"n,a=alice,\x01host=mail.example.org\x01auth=Bearer %s\x01\x01"
XOAUTH = b"user=alice\x01auth=Bearer %s\x01\x01"


def run(scenario, factory=asyncio.new_event_loop, smtp=None, **options):
    options = {"tls": TlsMode.SMTPS, "auth": "scram", **options}
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), **options)
    config = Config(hostname="host.example.org", listeners=(listener,), smtp=smtp or SmtpOptions())
    contexts = build_contexts(config, {"srv": material("mail.example.org")}, {})

    async def inside():
        async with world(listener, config, contexts) as w:
            await scenario(w)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(inside())


async def secured(w: World, helo: str = "EHLO x", *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Dialogue:
    context = trusting()
    context.maximum_version = newest
    c = Dialogue(*await asyncio.open_connection("127.0.0.1", w.port, ssl=context))
    await c.reply()
    c.hello = await c.send(helo)  # type: ignore[attr-defined]
    return c


def mechanisms(hello: str) -> str:
    return next((line[9:] for line in hello.splitlines() if line[4:9] == "AUTH "), "")


def b64(value: bytes) -> str:
    return b64encode(value).decode()


def binding(c: Dialogue, kind: str) -> tuple[str, bytes]:
    found: ssl.SSLObject = c.writer.get_extra_info("ssl_object")
    if kind == "tls-unique":
        return kind, found.get_channel_binding("tls-unique") or b""
    import hashlib

    return kind, hashlib.sha256(found.getpeercert(binary_form=True) or b"").digest()


async def scram(c: Dialogue, client: ScramClient, mechanism: str = "SCRAM-SHA-256") -> str:
    reply = await c.send(f"AUTH {mechanism} {client.first()}")
    if not reply.startswith("334 "):
        return reply
    reply = await c.send(client.final(reply[4:]))
    if not reply.startswith("334 "):
        return reply
    assert client.accepts(reply[4:])
    return await c.send("")


@pytest.mark.parametrize(
    ("options", "newest", "expected"),
    [
        ({"auth": "crypt"}, "TLSv1_3", "PLAIN LOGIN"),
        ({"auth": "crypt"}, "TLSv1_2", "PLAIN LOGIN"),
        ({}, "TLSv1_3", "PLAIN LOGIN SCRAM-SHA-256"),
        ({}, "TLSv1_2", "PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS"),
        ({"auth": "crypt", "tokens": "t"}, "TLSv1_3", "PLAIN LOGIN XOAUTH2 OAUTHBEARER"),
        ({"mechanisms": ("SCRAM-SHA-256",)}, "TLSv1_3", "SCRAM-SHA-256"),
        ({"mechanisms": ("SCRAM-SHA-256-PLUS", "PLAIN")}, "TLSv1_3", "SCRAM-SHA-256-PLUS PLAIN"),
        ({"auth": ""}, "TLSv1_3", ""),
    ],
)
def test_what_is_offered(options, newest, expected):
    async def scenario(w: World) -> None:
        c = await secured(w, newest=ssl.TLSVersion[newest])
        assert mechanisms(c.hello) == expected
        for name in ("PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "XOAUTH2", "OAUTHBEARER", "CRAM-MD5"):
            code = (await c.send(f"AUTH {name} *"))[:3]
            assert code == ("503" if not expected else "501" if name in expected.split() else "504"), name

    run(scenario, **options)


@pytest.mark.parametrize("line", ["BDAT 1000", "BDAT 10 LAST", "BDAT\t1000", "BDAT 1000\0"])
def test_a_chunk_within_an_exchange_ends_the_connection(line):
    async def scenario(w: World) -> None:
        c = await secured(w)
        assert await c.send("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await c.send(f"{line}\r\nNOOP\r\nMAIL FROM:<smuggled@x.example>\r\n".encode()) == BAD_CHUNK
        assert (await c.reader.read()) == b""
        assert "smuggled" not in str(w.log)

    run(scenario)


def test_a_response_may_begin_as_bdat_does():
    async def scenario(w: World) -> None:
        c = await secured(w)
        assert await c.send("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await c.send("bdaT") == "334 UGFzc3dvcmQ6"
        assert (await c.send("BDAT1000"))[:3] in ("501", "535")

    run(scenario)


def test_a_client_that_said_helo_may_use_them_too():
    async def scenario(w: World) -> None:
        c = await secured(w, "HELO x")
        assert await scram(c, ScramClient("alice", "alice-pw")) == SUCCEEDED

    run(scenario)


def test_when_lookup_does_not_answer_passwords_are_still_offered():
    async def scenario(w: World) -> None:
        w.lookup.fail = True
        c = await secured(w)
        assert mechanisms(c.hello) == "PLAIN LOGIN"

    run(scenario)


@pytest.mark.parametrize("factory", LOOPS)
def test_scram(factory):
    async def scenario(w: World) -> None:
        c = await secured(w)
        assert await scram(c, ScramClient("alice", "wrong")) == FAILED
        assert await scram(c, ScramClient("ghost", "alice-pw")) == FAILED
        assert await scram(c, ScramClient("alice", "alice-pw")) == SUCCEEDED
        assert (await c.message())[:3] == "250"
        assert w.log[-2].startswith("smtp envelope") or "smtp authentication user=alice result=ok" in w.log
        assert w.log.count("smtp authentication user=alice result=permfail") == 1
        assert 'smtp failed-command command="AUTH SCRAM-SHA-256 (...)" result="535 Authentication failed"' in w.log

    run(scenario, factory)


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize(
    ("newest", "kind"),
    [("TLSv1_2", "tls-unique"), ("TLSv1_2", "tls-server-end-point"), ("TLSv1_3", "tls-server-end-point")],
)
def test_scram_plus(factory, newest, kind):
    async def scenario(w: World) -> None:
        c = await secured(w, newest=ssl.TLSVersion[newest])
        of_another = ScramClient("alice", "alice-pw", binding=(kind, b"of another connection"))
        assert await scram(c, of_another, "SCRAM-SHA-256-PLUS") == FAILED
        assert await scram(c, ScramClient("alice", "alice-pw", flag="y")) == FAILED  # somebody hid -PLUS from it
        client = ScramClient("alice", "alice-pw", binding=binding(c, kind))
        assert await scram(c, client, "SCRAM-SHA-256-PLUS") == SUCCEEDED

    run(scenario, factory, mechanisms=("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"))


def test_the_end_point_is_the_certificate_that_sni_chose():
    listener = Listener(id=1, pki=("a", "b"), tls=TlsMode.SMTPS, auth="scram", mechanisms=("SCRAM-SHA-256-PLUS",))
    config = Config(hostname="host.example.org", listeners=(listener,))
    contexts = build_contexts(config, {name: material(f"{name}.example") for name in "ab"}, {})

    async def inside() -> None:
        async with world(listener, config, contexts) as w:
            for name in ("a.example", "b.example"):
                c = Dialogue(*await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting(), server_hostname=name))
                await c.reply()
                await c.send("EHLO x")
                kind, data = binding(c, "tls-server-end-point")
                shown = c.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                assert ssl.DER_cert_to_PEM_cert(shown).encode() == certificate(name)[0]
                client = ScramClient("alice", "alice-pw", binding=(kind, data))
                assert await scram(c, client, "SCRAM-SHA-256-PLUS") == SUCCEEDED

    asyncio.run(inside())


def test_the_end_point_is_the_certificate_that_is_shown_though_its_file_was_renewed(tmp_path):
    paths = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    for path, content in zip(paths, certificate("old.example"), strict=True):
        Path(path).write_bytes(content)
    listener = Listener(id=1, pki=("srv",), tls=TlsMode.SMTPS, auth="scram", mechanisms=("SCRAM-SHA-256-PLUS",))
    config = Config(hostname="host.example.org", listeners=(listener,))
    contexts = build_contexts(config, {"srv": Material(cert=paths[0], key=paths[1])}, {})
    Path(paths[0]).write_bytes(certificate("new.example")[0])

    async def inside() -> None:
        async with world(listener, config, contexts) as w:
            c = await secured(w)
            client = ScramClient("alice", "alice-pw", binding=binding(c, "tls-server-end-point"))
            assert await scram(c, client, "SCRAM-SHA-256-PLUS") == SUCCEEDED

    asyncio.run(inside())


@pytest.mark.parametrize(("mechanism", "message"), [("XOAUTH2", XOAUTH), ("OAUTHBEARER", OAUTH)])
def test_bearer_tokens(mechanism, message):
    async def scenario(w: World) -> None:
        c = await secured(w)
        reply = await c.send(f"AUTH {mechanism} {b64(message % b'wrong')}")
        assert reply.startswith("334 ") and "status" in json.loads(b64decode(reply[4:]))
        assert await c.send("AQ==") == FAILED
        assert await c.send(f"AUTH {mechanism}") == "334 "
        assert await c.send(b64(message % b"alice-token")) == SUCCEEDED
        assert not any("alice-token" in line or b64(message % b"alice-token") in line for line in w.log)

    run(scenario, tokens="t")


def test_a_long_token_is_heard_where_tokens_are_taken():
    async def scenario(w: World) -> None:
        c = await secured(w)
        line = b64(XOAUTH % (b"t" * 4000))
        reply = await c.send(f"AUTH XOAUTH2 {line}")
        assert reply.startswith("334 ")

    run(scenario, tokens="t")

    async def without(w: World) -> None:
        c = await secured(w)
        assert await c.send("NOOP " + "x" * 4000) == "500 5.0.0 Command line too long"

    run(without)


def test_who_goes_on_guessing_is_hung_up_on():
    async def scenario(w: World) -> None:
        c = await secured(w)
        assert await c.send(plain("alice", "wrong")) == FAILED
        assert await c.send("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert (await c.send("*"))[:3] == "501"
        assert await scram(c, ScramClient("alice", "wrong")) == FAILED
        assert await c.send(plain("ghost", "ghost-pw")) == "421 4.7.0 Too many failed logins"
        assert await c.closed()

    run(scenario, smtp=SmtpOptions(max_failed_logins=3))


def test_refused_exchanges_count_as_failed_too():
    async def scenario(w: World) -> None:
        c = await secured(w)
        client = ScramClient("alice", "alice-pw", authzid="root")
        assert await scram(c, client) == FAILED
        assert await scram(c, client) == "421 4.7.0 Too many failed logins"

    run(scenario, smtp=SmtpOptions(max_failed_logins=2))


def test_a_temporary_failure_counts_for_nothing():
    async def scenario(w: World) -> None:
        c = await secured(w)
        w.lookup.fail = True
        for _ in range(3):
            assert (await c.send(plain("alice", "alice-pw")))[:3] == "454"
        w.lookup.fail = False
        assert await c.send(plain("alice", "alice-pw")) == SUCCEEDED

    run(scenario, smtp=SmtpOptions(max_failed_logins=2))


@pytest.mark.parametrize("error", [None, TempFail("later")])
def test_when_a_failure_is_answered_does_not_depend_on_what_it_took(error, monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def slow(*_: object) -> bool:
        await real_sleep(0.05)
        if error is not None:
            raise error
        return False

    async def scenario(w: World) -> None:
        w.lookup.authenticate = slow  # type: ignore[method-assign]
        w.server._services = msgspec.structs.replace(w.server._services, auth_delay=lambda: 100.0)
        c = await secured(w)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert (await c.send(plain("alice", "wrong")))[:3] == ("535" if error is None else "454")
        monkeypatch.undo()
        assert 0 < slept[0] <= 99.95

    real_sleep = asyncio.sleep
    run(scenario)


def test_lines_of_an_exchange_in_one_write_are_answered_in_order():
    async def scenario(w: World) -> None:
        c = await secured(w)
        lines = f"AUTH LOGIN\r\n{b64(b'alice')}\r\n{b64(b'alice-pw')}\r\nNOOP\r\n".encode()
        assert [line[:3] for line in (await c.send(lines, 4)).split("\n")] == ["334", "334", "235", "250"]

    run(scenario)


def test_an_exchange_that_is_left_ends_with_the_connection():
    async def scenario(w: World) -> None:
        c = await secured(w)
        await c.send(f"AUTH SCRAM-SHA-256 {ScramClient('alice', 'alice-pw').first()}")
        c.writer.close()
        await w.until(lambda: not w.server._sessions)

    run(scenario)


@pytest.mark.parametrize("error", [TempFail("later"), PermFail("never"), RuntimeError("a defect")])
def test_whatever_goes_wrong_ends_the_exchange(error):
    async def scenario(w: World) -> None:
        async def broken(*_: object) -> bytes:
            raise error

        c = await secured(w)
        w.lookup.scram_signature = broken  # type: ignore[method-assign]
        reply = await scram(c, ScramClient("alice", "alice-pw"))
        assert reply[:3] in ("454", "554", "421") and "never" not in reply
        if reply[:3] != "421":
            assert (await c.send("NOOP"))[:3] == "250"
            assert (await c.send("MAIL FROM:<alice@example.org>"))[:3] == "530"

    run(scenario)


def test_nobody_is_authenticated_before_the_last_line_of_an_exchange():
    async def scenario(w: World) -> None:
        c = await secured(w)
        client = ScramClient("alice", "alice-pw")
        reply = await c.send(f"AUTH SCRAM-SHA-256 {client.first()}")
        assert (await c.send(client.final(reply[4:]))).startswith("334 ")
        assert (await c.send("MAIL FROM:<alice@example.org>"))[:3] == "501"
        assert (await c.send("MAIL FROM:<alice@example.org>"))[:3] == "530"

    run(scenario)
