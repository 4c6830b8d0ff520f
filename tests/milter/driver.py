"""The mail server's side of `filter-milter`, in lines of its protocol, on the pipes of a child process."""

import itertools
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType

from tests.sdk.child import Child, installed

HANDSHAKE = (
    "config|smtpd-version|7.8.0",
    "config|protocol|0.7",
    "config|smtp-session-timeout|300",
    "config|subsystem|smtp-in",
    "config|ready",
)
MESSAGE = (
    "From: alice@example.org",
    "To: bob@example.net",
    "Subject: greetings",
    "Message-ID: <1@example.org>",
    "",
    "Hello Bob,",
    ".a line with a dot",
    "Alice",
)
PROCEED = "proceed"


def received(msgid: str) -> list[str]:
    """The field that the server puts above a message."""
    return [
        "Received: from client.example.net (client.example.net [192.0.2.1])",
        f"\tby mail.example.org (OpenSMTPD) with ESMTP id {msgid}",
        "\tfor <bob@example.net>;",
        "\tThu, 26 Nov 2026 08:00:00 +0000 (UTC)",
    ]


class Bridge:
    """`filter-milter` with these arguments, after the handshake."""

    def __init__(self, *arguments: str) -> None:
        self._child = Child([sys.executable, installed("filter-milter"), *arguments], handshake=())
        self._tokens = itertools.count(1)
        self._sessions = itertools.count(1)
        self._answers: dict[str, list[str]] = defaultdict(list)
        self._sending = threading.Thread()
        self._child.send(*HANDSHAKE)
        self.registered: list[str] = []
        while (line := self._child.line()) != "register|ready":
            self.registered.append(line.removeprefix("register|"))

    def __enter__(self) -> "Bridge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, value, trace)

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._child.process.pid

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._child.log()

    def end(self) -> int:
        """Close its input; the exit status."""
        return self._child.end()

    def session(self) -> "Client":
        """A client that is not connected yet."""
        return Client(self, f"{next(self._sessions):016x}")

    def report(self, event: str, session: str, *fields: str) -> None:
        """Tell of an event."""
        self._send("|".join(["report|0.7|1700000000.000001|smtp-in", event, session, *fields]))

    def ask(self, phase: str, session: str, *fields: str) -> str:
        """Ask, and do not wait; the token."""
        token = f"{next(self._tokens):016x}"
        self._send("|".join(["filter|0.7|1700000000.000001|smtp-in", phase, session, token, *(fields or [""])]))
        return token

    def lines(self, session: str, lines: Sequence[str], *, ended: bool = True) -> str:
        """The lines of a message, with the dots of SMTP; the token. `ended`: with the dot that ends it."""
        token = f"{next(self._tokens):016x}"
        stuffed = ["." + line if line.startswith(".") else line for line in lines]
        start = f"filter|0.7|1700000000.000001|smtp-in|data-line|{session}|{token}|"
        self._send(*(start + line for line in [*stuffed, *["."] * ended]))
        return token

    def _send(self, *lines: str) -> None:
        """What is much is sent while answers are read, as a server does."""
        if self._sending.ident is not None:
            self._sending.join(20)
        if len(lines) < 1000:
            self._child.send(*lines)
            return
        self._sending = threading.Thread(target=self._child.send, args=lines, daemon=True)
        self._sending.start()

    def answer(self, token: str) -> str:
        """What it answers to that token, without what names the question."""
        while not self._answers[token]:
            kind, _, named, rest = self._child.line().split("|", 3)
            assert kind in ("filter-result", "filter-dataline")
            self._answers[named].append(rest)
        return self._answers[token].pop(0)

    def message(self, token: str) -> list[str]:
        """The lines that it gives back for that token."""
        lines = []
        while (line := self.answer(token)) != ".":
            lines.append(line.removeprefix("."))
        return lines


