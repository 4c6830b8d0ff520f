"""OpenDKIM behind the bridge: what it signs is delivered as it signed it."""

from collections.abc import Iterator, Sequence

import pytest

from tests.milter.driver import MESSAGE, PROCEED, Bridge, received
from tests.milter.opendkim import OpenDKIM


@pytest.fixture(scope="module")
def opendkim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenDKIM]:
    """It runs."""
    with OpenDKIM(tmp_path_factory.mktemp("opendkim"), hosts="192.0.2.1") as made:
        yield made


def wire(lines: Sequence[str]) -> bytes:
    """Lines as SMTP has them."""
    return "".join(f"{line}\r\n" for line in lines).encode()


@pytest.mark.parametrize("body", [["", "Hello"], ["", ".", "..two", "", ""], [], [""], ["", "caf\u00e9 " * 20000]])
def test_mail_is_signed_as_it_is_delivered(opendkim: OpenDKIM, body: list[str]) -> None:
    message = ["From: alice@example.org", "To: bob@example.net", "Subject: folded", "\tand long", *body]
    with Bridge(opendkim.address) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        client.begin()
        lines = client.content(message)
        assert client.commit() == PROCEED
        assert lines[0].startswith("DKIM-Signature: v=1; a=rsa-sha256;")  # above all that is there
        assert [line for line in lines if line in received(client.msgid)] == received(client.msgid)
        assert opendkim.signed(wire(lines))
        assert not opendkim.signed(wire([line.replace("To: bob", "To: eve") for line in lines]))


def test_mail_of_others_is_not_signed(opendkim: OpenDKIM) -> None:
    with Bridge(opendkim.address) as bridge:
        client = bridge.session()
        assert client.connect(src="198.51.100.9:1025") == PROCEED
        assert client.deliver() == (list(MESSAGE), PROCEED)


def test_who_logged_in_is_signed_for_wherever_they_are(opendkim: OpenDKIM) -> None:
    with Bridge(opendkim.address) as bridge:
        client = bridge.session()
        assert client.connect(src="[2001:db8::1]:1025") == PROCEED
        client.starttls()
        client.auth("alice")
        lines, decision = client.deliver()
        assert decision == PROCEED and opendkim.signed(wire(lines))


def test_many_sessions_at_a_time_are_each_signed(opendkim: OpenDKIM) -> None:
    with Bridge(opendkim.address) as bridge:
        clients = [bridge.session() for _ in range(20)]
        for client in clients:
            assert client.connect() == PROCEED
            client.begin()
        tokens = [
            bridge.lines(client.id, [*received(client.msgid), *MESSAGE, f"number {number}"])
            for number, client in enumerate(clients)
        ]
        for number, token in reversed(list(enumerate(tokens))):
            lines = bridge.message(token)
            assert lines[-1] == f"number {number}" and opendkim.signed(wire(lines))
        assert bridge.log() == ""
