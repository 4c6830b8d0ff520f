"""The filter: takes what the mail server reports and asks to the sessions, and their verdicts back as decisions."""

from collections.abc import Callable, Iterable
from datetime import datetime

from pillarbox.milter.client import Milter
from pillarbox.milter.dialogue import Outcome, Verdict
from pillarbox.milter.facts import Facts
from pillarbox.milter.macros import Macros
from pillarbox.milter.session import Policy, Session, Trouble
from pillarbox.sdk.filter import (
    Decision,
    Filter,
    LinkAuth,
    LinkConnect,
    LinkDisconnect,
    LinkGreeting,
    LinkIdentify,
    LinkTLS,
    ProtocolClient,
    TxBegin,
    TxRcpt,
    TxReset,
    disconnect,
    proceed,
    reject,
)
from pillarbox.sdk.filter import Session as Link

_SPARE = 5.0  # seconds beyond our own deadline after which the SDK gives up on us
_FAULT = "451 4.7.1 Service unavailable, please try again later"


class Bridge:
    """`hostname`: what the server is taken to be called until it has greeted."""

    def __init__(
        self, *, milter: Milter, names: Macros, policy: Policy, hostname: str, now: Callable[[], datetime]
    ) -> None:
        self._milter = milter
        self._names = names
        self._policy = policy
        self._hostname = hostname
        self._now = now
        self._trouble = Trouble()
        self.filter: Filter[Session] = Filter(
            state=self._session, on_error=reject(_FAULT), deadline=policy.answer + _SPARE, remember=False
        )
        self._listen()
        self._answer()

    def _session(self) -> Session:
        version = self.filter.config.get("smtpd-version", "")
        return Session(
            milter=self._milter,
            names=self._names,
            facts=Facts(self._hostname, f"OpenSMTPD {version}".strip()),
            policy=self._policy,
            trouble=self._trouble,
            now=self._now,
        )

    def _listen(self) -> None:
        on = self.filter.on

        @on.link_connect
        def connected(link: Link[Session], event: LinkConnect) -> None:
            link.state.facts.connected(event.rdns, event.fcrdns, event.src, event.dest)

        @on.link_greeting
        def greeted(link: Link[Session], event: LinkGreeting) -> None:
            link.state.facts.hostname = event.hostname

        @on.link_identify
        def identified(link: Link[Session], event: LinkIdentify) -> None:
            link.state.facts.identified(event.method, event.identity)

        @on.link_tls
        def encrypted(link: Link[Session], event: LinkTLS) -> None:
            link.state.facts.encrypted(event.description)

        @on.link_auth
        def authenticated(link: Link[Session], event: LinkAuth) -> None:
            if event.result == "pass":
                link.state.facts.user = event.username

        @on.protocol_client
        def said(link: Link[Session], event: ProtocolClient) -> None:
            link.state.facts.said(event.line)

        @on.tx_begin
        def begun(link: Link[Session], event: TxBegin) -> None:
            if tx := link.state.facts.transaction:
                tx.msgid = event.msgid

        @on.tx_rcpt
        async def decided(link: Link[Session], event: TxRcpt) -> None:
            if event.result != "ok":
                await link.state.refused(event.address, event.result == "permfail")
            elif tx := link.state.facts.transaction:
                tx.recipients.append(event.address)

        @on.tx_reset
        def ended(link: Link[Session], event: TxReset) -> None:
            link.state.reset()

        @on.link_disconnect
        def gone(link: Link[Session], event: LinkDisconnect) -> None:
            link.state.disconnect()

    def _answer(self) -> None:
        on = self.filter.on

        @on.connect
        async def connect(link: Link[Session], address: str) -> Decision:
            return _at_connect(await link.state.connect())

        @on.helo
        async def helo(link: Link[Session], identity: str) -> Decision:
            link.state.facts.identified("HELO", identity)
            return _decision(await link.state.helo())

        @on.ehlo
        async def ehlo(link: Link[Session], identity: str) -> Decision:
            link.state.facts.identified("EHLO", identity)
            return _decision(await link.state.helo())

        @on.mail_from
        async def mail(link: Link[Session], sender: str) -> Decision:
            return _decision(await link.state.mail(sender))

        @on.rcpt_to
        async def rcpt(link: Link[Session], address: str) -> Decision:
            return _decision(await link.state.rcpt(address))

        @on.data
        async def data(link: Link[Session]) -> Decision:
            return _decision(await link.state.data())

        @on.data_line
        def line(link: Link[Session], text: str) -> Iterable[str]:
            return map(_text, link.state.line(text.encode(errors="surrogateescape")))

        @on.data_end
        async def end(link: Link[Session]) -> Iterable[str]:
            return map(_text, await link.state.end())

        @on.commit
        def commit(link: Link[Session]) -> Decision:
            return _decision(link.state.commit())


def _text(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


def _decision(verdict: Verdict) -> Decision:
    if verdict.outcome is Outcome.REFUSE:
        return reject(verdict.reply)
    if verdict.outcome is Outcome.DISCONNECT:
        return disconnect(verdict.reply)
    return proceed()


def _at_connect(verdict: Verdict) -> Decision:
    """RFC 5321 §4.3.2: where the greeting is due, only 421 and 554 can be said instead."""
    if verdict.outcome not in (Outcome.REFUSE, Outcome.DISCONNECT):
        return proceed()
    code = "421" if verdict.reply.startswith("4") else "554"
    return disconnect(code + verdict.reply[3:])
