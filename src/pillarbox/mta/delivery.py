"""One outgoing session from order to end: connect, greet, one transaction after the other, QUIT.

The order comes from `mta/relay` (queue), the tasks too; outcomes go to the queue through the `Reporter`. Log lines
and reasons are the reference's.
"""

import asyncio
import hashlib
import math
import ssl
from collections.abc import Callable

from pillarbox.errors import PillarboxError, TempFail
from pillarbox.filters.reports import Reports
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Notify, Outcome, Result
from pillarbox.mta.client_tls import ClientContexts, failure_text
from pillarbox.mta.events import LinkEvents, Passage
from pillarbox.mta.lines import log_delivery
from pillarbox.mta.link import ConnectError, Link, SourceError, describe
from pillarbox.mta.reporter import Reporter
from pillarbox.mta.route import bracketed
from pillarbox.roles.delivery import Relays, SessionEvent, SessionOrder, Task
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.queue import INLINE_BODY, Queue
from pillarbox.smtp.client_events import (
    Answered,
    BodyWanted,
    Closed,
    Event,
    Failed,
    Ready,
    Recipient,
    TlsWanted,
    Transaction,
)
from pillarbox.smtp.client_protocol import Client

_TRIED_MAX = 10  # transactions refused in a row, after which the peer is left alone
_ASK_MAX = 60.0  # seconds a single call for a task waits
_PAUSE = 0.1  # seconds before what the queue did not hear is repeated, doubled up to
_PAUSE_MAX = 30.0


