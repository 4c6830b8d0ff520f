"""The roles in memory, a server on loopback sockets, and transcripts: what the tests of the incoming side share."""

import asyncio
import io
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pillarbox.conf.model import Config, Listener
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Flag, Kind, Sealed, encode_envelope
from pillarbox.roles.lookup import Expansion, FilterCase, FilterOutcome, Login, Recipient, ReverseName
from pillarbox.roles.queue import NewMessage
from pillarbox.routing.admit import Admission
from pillarbox.routing.filtering import BuiltinFilters
from pillarbox.server.listener import Server
from pillarbox.smtp.sasl import verifier
from pillarbox.tables.table import Table
from tests.filters.memory import Background, MemoryFilters, make_processors

if TYPE_CHECKING:
    from tests.filters.real import Between


ALICE = verifier.make("alice-pw", salt=b"saltsaltsalt", iterations=4096)


class MemoryLookup:
    """Everybody at example.org exists but ghost; alice and bob have passwords `<name>-pw`."""

    def __init__(self) -> None:
        self.asked: list[Recipient] = []
        self.fail = False
        self.gate: asyncio.Event | None = None
        self.names = {"127.0.0.1": "localhost"}
        self.host_names: dict[str, str | TempFail] = {}
        self.admission = Admission(now=asyncio.get_running_loop().time)
        self.config: Config | None = None
        self.tables: dict[str, Table] = {}
        self.proxies = {"127.0.0.1"}
        self._next = 0

    async def trusts_proxy(self, generation: int, table: str, address: str) -> bool:
        if self.fail:
            raise TempFail("lookup is being restarted")
        return address in self.proxies

    async def admit(self, generation: int, holder: str, ticket: int, address: str) -> str:
        assert self.config is not None
        if self.fail:
            raise TempFail("lookup is being restarted")
        return self.admission.admit(self.config.smtp, holder, ticket, address)

    async def hold(self, holder: str, sessions: dict[int, str]) -> None:
        self.admission.hold(holder, sessions)

    async def leave(self, holder: str, ticket: int) -> None:
        if self.fail:
            raise TempFail("lookup does not answer")
        self.admission.leave(holder, ticket)

    async def spend(self, generation: int, what: str, address: str, user: str) -> str:
        assert self.config is not None
        return self.admission.spend(self.config.smtp.rates, what, address, user)

    async def expand(self, recipient: Recipient) -> Expansion:
        self.asked.append(recipient)
        if self.gate is not None:
            await self.gate.wait()
        if self.fail:
            raise TempFail("lookup is being restarted")
        user, _, domain = recipient.rcpt.partition("@")
        if domain.lower() != "example.org" or user == "ghost":
            return Expansion(code=550, text=f"Invalid recipient: <{recipient.rcpt}>")
        self._next += 1
        envelope = Envelope(
            evpid=recipient.msgid << 32 | self._next,
            kind=Kind.MDA,
            dispatcher="local",
            sender=recipient.sender,
            rcpt=recipient.rcpt,
            dest=recipient.rcpt,
            ctime=0,
            username=recipient.client.username,
            flags=Flag.AUTHENTICATED if recipient.client.username else Flag.NONE,
            dsn_notify=recipient.dsn_notify,
        )
        return Expansion(envelopes=(Sealed(encode_envelope(envelope), b"seal"),))

    async def filter(self, case: FilterCase) -> FilterOutcome:
        if self.fail:
            raise TempFail("lookup is being restarted")
        assert self.config is not None
        return await BuiltinFilters(self.config, self.tables).decide(case)

    async def client_name(self, address: str) -> ReverseName:
        found = self.names.get(address, "")
        return ReverseName(name=found, fcrdns="pass") if found else ReverseName()

    async def authenticate(self, login: Login, password: str) -> bool:
        if self.fail:
            raise TempFail("lookup is being restarted")
        return login.user in ("alice", "bob") and password == f"{login.user}-pw"

    async def check_token(self, login: Login, token: str) -> bool:
        return login.user == "alice" and token == "alice-token"

    async def offers_scram(self, generation: int, table: str) -> bool:
        if self.fail:
            raise TempFail("lookup is being restarted")
        return table == "scram"

    async def scram_salt(self, login: Login) -> tuple[bytes, int]:
        return (ALICE.salt, ALICE.iterations) if login.user == "alice" else (b"pepperpepper", ALICE.iterations)

    async def scram_signature(self, login: Login, message: bytes, proof: bytes) -> bytes:
        return ALICE.signature(message, proof) if login.user == "alice" else b""

    async def may_send_as(self, generation: int, table: str, user: str, sender: str) -> bool:
        return sender.lower() == f"{user}@example.org"

    async def host_name(self, generation: int, table: str, address: str) -> str:
        name = self.host_names.get(address, "")
        if isinstance(name, TempFail):
            raise name
        return name


