"""A queue and a lookup in memory, a scripted peer, and the two sides of outgoing mail joined as in one process."""

import asyncio
import io
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pillarbox.conf.model import Config, MtaLimits, Relay, Srs
from pillarbox.errors import TempFail
from pillarbox.filters.reports import Reports
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind, Notify, Outcome
from pillarbox.mta.relay import Relays
from pillarbox.mta.session import OutgoingSessions
from pillarbox.roles.delivery import Attempt
from pillarbox.roles.filters import EVENTS, SMTP_OUT
from pillarbox.roles.lookup import MxHost

CERTS = Path(__file__).parent.parent / "corpus/fixtures/certs"
AT_ONCE = {"session_keepalive": 0, "conn_delay_route": 0, "conn_delay_relay": 0, "reconn_delay_route": 0}
EHLO = ["250-peer", "250-DSN", "250 PIPELINING"]


class Peer:
    """Answers commands as `script` says (first word → reply or list of lines), "250 ok" otherwise.

    The replies `close` and `silence` do that. `sessions` are the lines received; bodies are in `messages`.
    """

    def __init__(self, script=None, *, greeting="220 peer", eom="250 taken", cert=None, immediate=False):
        self.script = {"EHLO": EHLO, "LHLO": EHLO, "DATA": "354 go", "QUIT": "221 bye", **(script or {})}
        self.greeting, self.eom, self.immediate = greeting, eom, immediate
        self.sessions, self.messages = [], []
        self.port = 0
        self.writers = []
        self._context = None
        if cert:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(CERTS / f"{cert}.crt", CERTS / f"{cert}.key")

    async def __aenter__(self):
        implicit = self._context if self.immediate else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=implicit, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self.writers:
            writer.close()

    def say(self, writer, reply):
        for line in [reply] if isinstance(reply, str) else reply:
            writer.write(line.encode() + b"\r\n")

    async def _serve(self, reader, writer):
        lines = []
        self.sessions.append(lines)
        self.writers.append(writer)
        try:
            if self.greeting != "silence":
                self.say(writer, self.greeting)
            while line := await reader.readline():
                text = line.decode().rstrip("\r\n")
                lines.append(text)
                reply = self.script.get(text.split(" ")[0], "250 ok")
                if callable(reply):
                    reply = reply(text)
                if reply == "close":
                    break
                if reply == "silence":
                    continue
                self.say(writer, reply)
                if text == "STARTTLS" and str(reply).startswith("220"):
                    await writer.start_tls(self._context)
                elif text == "DATA" and reply == "354 go":
                    self.messages.append((await reader.readuntil(b"\r\n.\r\n"))[:-3])
                    if self.eom != "silence":
                        self.say(writer, self.eom)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class Lookup:
    """Everything is at 127.0.0.1, unless `failure` says otherwise."""

    def __init__(self):
        self.failure = None
        self.mx = None
        self.tables = {}
        self.sources = []

    async def exchangers(self, domain, mx, family):
        if self.failure is not None:
            raise self.failure
        return self.mx or [MxHost(preference=0, name=domain, address="127.0.0.1")]

    async def reverse_name(self, address):
        return "localhost"

    async def credentials(self, generation, table, label):
        return self.tables.get(table, {}).get(label)

    async def relay_url(self, generation, table, domain):
        return self.tables.get(table, {}).get(domain, "")

    async def source_addresses(self, generation, table):
        return self.sources

    async def host_name(self, generation, table, address):
        return self.tables.get(table, {}).get(address, "")


class Queue:
    """Collects outcomes; `refuse` settlements fail first."""

    def __init__(self):
        self.outcomes: list[Outcome] = []
        self.bodies: dict[int, bytes] = {}
        self.refuse = 0
        self.told: Callable[[list[Outcome]], None] = lambda outcomes: None
        self.changed = asyncio.Event()

    async def settle(self, outcomes):
        if self.refuse:
            self.refuse -= 1
            raise TempFail("disk full")
        self.outcomes += outcomes
        self.told(outcomes)
        self.changed.set()

    async def read(self, msgid, offset, count):
        if msgid not in self.bodies:
            raise TempFail("gone")
        return self.bodies[msgid][offset : offset + count]


