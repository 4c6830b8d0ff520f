import asyncio
import io

import msgspec
import pytest

from pillarbox.bounce import Bouncer
from pillarbox.conf.model import Config
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Sealed
from pillarbox.roles.bounce import BounceKind, PendingBounce
from pillarbox.roles.lookup import Expansion, Recipient
from pillarbox.roles.queue import NewMessage

SEALED = (Sealed(data=b"e", mac=b"m"),)
FOUND = Expansion(envelopes=SEALED)
HEADER = b"Received: from x\r\n\tby y\r\nSubject: hello\r\n"


class MemoryLookup:
    def __init__(self, answer: Expansion) -> None:
        self.answer = answer
        self.asked: list[Recipient] = []

    async def expand(self, recipient: Recipient) -> Expansion:
        self.asked.append(recipient)
        return self.answer


class World:
    def __init__(self, body: bytes, answer: Expansion = FOUND, *, size: int | None = None) -> None:
        self.body = body
        self.size = len(body) if size is None else size
        self.lookup = MemoryLookup(answer)
        self.text = io.StringIO()
        self.written: list[bytes] = []
        self.largest = 0
        self.bouncer = Bouncer(
            config=Config(hostname="mx.example.org", generation=3),
            lookup=self.lookup,  # type: ignore[arg-type]
            log=Log(self.text),
            now=lambda: 1772366400.0,
        )

    def make(
        self,
        kind: BounceKind = BounceKind.FAILED,
        count: int = 1,
        require_tls: bool = False,
        eight_bit: bool = False,
        **envelope: object,
    ) -> NewMessage | None:
        async def read_body(offset: int, size: int) -> bytes:
            self.largest = max(self.largest, size)
            return self.body[offset : offset + size]

        async def write_body(chunk: bytes) -> None:
            self.written.append(chunk)

        pending = [
            msgspec.structs.replace(self._pending(n, envelope), require_tls=require_tls, eight_bit=eight_bit)
            for n in range(count)
        ]
        return asyncio.run(self.bouncer.make(kind, pending, read_body, msgid=0x99, write_body=write_body))

    def _pending(self, number: int, more: dict[str, object]) -> PendingBounce:
        envelope = Envelope(
            evpid=0x1234 << 32 | number, kind=Kind.MTA, dispatcher="out", sender="s@example.net", rcpt="r@b", ctime=0,
            dest=f"r{number}@b.example", smtpname="mail.example.org", **more,  # type: ignore[arg-type]
        )  # fmt: skip
        return PendingBounce(
            evpid=envelope.evpid, envelope=envelope, kind=BounceKind.FAILED, errorline="550 no", esc_class=5,
            delay=3600, ttl=345600, size=self.size,
        )  # fmt: skip


def test_header_is_returned_and_the_sender_is_routed_as_a_local_client():
    world = World(HEADER + b"\r\nsecret body\r\n")
    message = world.make(count=2)
    assert message is not None
    assert (message.msgid, message.size, message.envelopes) == (0x99, len(message.body), SEALED)
    assert message.body.endswith(HEADER + b"\r\n--" + message.body.split(b"\r\n--")[-1])
    assert b"secret" not in message.body
    assert b"r0@b.example: 550 no\r\nr1@b.example: 550 no\r\n" in message.body
    (asked,) = world.lookup.asked
    assert (asked.generation, asked.msgid, asked.sender, asked.rcpt) == (3, 0x99, "", "s@example.net")
    client = asked.client
    assert (client.internal, client.local, client.address, client.helo) == (True, True, "local", "mail.example.org")
    assert (client.smtpname, client.hostname) == ("mx.example.org", "mx.example.org")


def test_whole_message_is_returned_for_a_failure_that_asked_for_it():
    world = World(HEADER + b"\r\n.\r\nbody\r\n")
    message = world.make(dsn_ret="FULL")
    assert message is not None
    assert world.body + b"\r\n--" in message.body
    delayed = world.make(BounceKind.DELAYED, dsn_ret="FULL")
    assert delayed is not None
    assert b"\r\nbody\r\n" not in delayed.body


def test_of_a_message_that_requires_tls_only_the_header_goes_back_and_requires_it_too():
    world = World(HEADER + b"\r\nsecret body\r\n")
    message = world.make(dsn_ret="FULL", require_tls=True)
    assert message is not None and message.require_tls
    assert b"secret" not in message.body and HEADER in message.body


def test_large_message_is_streamed():
    world = World(HEADER + b"\r\n" + b"x" * 78 * 20000 + b"\r\n")
    message = world.make(dsn_ret="FULL")
    assert message is not None
    assert (message.streamed, message.body, message.size) == (True, b"", len(b"".join(world.written)))
    assert world.body in b"".join(world.written)
    assert max(map(len, world.written)) <= 128 * 1024


def test_message_that_cannot_be_read_is_tried_again():
    world = World(HEADER + b"\r\nbody\r\n", size=1000)
    with pytest.raises(TempFail):
        world.make(dsn_ret="FULL")


def test_refused_sender_is_logged_and_dropped():
    world = World(HEADER, Expansion(code=550, text="Invalid recipient: <s@example.net>"))
    assert world.make(count=2) is None
    lines = world.text.getvalue().splitlines()
    refused = "550 Invalid recipient: <s@example.net>"
    assert lines[0].endswith(f'smtp failed-command command="RCPT TO: <s@example.net>" result="{refused}"')
    assert lines[1] == (
        "warn: PermFail injecting failure report on message 00001234 to <s@example.net> for 2 envelopes: " + refused
    )


def test_sender_that_cannot_be_routed_now_is_tried_again():
    world = World(HEADER, Expansion(code=451, text="4.3.0 later"))
    with pytest.raises(TempFail):
        world.make()


def test_eight_bit_header_is_declared():
    message = World(HEADER + "X: é\r\n\r\n".encode()).make()
    assert message is not None
    assert message.eight_bit
    assert not message.smtputf8


@pytest.mark.parametrize(
    ("header", "body", "kind"),
    [
        (b"", b"caf\xe9", b"message/rfc822"),
        (b"X: \xe9\r\n", b"x", b"message/rfc822"),
        ("X: é\r\n".encode(), b"caf\xe9", b"message/global"),
    ],
)
def test_a_whole_message_is_global_only_where_its_header_is_utf8(header, body, kind):
    world = World(HEADER + header + b"\r\n" + body + b"\r\n")
    message = world.make(eight_bit=True, dsn_ret="FULL")
    assert message is not None and message.eight_bit
    assert b"\r\nContent-Type: " + kind + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + HEADER in message.body
