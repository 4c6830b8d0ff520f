"""Events of outgoing sessions (smtp-out): which, with what in them, in which order."""

import asyncio
import re

import pytest

from pillarbox.conf.model import Relay
from pillarbox.mta import link
from tests.mta.support import Mail, Peer, Running, play

PLAIN = ["250-peer.example", "250 DSN"]  # no PIPELINING


def heard(peer, **options):
    """Mail through a peer, with a filter that listens."""
    scheme = options.pop("scheme", "smtp")
    limits = options.pop("limits", {})
    action = Relay(name="out", host=f"{scheme}://127.0.0.1:{peer.port}", filter="f", **options)
    return Mail(action, listened_to=("f",), **limits)


async def told(mail, outcomes=1):
    """All events of a session that has ended."""
    await mail.settled(outcomes)
    async with asyncio.timeout(8):
        while not mail.events or not mail.events[-1].startswith("link-disconnect"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return mail.events


def only(events, *names):
    return [event for event in events if event.startswith(names)]


def test_events_of_a_message_in_the_order_of_the_reference():
    async def go():
        async with Peer({"EHLO": PLAIN}, greeting="220 peer.example ESMTP") as peer, Running(heard(peer)) as mail:
            mail.send("bob@far.example", "carol@far.example")
            events = await told(mail, 2)
            connect, events = events[0], events[1:]
            assert re.fullmatch(rf"link-connect\|localhost\|pass\|127\.0\.0\.1:\d+\|127\.0\.0\.1:{peer.port}", connect)
            assert events == [
                "protocol-server|220 peer.example ESMTP",
                "link-greeting|peer.example",
                "protocol-client|EHLO our.example",
                "link-identify|EHLO|our.example",
                "protocol-server|250-peer.example",
                "protocol-server|250 DSN",
                "protocol-client|MAIL FROM:<alice@example.org>",
                "protocol-server|250 ok",
                "tx-begin|00000001",
                "tx-mail|00000001|ok|alice@example.org",
                "protocol-client|RCPT TO:<bob@far.example>",
                "tx-envelope|00000001|0000000100000001",
                "protocol-server|250 ok",
                "tx-rcpt|00000001|ok|bob@far.example",
                "protocol-client|RCPT TO:<carol@far.example>",
                "tx-envelope|00000001|0000000100000002",
                "protocol-server|250 ok",
                "tx-rcpt|00000001|ok|carol@far.example",
                "protocol-client|DATA",
                "protocol-server|354 go",
                "tx-data|00000001|ok",
                "protocol-client|.",
                "protocol-server|250 taken",
                "tx-commit|00000001|20",
                "tx-reset|00000001",
                "protocol-client|QUIT",
                "protocol-server|221 bye",
                "link-disconnect",
            ]

    play(go)


def test_pipelined_commands_are_told_when_it_is_their_turn():
    events = {}

    async def go(pipelining):
        ehlo = ["250-peer", "250 PIPELINING" if pipelining else "250 HELP"]
        async with Peer({"EHLO": ehlo}) as peer, Running(heard(peer)) as mail:
            mail.send("bob@far.example", "carol@far.example")
            events[pipelining] = [e for e in await told(mail, 2) if "PIPELINING" not in e and "HELP" not in e][1:]

    play(lambda: go(True))
    play(lambda: go(False))
    assert events[True] == events[False]


def test_nobody_who_listens_hears_nothing_and_mail_goes_out():
    async def go():
        async with Peer() as peer, Running(Mail(Relay(name="out", host=f"smtp://127.0.0.1:{peer.port}"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("ok", "")]
            assert mail.events == []

    play(go)


def test_refused_recipient_does_not_end_the_transaction():
    script = {"EHLO": PLAIN, "RCPT": lambda line: {"a": "550 no", "b": "250 ok", "c": "450 later"}[line[9]]}

    async def go():
        async with Peer(script) as peer, Running(heard(peer)) as mail:
            mail.send("a@x", "b@x", "c@x")
            assert only(await told(mail, 3), "tx-") == [
                "tx-begin|00000001",
                "tx-mail|00000001|ok|alice@example.org",
                "tx-envelope|00000001|0000000100000001",
                "tx-rcpt|00000001|permfail|a@x",
                "tx-envelope|00000001|0000000100000002",
                "tx-rcpt|00000001|ok|b@x",
                "tx-envelope|00000001|0000000100000003",
                "tx-rcpt|00000001|tempfail|c@x",
                "tx-data|00000001|ok",
                "tx-commit|00000001|20",
                "tx-reset|00000001",
            ]

    play(go)


@pytest.mark.parametrize("ehlo", [PLAIN, ["250-peer", "250 PIPELINING"]], ids=["one-by-one", "pipelined"])
@pytest.mark.parametrize(
    ("script", "eom", "expected"),
    [
        ({"MAIL": "550 no"}, "", ["tx-mail|00000001|permfail|alice@example.org"]),
        ({"MAIL": "450 later"}, "", ["tx-mail|00000001|tempfail|alice@example.org"]),
        ({"RCPT": "550 no"}, "", ["tx-rcpt|00000001|permfail|b@x", "tx-rollback|00000001", "tx-reset|00000001"]),
        ({"DATA": "451 later"}, "", ["tx-data|00000001|tempfail", "tx-rollback|00000001", "tx-reset|00000001"]),
        ({}, "552 too big", ["tx-data|00000001|ok", "tx-rollback|00000001", "tx-reset|00000001"]),
    ],
    ids=["mail", "mail-for-now", "rcpt", "data", "message"],
)
def test_refusals_end_the_transaction_once(ehlo, script, eom, expected):
    refused = {"DATA": "503 no recipients"} if "RCPT" in script or "MAIL" in script else {}

    async def go():
        async with Peer({"EHLO": ehlo, **refused, **script}, eom=eom) as peer, Running(heard(peer)) as mail:
            mail.send("b@x")
            events = await told(mail)
            ours = only(events, "tx-mail", "tx-rcpt", "tx-data", "tx-commit", "tx-rollback", "tx-reset")
            assert [e for e in ours if e.split("|")[0] in {x.split("|")[0] for x in expected}] == expected
            assert len(only(events, "tx-begin")) == len(only(events, "tx-rollback")) == len(only(events, "tx-reset"))
            last = events.index(expected[-1])
            assert not only(events[last:], "tx-begin", "tx-envelope", "tx-commit")

    play(go)


def test_rollback_comes_before_the_reset_that_it_makes_us_say():
    async def go():
        async with Peer({"EHLO": PLAIN, "RCPT": "550 no"}) as peer, Running(heard(peer)) as mail:
            mail.send("b@x")
            events = await told(mail)
            end = events.index("tx-rcpt|00000001|permfail|b@x")
            assert events[end + 1 : end + 5] == [
                "tx-rollback|00000001",
                "tx-reset|00000001",
                "protocol-client|RSET",
                "protocol-server|250 ok",
            ]

    play(go)


def test_connection_lost_in_a_transaction_rolls_it_back():
    async def go():
        async with (
            Peer({"EHLO": ["250-peer", "250 PIPELINING"], "RCPT": "close"}) as peer,
            Running(heard(peer)) as mail,
        ):
            mail.send("b@x")
            events = await told(mail)
            mail_answered = events.index("tx-mail|00000001|ok|alice@example.org")
            assert events[mail_answered + 1 :] == [
                "protocol-client|RCPT TO:<b@x>",
                "tx-envelope|00000001|0000000100000001",
                "protocol-client|DATA",  # it had been sent with the others
                "tx-rollback|00000001",
                "tx-reset|00000001",
                "link-disconnect",
            ]

    play(go)


def test_peer_that_says_nothing_any_more_is_a_timeout(monkeypatch):
    monkeypatch.setattr(link, "TIMEOUT", 0.2)

    async def go():
        async with Peer({"EHLO": PLAIN, "RCPT": "silence"}) as peer, Running(heard(peer)) as mail:
            mail.send("b@x")
            events = await told(mail)
            assert events[-4:] == ["timeout", "tx-rollback|00000001", "tx-reset|00000001", "link-disconnect"]

    play(go)


def test_connection_that_never_stood_has_no_events():
    async def go():
        async with Peer() as peer:
            pass
        async with Running(heard(peer)) as mail:
            mail.send("b@x")
            assert await mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert mail.events == []

    play(go)


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        ("220 peer.example ESMTP", ["link-greeting|peer.example"]),
        ("220 <b>|x", ["link-greeting"]),
        ("220", ["link-greeting"]),
        ("554 go away", []),
    ],
)
def test_greeting_names_a_host_or_nothing(greeting, expected):
    async def go():
        async with Peer(greeting=greeting) as peer, Running(heard(peer)) as mail:
            mail.send("b@x")
            events = await told(mail)
            assert events[1] == f"protocol-server|{greeting}"
            assert only(events, "link-greeting") == expected
            assert events[-1] == "link-disconnect"

    play(go)


def test_tls_stands_before_the_second_ehlo():
    async def go():
        script = {"EHLO": ["250-peer", "250 STARTTLS"], "STARTTLS": "220 go"}
        async with Peer(script, cert="rsa") as peer, Running(heard(peer)) as mail:
            mail.send("b@x")
            events = await told(mail)
            tls = events.index(only(events, "link-tls")[0])
            assert re.fullmatch(r"link-tls\|TLSv1\.3:TLS_[A-Z0-9_]+:\d+", events[tls])
            assert events[tls - 2 : tls] == ["protocol-client|STARTTLS", "protocol-server|220 go"]
            assert events[tls + 1 : tls + 3] == ["protocol-client|EHLO our.example", "link-identify|EHLO|our.example"]

    play(go)


def test_failed_handshake_is_two_connections_of_one_session():
    async def go():
        async with (
            Peer({"EHLO": ["250-peer", "250 STARTTLS"], "STARTTLS": "220 go"}) as peer,
            Running(heard(peer)) as mail,
        ):
            mail.send("b@x")
            await mail.settled()
            await mail.logged("disconnected")
            names = [e.split("|")[0] for e in mail.events]
            assert [n for n in names if n.startswith(("link-connect", "link-disconnect", "tx-commit"))] == [
                "link-connect", "link-disconnect", "link-connect", "tx-commit", "link-disconnect",
            ]  # fmt: skip
            assert len({report.session for report in mail.reports}) == 1

    play(go)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("verdict", ["235 welcome", "535 no"])
def test_secrets_are_never_told(mechanism, verdict):
    replies = {"c2VjcmV0": verdict, "am9l": "334 UGFzc3dvcmQ6"}  # password, user
    script = {
        "EHLO": ["250-peer", f"250 AUTH {mechanism}"],
        "AUTH": lambda line: verdict if mechanism == "PLAIN" else "334 VXNlcm5hbWU6",
        **replies,
    }
    said = {
        "PLAIN": ["protocol-client|AUTH PLAIN ********", f"protocol-server|{verdict}"],
        "LOGIN": [
            "protocol-client|AUTH LOGIN", "protocol-server|334 VXNlcm5hbWU6", "protocol-client|********",
            "protocol-server|334 UGFzc3dvcmQ6", "protocol-client|********", f"protocol-server|{verdict}",
        ],
    }[mechanism]  # fmt: skip

    async def go():
        async with Peer(script, cert="rsa", immediate=True) as peer:
            action = Relay(name="out", host=f"smtps://me@127.0.0.1:{peer.port}", auth="t", filter="f", tls="no-verify")
            mail = Mail(action, listened_to=("f",))
            mail.lookup.tables["t"] = {"me": ("joe", "secret")}
            async with Running(mail):
                mail.send("b@x")
                events = await told(mail)
                start = events.index(said[0])
                result = "pass" if verdict[0] == "2" else "fail"
                assert events[start : start + len(said) + 1] == [*said, f"link-auth|{result}|joe"]
                assert not any(secret in " ".join(events) for secret in ("secret", "c2VjcmV0", "am9l"))

    play(go)


def test_lmtp_is_one_transaction_with_a_reply_for_each_recipient():
    async def go():
        peer = Peer({"LHLO": PLAIN}, eom=["250 bob has it", "550 carol is full"])
        async with peer, Running(heard(peer, scheme="lmtp")) as mail:
            mail.send("bob@x", "carol@x")
            events = await told(mail, 2)
            assert "link-identify|LHLO|our.example" in events
            end = events.index("protocol-client|.")
            assert events[end + 1 : end + 5] == [
                "protocol-server|250 bob has it",
                "protocol-server|550 carol is full",
                "tx-commit|00000001|20",
                "tx-reset|00000001",
            ]

    play(go)


def test_each_message_of_a_session_is_a_transaction():
    async def go():
        async with Peer() as peer, Running(heard(peer, limits={"session_keepalive": 1})) as mail:
            mail.send("a@x")
            await mail.settled(1)
            mail.send("b@x")
            events = await told(mail, 2)
            assert only(events, "tx-begin", "tx-commit", "tx-reset", "link-connect|") == [
                events[0],
                "tx-begin|00000001", "tx-commit|00000001|20", "tx-reset|00000001",
                "tx-begin|00000002", "tx-commit|00000002|20", "tx-reset|00000002",
            ]  # fmt: skip

    play(go)


def test_parting_words_of_a_peer_that_closes_are_told():
    async def go():
        async with Peer() as peer, Running(heard(peer, limits={"session_keepalive": 5})) as mail:
            mail.send("a@x")
            await mail.settled(1)
            peer.say(peer.writers[0], "421 idle for too long")
            assert (await told(mail))[-2:] == ["protocol-server|421 idle for too long", "link-disconnect"]

    play(go)