class Client:
    """One SMTP session. Every command returns the decision about it, and tells what the server would."""

    def __init__(self, bridge: Bridge, session: str) -> None:
        self.bridge = bridge
        self.id = session
        self._msgids = itertools.count(0xABC)
        self.msgid = ""

    def report(self, event: str, *fields: str) -> None:
        """Tell of an event."""
        self.bridge.report(event, self.id, *fields)

    def ask(self, phase: str, *fields: str) -> str:
        """Ask, and wait."""
        return self.bridge.answer(self.bridge.ask(phase, self.id, *fields))

    def connect(
        self, rdns: str = "client.example.net", src: str = "192.0.2.1:4711", *, fcrdns: str = "pass", ehlo: bool = True
    ) -> str:
        """Connect, and say EHLO; the decision about the connection."""
        self.report("link-connect", rdns, fcrdns, src, "192.0.2.25:25")
        decision = self.ask("connect", rdns, src.rpartition(":")[0])
        if decision == PROCEED:
            self.report("link-greeting", "mail.example.org")
            if ehlo:
                assert self.ehlo() == PROCEED
        return decision

    def ehlo(self, name: str = "client.example.net") -> str:
        """EHLO."""
        self.report("protocol-client", f"EHLO {name}")
        decision = self.ask("ehlo", name)
        if decision == PROCEED:
            self.report("link-identify", "EHLO", name)
        return decision

    def starttls(self) -> None:
        """STARTTLS, and EHLO again."""
        self.report("protocol-client", "STARTTLS")
        self.report("link-tls", "TLSv1.3:TLS_AES_256_GCM_SHA384:256")
        assert self.ehlo() == PROCEED

    def auth(self, user: str) -> None:
        """AUTH PLAIN."""
        self.report("protocol-client", "AUTH PLAIN ********")
        self.report("link-auth", "pass", user)

    def mail(self, sender: str = "alice@example.org", parameters: str = "") -> str:
        """MAIL."""
        self.report("protocol-client", f"MAIL FROM:<{sender}>{parameters}")
        decision = self.ask("mail-from", sender)
        if decision == PROCEED:
            self.msgid = f"{next(self._msgids):08x}"
            self.report("tx-begin", self.msgid)
            self.report("tx-mail", self.msgid, "ok", sender)
        return decision

    def rcpt(self, address: str = "bob@example.net", parameters: str = "", *, known: bool = True) -> str:
        """RCPT. `known`: does the server take it?"""
        self.report("protocol-client", f"RCPT TO:<{address}>{parameters}")
        decision = self.ask("rcpt-to", address)
        taken = decision == PROCEED and known
        if taken:
            self.report("tx-envelope", self.msgid, "abc")
        self.report("tx-rcpt", self.msgid, "ok" if taken else "permfail", address)
        return decision

    def data(self) -> str:
        """DATA."""
        self.report("protocol-client", "DATA")
        return self.ask("data")

    def content(self, lines: Sequence[str] = MESSAGE) -> list[str]:
        """The message, below the field that the server puts above it; what comes of it."""
        self.report("tx-data", self.msgid, "ok")
        return self.bridge.message(self.bridge.lines(self.id, [*received(self.msgid), *lines]))

    def commit(self) -> str:
        """May it be accepted? Then the transaction is over."""
        decision = self.ask("commit")
        self.report("tx-commit", self.msgid, "1") if decision == PROCEED else self.report("tx-rollback", self.msgid)
        self.reset()
        return decision

    def reset(self) -> None:
        """The transaction is over."""
        self.report("tx-reset", self.msgid)

    def begin(self, *recipients: str) -> None:
        """MAIL, RCPT and DATA, which all are taken."""
        assert self.mail() == PROCEED
        for each in recipients or ("bob@example.net",):
            assert self.rcpt(each) == PROCEED
        assert self.data() == PROCEED

    def deliver(self, lines: Sequence[str] = MESSAGE, recipients: Sequence[str] = ()) -> tuple[list[str], str]:
        """All of a message: what it has become without our Received field, and the decision at its end."""
        self.begin(*recipients)
        made = self.content(lines)
        gone = received(self.msgid)
        rest = [line for line in made if line not in gone]
        assert len(rest) == len(made) - len(gone)
        return rest, self.commit()

    def quit(self) -> None:
        """The session is over."""
        self.report("link-disconnect")