class Delivery:
    """`run` is its whole life; `running` are the (evpid, attempt) without an outcome, `serving` means greeted.

    `reports`: None where nobody listens to the session.
    """

    def __init__(
        self,
        order: SessionOrder,
        *,
        lookup: Lookup,
        queue: Queue,
        relays: Relays,
        reporter: Reporter,
        contexts: ClientContexts,
        reports: Reports | None,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self.running: dict[int, int] = {}
        self.serving = False
        self.generation = order.generation
        self._order = order
        self._lookup = lookup
        self._queue = queue
        self._relays = relays
        self._reporter = reporter
        self._contexts = contexts
        self._reports = reports
        self._log = log
        self._now = now
        self._id = f"{order.session:016x}"
        self._peer = f"{bracketed(order.address)} ({order.host_for_log})" if order.host_for_log else order.address
        self._link: Link | None = None
        self._credentials = order.credentials
        self._task: Task | None = None
        self._part: list[int] = []  # which of its envelopes the transaction under way is for
        self._left: tuple[int, ...] = ()
        self._domains: set[str] = set()  # of recipients so far
        self._outcomes: list[Outcome] = []
        self._asking = False
        self._gone = False  # the queue was told, while we asked it for a task, that there is no session any more
        self._closing = False
        self._downgrade = False
        self._unprotected = ""  # why the peer does not do for REQUIRETLS,
        self._for_now = False  # until later

    async def run(self) -> None:
        """Hold the session. What it could not say to the queue is repeated until it is heard."""
        try:
            event = await self._hold()
        except Exception as error:  # noqa: BLE001 - whatever happened, the queue must not wait for this session
            self._log.exception(f"smtp-out: session {self._id}: unexpected error", error)
            event = self._closed() if self.serving else self._failed("Internal error", blame="relay")
        finally:
            if self._link is not None:
                self._link.close()
            self._interrupt()
        if not self._gone:
            await self._tell(event)

    def close(self) -> None:
        """End after the transaction under way."""
        self._closing = True
        self._leave()

    async def _hold(self) -> SessionEvent:
        order = self._order
        if order.auth_label and self._credentials is None:
            self._credentials = await self._secret()
            if self._credentials is None:
                return self._failed("Could not retrieve credentials", blame="credentials")
        try:
            greeted = await self._greet(order.protocol, order.tls)
            if not greeted and self._downgrade:
                self._log.info(f"smtp-out: Error on session {self._id}: opportunistic TLS failed, downgrading to plain")
                greeted = await self._greet("smtp+notls", "none")
        except SourceError as error:
            return self._failed(str(error), blame="source")
        except ConnectError as error:
            self._log.info(f"{self._id} mta error reason={error}")
            return self._failed(str(error), network=True)
        except TempFail as error:
            self._log.warn(f"smtp-out: {error}")
            return self._failed("TLS configuration cannot be used", blame="relay")
        if not greeted and order.require_tls and self._unprotected:
            return self._failed(self._unprotected, blame="tls-now" if self._for_now else "tls")
        if not greeted:
            return self._failed("", network=True)
        return await self._serve()

    def _failed(self, error: str, *, network: bool = False, blame: str = "") -> SessionEvent:
        return SessionEvent(session=self._order.session, state="failed", error=error, network=network, blame=blame)

    async def _secret(self) -> tuple[str, str] | None:
        order = self._order
        try:
            return await self._lookup.credentials(order.generation, order.auth_table, order.auth_label)
        except PillarboxError as error:
            self._log.warn(f"smtp-out: credentials {order.auth_table}:{order.auth_label}: {error}")
            return None

    # Until the peer is ready.

    async def _greet(self, scheme: str, tls: str) -> bool:
        """Connect and go through banner, EHLO, TLS and AUTH; False where the peer did not let us."""
        order = self._order
        context = self._contexts.context(order) if tls != "none" else None
        if self._link is not None:
            self._link.close()
        events = self._events()
        client = Client(
            helo=order.helo,
            lmtp=order.protocol == "lmtp",
            tls=tls,
            credentials=self._credentials,
            failures_max=order.failures_max,
            require_tls=order.require_tls,
            observer=events,
        )
        self._link = link = Link(client, answered=self._answered, broken=self._broken, events=events)
        self._log.info(
            f"{self._id} mta connecting address={scheme}://{bracketed(order.address)}:{order.port} "
            f"host={order.host_for_log or order.address}"
        )
        await link.connect(order.address, order.port, order.source, order.host_for_log)
        self._log.info(f"{self._id} mta connected")
        if tls == "immediate":
            await self._start_tls(link)
        while True:
            event = await link.milestone()
            if isinstance(event, TlsWanted) and context is not None:
                await self._start_tls(link)
            elif isinstance(event, Ready):
                return True
            elif isinstance(event, Failed):
                self._unprotected, self._for_now = self._unprotected or client.unprotected, client.for_now
                return False

    def _events(self) -> LinkEvents | None:
        """Those of one connection, where anybody wants them."""
        if self._reports is None:
            return None
        username = self._credentials[0] if self._credentials is not None else ""
        return LinkEvents(self._reports, lmtp=self._order.protocol == "lmtp", username=username)

    async def _start_tls(self, link: Link) -> None:
        order = self._order
        try:
            tls = await link.start_tls(self._contexts.context(order), order.host)
        except (OSError, ValueError) as error:  # TimeoutError and ssl.SSLError are OSErrors
            reason = failure_text(error, order.host)
            if isinstance(error, ssl.SSLError | ValueError):  # a connection that broke says nothing about the host
                self._unprotected = reason
            link.fail(f"IO Error: {reason}")
            return
        self._log.info(f"{self._id} mta tls ciphers={describe(tls)}")
        certificate = tls.getpeercert(binary_form=True)
        if certificate:
            result = "valid" if order.tls_verify else "unverified"
            fingerprint = hashlib.sha256(certificate).hexdigest()
            self._log.info(f'{self._id} mta cert-check result="{result}" fingerprint="SHA256:{fingerprint}"')
        else:
            self._log.info(f'{self._id} smtp cert-check result="no certificate presented"')

    # Transactions.

    async def _serve(self) -> SessionEvent:
        """Ask for tasks and send them until there are none, or the connection is of no more use."""
        link = self._link
        assert link is not None
        self.serving = True
        await self._tell(SessionEvent(session=self._order.session, state="ready"))
        first = True
        while not link.client.failed and self._may_go_on(link.client):
            if not first and self._order.transaction_delay:
                await asyncio.sleep(self._order.transaction_delay)
            first = False
            await self._reporter.room()
            task = await self._next_task() if not link.client.failed else None
            if task is None:
                break
            await self._send(link, task)
        if not link.client.failed and isinstance(await link.quit(), Closed):
            self._log.info(f"{self._id} mta disconnected reason=quit messages={link.client.delivered}")
        return self._closed()

    def _closed(self, *, unused: bool = False) -> SessionEvent:
        delivered = self._link.client.delivered if self._link is not None else 0
        return SessionEvent(
            session=self._order.session, state="closed", delivered=delivered, unused=unused, left=self._left
        )

    def _may_go_on(self, client: Client) -> bool:
        if client.tried >= _TRIED_MAX:
            self._log.info(f"{self._id} mta host-rejects-all-mails")
            return False
        if self._left or client.mails >= client.limits.mails:
            return False
        return not (client.spent or self._closing) and client.delivered < self._order.mails_max

    async def _next_task(self) -> Task | None:
        """A task, None where there is none within the keepalive, the queue does not answer, or we are gone."""
        left = self._order.keepalive
        self._asking = True
        try:
            while True:
                wait = min(left, _ASK_MAX)
                task = await self._relays.next_task(self._order.session, wait)
                left -= wait
                if task is not None or left <= 0 or self._gone:
                    break
        except PillarboxError as error:
            self._log.warn(f"smtp-out: session {self._id}: no task from the queue: {error}")
            return None
        finally:
            self._asking = False
        if task is None or self._gone:  # what was on its way to one that is gone was told to be unused
            return None
        self._task = task
        self.running.update(zip([e.evpid for e in task.envelopes], task.attempts, strict=True))
        return task

    async def _send(self, link: Link, task: Task) -> None:
        """A task to its end: one transaction, or as many as the peer's limits make of it (RFC 9422)."""
        rest = list(range(len(task.envelopes)))
        while rest and not (link.client.failed or link.client.spent):
            self._part = part = self._allowed(link.client, task, rest)
            if not part:
                break
            rest = [index for index in rest if index not in part]
            await self._send_part(link, task)
        self._left = tuple([task.envelopes[index].evpid for index in rest])
        for evpid in self._left:
            self.running.pop(evpid, None)
        self._task = None
        outcomes, self._outcomes = self._outcomes, []
        self._reporter.report(outcomes)

    def _allowed(self, client: Client, task: Task, rest: list[int]) -> list[int]:
        """The recipients that the next transaction may have; none: the session has had its share."""
        limits = client.limits
        if client.mails >= limits.mails:
            return []
        if limits.rcpt_domains == math.inf:
            return rest[: int(min(limits.rcpts, len(rest)))]
        part: list[int] = []
        for index in rest:
            domain = task.envelopes[index].dest_domain
            if domain in self._domains or len(self._domains) < limits.rcpt_domains:
                self._domains.add(domain)
                part.append(index)
            if len(part) >= limits.rcpts:
                break
        return part

    async def _send_part(self, link: Link, task: Task) -> None:
        """One transaction."""
        transaction = _transaction(task, self._part)
        if link.events is not None:
            recipients = tuple([(task.envelopes[i].evpid, task.envelopes[i].dest) for i in self._part])
            link.events.begin(Passage(task.msgid, task.sender, task.size, recipients))
        link.begin(transaction)
        event: Event = await link.milestone()
        if isinstance(event, BodyWanted):
            await self._send_body(link, task)
            event = await link.milestone()

    async def _send_body(self, link: Link, task: Task) -> None:
        """A body too large to come with the task: piece by piece from the queue."""
        offset = 0
        while offset < task.size and not link.client.failed:
            try:
                chunk = await self._queue.read(task.msgid, offset, INLINE_BODY)
            except PillarboxError as error:
                self._log.warn(f"smtp-out: session {self._id}: message {task.msgid:08x}: {error}")
                chunk = b""
            if not chunk:
                # Never a final dot after less than the whole.
                link.fail("Error reading content file")
                return
            offset += len(chunk)
            await link.send(chunk)
        if not link.client.failed:
            link.end_body()

    def _answered(self, event: Answered) -> None:
        """A recipient's result is known."""
        task, link = self._task, self._link
        if task is None or link is None:
            return
        index = self._part[event.index]
        envelope = task.envelopes[index]
        self._log_delivery(envelope, task.sender, event.result, event.text)
        taken = event.result is Result.OK
        self._outcomes.append(
            Outcome(
                evpid=envelope.evpid,
                attempt=task.attempts[index],
                result=event.result,
                errorline="" if taken else event.text,
                esc_class={Result.OK: 0, Result.PERMFAIL: 5}.get(event.result, 4),
                esc_code=event.code,
                relayed_without_dsn=taken and not link.client.offers_dsn,
                reply=event.text if taken else "",
                session=self._order.session,
            )
        )
        self.running.pop(envelope.evpid, None)

    def _log_delivery(self, envelope: Envelope, sender: str, result: Result, stat: str) -> None:
        source = bracketed(self._link.local_address) if self._link is not None else ""
        log_delivery(
            self._log, self._order.session, envelope, sender,
            source=source, relay=self._peer, now=self._now(), result=result, stat=stat,
        )  # fmt: skip

    # The end.

    def _broken(self, event: Failed) -> None:
        """The connection failed: say why, and let nobody wait for us."""
        link = self._link
        assert link is not None
        self._downgrade = link.client.handshaking
        if self._downgrade:
            return
        sent = link.client.delivered
        if sent:
            plural = "s" if sent > 1 else ""
            self._log.info(f"smtp-out: Error on session {self._id} after {sent} message{plural} sent: {event.text}")
        else:
            self._log.info(f"{self._id} mta error reason={event.text}")
        self._leave()

    def _leave(self) -> None:
        """Take no more: a call for a task is answered once the queue knows, and what was on its way goes to another."""
        if self._asking and not self._gone:
            self._gone = True
            self._reporter.jobs.start(self._tell(self._closed(unused=True)))

    async def _tell(self, event: SessionEvent) -> None:
        pause = _PAUSE
        while True:
            try:
                await self._relays.session_event(event)
            except PillarboxError as error:
                self._log.debug(f"smtp-out: session {self._id}: queue not told, repeating in {pause:g}s: {error}")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSE_MAX)
            else:
                return

    def _interrupt(self) -> None:
        """Whatever ended us, no attempt stays without an outcome."""
        task, self._task = self._task, None
        if task is not None:
            for envelope, attempt in zip(task.envelopes, task.attempts, strict=True):
                if self.running.pop(envelope.evpid, None) is not None:
                    self._outcomes.append(
                        Outcome(
                            evpid=envelope.evpid,
                            attempt=attempt,
                            result=Result.TEMPFAIL,
                            errorline="Delivery interrupted",
                            esc_class=4,
                            session=self._order.session,
                        )
                    )
        outcomes, self._outcomes = self._outcomes, []
        self._reporter.report(outcomes)


def _transaction(task: Task, part: list[int]) -> Transaction:
    envelopes = [task.envelopes[index] for index in part]
    first = envelopes[0]
    return Transaction(
        sender=task.sender,
        recipients=tuple([Recipient(e.dest, _notify(e.dsn_notify), e.dsn_orcpt) for e in envelopes]),
        size=task.size,
        body=task.body if task.body or not task.size else None,
        eight_bit=task.eight_bit,
        smtputf8=task.smtputf8,
        require_tls=task.require_tls,
        ret=first.dsn_ret,
        envid=first.dsn_envid,
    )


def _notify(notify: Notify) -> str:
    """NOTIFY's value as RFC 3461 §4.1 writes it."""
    if not notify:
        return ""
    values = (Notify.SUCCESS, Notify.FAILURE, Notify.DELAY, Notify.NEVER)
    return ",".join([value.name for value in values if notify & value and value.name])
