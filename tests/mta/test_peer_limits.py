"""LIMITS (RFC 9422): what a peer says that it takes, it is not asked to exceed."""

import pytest

from pillarbox.conf.model import Relay
from tests.mta.support import Mail, Peer, Running, play


def peer_with(limits, **script):
    return Peer({"EHLO": ["250-peer", "250-PIPELINING", f"250 LIMITS {limits}"], **script})


def to(peer):
    return Relay(name="out", host=f"smtp://127.0.0.1:{peer.port}")


def transactions(peer):
    """For each session its transactions: the recipients of each."""
    found = []
    for session in peer.sessions:
        found.append([])
        for line in session:
            if line.startswith("MAIL"):
                found[-1].append([])
            elif line.startswith("RCPT"):
                found[-1][-1].append(line[9:-1])
    return found


def rcpts(count, domain="far.example"):
    return [f"u{i}@{domain}" for i in range(count)]


def test_more_recipients_than_a_transaction_takes_become_several():
    async def go():
        async with peer_with("RCPTMAX=2") as peer, Running(Mail(to(peer))) as mail:
            mail.send(*rcpts(5), body=b"Subject: x\r\n\r\nb\r\n")
            assert await mail.settled(5) == [("ok", "")] * 5
            assert transactions(peer) == [[["u0@far.example", "u1@far.example"], ["u2@far.example", "u3@far.example"],
                                           ["u4@far.example"]]]  # fmt: skip
            assert len(peer.messages) == 3

    play(go)


def test_a_large_body_is_sent_anew_in_each_transaction():
    body = b"Subject: x\r\n\r\n" + b"y" * 200_000 + b"\r\n"

    async def go():
        async with peer_with("RCPTMAX=1") as peer, Running(Mail(to(peer))) as mail:
            mail.send(*rcpts(2), body=body, inline=False)
            assert await mail.settled(2) == [("ok", "")] * 2
            assert peer.messages == [body, body]

    play(go)


def test_messages_beyond_those_of_a_session_go_by_another():
    async def go():
        async with peer_with("MAILMAX=2") as peer, Running(Mail(to(peer), max_conn_per_relay=1)) as mail:
            for _ in range(5):
                mail.send("u@far.example")
            assert await mail.settled(5) == [("ok", "")] * 5
            assert sorted(map(len, transactions(peer))) == [1, 2, 2]
            assert all(session.count("QUIT") == 1 for session in peer.sessions if len(session) > 7)

    play(go)


def test_recipients_for_which_a_session_has_no_room_go_by_another():
    async def go():
        async with peer_with("RCPTMAX=2 MAILMAX=2") as peer, Running(Mail(to(peer))) as mail:
            mail.send(*rcpts(7))
            assert await mail.settled(7) == [("ok", "")] * 7
            assert [[len(tx) for tx in session] for session in transactions(peer)] == [[2, 2], [2, 1]]
            assert [o.attempt for o in mail.queue.outcomes] == [1] * 7

    play(go)


def test_a_session_is_for_so_many_domains():
    async def go():
        async with peer_with("RCPTDOMAINMAX=1") as peer, Running(Mail(to(peer))) as mail:
            mail.send("a@one.example", "b@two.example", "c@ONE.example")
            assert await mail.settled(3) == [("ok", "")] * 3
            assert transactions(peer) == [[["a@one.example", "c@ONE.example"]], [["b@two.example"]]]

    play(go)


def test_what_was_not_begun_when_the_connection_broke_goes_by_another():
    async def go():
        replies = iter(["250 ok", "close"])
        script = {"MAIL": lambda line: next(replies, "250 ok")}
        async with peer_with("RCPTMAX=1", **script) as peer, Running(Mail(to(peer))) as mail:
            mail.send(*rcpts(3))
            outcomes = sorted(await mail.settled(3))
            assert outcomes == [("ok", ""), ("ok", ""), ("tempfail", "Connection closed unexpectedly")]
            assert len(peer.sessions) == 2

    play(go)


@pytest.mark.parametrize("limits", ["", "RCPTMAX", "RCPTMAX=0", "RCPTMAX=x MAILMAX=-1", "MAILMAX=99999999", "NEW=1"])
def test_what_is_no_limit_limits_nothing(limits):
    async def go():
        async with peer_with(limits) as peer, Running(Mail(to(peer))) as mail:
            mail.send(*rcpts(5))
            assert await mail.settled(5) == [("ok", "")] * 5
            assert [[len(tx) for tx in session] for session in transactions(peer)] == [[5]]

    play(go)