class MemoryQueue:
    """Keeps what is committed."""

    def __init__(self) -> None:
        self.committed: list[NewMessage] = []
        self.bodies: dict[int, bytes] = {}
        self.discarded: list[int] = []
        self.fail: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.largest_chunk = 0
        self._next = 0x1000

    async def reserve(self, count: int) -> list[int]:
        self._next += count
        return list(range(self._next, self._next + count))

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        if self.gate is not None:
            await self.gate.wait()
        assert offset == len(self.bodies.get(msgid, b""))
        self.largest_chunk = max(self.largest_chunk, len(chunk))
        self.bodies[msgid] = self.bodies.get(msgid, b"") + chunk

    async def discard(self, msgid: int) -> None:
        self.bodies.pop(msgid, None)
        self.discarded.append(msgid)

    async def commit(self, message: NewMessage) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        if not message.streamed:
            self.bodies[message.msgid] = message.body
        assert len(self.bodies[message.msgid]) == message.size
        self.committed.append(message)

    def text(self, index: int = -1) -> str:
        """A committed message with LF line ends."""
        return self.bodies[self.committed[index].msgid].decode("latin-1").replace("\r\n", "\n")


class Dialogue:
    """A client: `send` a line, get the replies as text."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        lines = []
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 5)).decode("latin-1")
            if not line:
                return "\n".join([*lines, "closed"])
            lines.append(line.rstrip("\r\n"))
            if line[3:4] != "-":
                return "\n".join(lines)

    async def send(self, text: str | bytes, replies: int = 1) -> str:
        """Add CRLF to text without one; bytes go out as they are."""
        data = text if isinstance(text, bytes) else f"{text}\r\n".encode("latin-1")
        self.writer.write(data)
        return "\n".join([await self.reply() for _ in range(replies)])

    async def closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 5) == b""

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.writer.start_tls(context)

    async def message(self, text: str = "Subject: x\r\n\r\nbody\r\n", rcpt: str = "alice@example.org") -> str:
        """A whole transaction."""
        for line in ("MAIL FROM:<s@client.example.net>", f"RCPT TO:<{rcpt}>", "DATA"):
            answer = await self.send(line)
            if answer[0] not in "23":
                return answer
        return await self.send(text.encode("latin-1") + b".\r\n")


class World:
    """A server with everything around it."""

    def __init__(self, server: Server, lookup: MemoryLookup, queue: MemoryQueue, log: io.StringIO, port: int) -> None:
        self.server, self.lookup, self.queue, self.port = server, lookup, queue, port
        self._log = log

    @property
    def log(self) -> list[str]:
        """Lines without the session id."""
        return [line.partition(" ")[2] for line in self._log.getvalue().splitlines()]

    def configure(self, config: Config, *, listening: dict[str, int] | None = None) -> None:
        """Serve this configuration from now on, its listener 1 at the door unless said otherwise."""
        self.server.configure(
            config,
            {},
            listening={"door": 1} if listening is None else listening,
            local_addresses=frozenset(("127.0.0.1",)),
        )

    async def connect(self) -> Dialogue:
        return Dialogue(*await asyncio.open_connection("127.0.0.1", self.port))

    async def greeted(self, helo: str = "EHLO client.example.net") -> Dialogue:
        dialogue = await self.connect()
        await dialogue.reply()
        await dialogue.send(helo)
        return dialogue

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until something is so."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the conditions are states of sockets, too
                await asyncio.sleep(0.001)


@asynccontextmanager
async def world(
    listener: Listener | None = None,
    config: Config | None = None,
    contexts: dict[int, ssl.SSLContext] | None = None,
    max_sessions: int = 100,
    filters: "MemoryFilters | Between | None" = None,
) -> AsyncIterator[World]:
    """A running server; everything is closed behind it. `filters`: with the processors of the configuration."""
    listener = listener or Listener(id=1, hostname="mail.example.org")
    config = config or Config(hostname="host.example.org", listeners=(listener,))
    lookup, queue, text = MemoryLookup(), MemoryQueue(), io.StringIO()
    lookup.config = config
    background = Background()
    processors = make_processors(filters or MemoryFilters(), Log(text), background)
    server = Server(
        config=config,
        lookup=lookup,  # type: ignore[arg-type]
        queue=queue,  # type: ignore[arg-type]
        log=Log(text),
        now=lambda: 86400.0 * 365,
        tls_contexts=contexts or {},
        processors=processors,
        control_socket="/run/smtpd.sock",
        max_sessions=max_sessions,
        auth_delay=lambda: 0.0,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.add_socket("door", 1, listening)
        try:
            yield World(server, lookup, queue, text, listening.getsockname()[1])
        finally:
            await server.drain(0.1)
            await processors.told()
            background.stop()