class Material:
    """The test certificates."""

    def authorities(self, generation, name):
        return (CERTS / f"{name}.crt").read_text()

    def pair(self, generation, name):
        return str(CERTS / f"{name}.crt"), str(CERTS / f"{name}.key")


class Mail:
    """Relays and one dispatcher's sessions. `listened_to`: filters whose sessions' events are kept in `events`."""

    def __init__(self, *actions: Relay, srs="", listened_to=(), **limits):
        self.reports, self.listened_to = [], listened_to
        self.stream = io.StringIO()
        self.log = Log(self.stream)
        self.lookup, self.queue = Lookup(), Queue()
        self.ready: list[str] = []
        self.scheduled: list[int] = []
        self.lost: list[tuple[int, int]] = []
        config = Config(
            hostname="our.example",
            actions={a.name: a for a in actions},
            mta=MtaLimits(**{**AT_ONCE, **limits}),
            srs=Srs(key=srs),
        )
        self.relays = Relays(
            config=config, lookup=self.lookup, dispatchers=[], settle=self.queue.settle, ready=self.ready.append,
            log=self.log, now=time.time, monotonic=time.monotonic, schedule=self.scheduled.append,
            lost=self.lost.extend,
        )  # fmt: skip
        self.queue.told = self.relays.settled
        self.sessions = OutgoingSessions(
            lookup=self.lookup, queue=self.queue, relays=self.relays, log=self.log, now=time.time,
            tls_material=Material(), reports_for=self.reports_for,
        )  # fmt: skip
        self.relays.add_dispatcher(self.sessions)
        self.count = 0

    def reports_for(self, order):
        if order.filter not in self.listened_to:
            return None
        listeners = dict.fromkeys(EVENTS, (self.reports.append,))
        return Reports(subsystem=SMTP_OUT, session=order.session, listeners=listeners, now=time.time)

    @property
    def events(self):
        """What was told, as `event|fields`."""
        return [f"{report.event}|{report.text}".rstrip("|") for report in self.reports]

    def send(self, *rcpts, body=b"Subject: x\r\n\r\n.dot\r\n", inline=True, sender="alice@example.org", **fields):
        """Hand one message over; its msgid."""
        self.count += 1
        if not inline:
            self.queue.bodies[self.count] = body
        self.relays.deliver(
            [
                Attempt(
                    envelope=Envelope(
                        evpid=self.count << 32 | number, kind=Kind.MTA, dispatcher="out", sender=sender,
                        rcpt=rcpt, dest=rcpt, ctime=int(time.time()), dsn_notify=Notify(fields.get("notify", 0)),
                    ),
                    attempt=1, destination=rcpt.partition("@")[2], size=len(body), body=body if inline else b"",
                    require_tls=fields.get("require_tls", False), smtputf8=fields.get("smtputf8", False),
                )
                for number, rcpt in enumerate(rcpts, 1)
            ]
        )  # fmt: skip
        return self.count

    async def settled(self, count=1):
        """Wait for that many outcomes; as (result, errorline)."""
        async with asyncio.timeout(8):
            while len(self.queue.outcomes) < count:
                self.queue.changed.clear()
                await self.queue.changed.wait()
        return [(o.result.value, o.errorline) for o in self.queue.outcomes]

    @property
    def lines(self):
        """The log."""
        return self.stream.getvalue().splitlines()

    async def logged(self, text):
        """Wait until a line has this text; that line."""
        async with asyncio.timeout(8):
            while not (found := [line for line in self.lines if text in line]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found[0]


def play(mail_and_test: Callable[[], Awaitable[None]]):
    """Run a test."""
    asyncio.run(mail_and_test())


class Running:
    """`async with Running(mail):` both sides at work."""

    def __init__(self, mail: Mail):
        self.mail = mail

    async def __aenter__(self):
        self.tasks = [asyncio.create_task(self.mail.relays.run()), asyncio.create_task(self.mail.sessions.run())]
        return self.mail

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
