"""A client of the harness: what it does becomes the events and questions of a server, in the order of OpenSMTPD 7.8."""

import itertools
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from typing import Protocol

from pillarbox.sdk.filter.decisions import Decision, Verb, disconnect, proceed, reject
from pillarbox.sdk.filter.message import split
from pillarbox.sdk.filter.protocol import SMTP_IN, Phase, data_prefix, dialect

TIME = "1576146008.006099"
_RESPONSE_NAMES = {Phase.CONNECT: "connected", Phase.STARTTLS: "tls"}  # in filter-response, as the reference has them
_GOING_ON = {Verb.PROCEED, Verb.JUNK, Verb.REPORT, Verb.REWRITE}


class Server(Protocol):
    """What a client needs of the harness."""

    version: str

    def exchange(self, *lines: str) -> list[str]:
        """What the filter writes when these lines come."""
        ...

    def wants(self, stream: str, name: str) -> bool:
        """Has the filter registered this event or phase?"""
        ...


@dataclass
class Transaction:
    """What a client has begun to send."""

    msgid: str
    sender: str
    rcpts: list[str] = field(default_factory=list)


class Client:
    """One session. Each step returns the session, so that they can be chained.

    As with a server, a step that is not possible, as an earlier one was refused, is answered 503 and put to no filter.
    """

    def __init__(self, harness: Server, id: str, hostname: str) -> None:
        self.id = id
        self.decisions: list[tuple[str, Decision]] = []  # (phase, decision), in their order
        self.reports: list[str] = []
        self.reply = ""  # what the client read last
        self.closed = self.junk = False
        self.delivered: bytes | None = None  # the last message that was accepted, with CRLF
        self._harness = harness
        self._words = dialect(harness.version)
        self._hostname = hostname
        self._greeted = False
        self._transaction: Transaction | None = None
        self._numbers = itertools.count(1)

    @property
    def decision(self) -> Decision:
        """The last decision; `proceed()` where the filter was not asked."""
        return self.decisions[-1][1] if self.decisions else proceed()

    @property
    def accepted(self) -> bool:
        """Was the last step answered in the affirmative?"""
        return self.reply[:1] in ("2", "3")

    @property
    def sender(self) -> str:
        """As accepted, rewritten perhaps."""
        return self._transaction.sender if self._transaction else ""

    @property
    def rcpts(self) -> list[str]:
        """As accepted, rewritten perhaps."""
        return list(self._transaction.rcpts) if self._transaction else []

    # Steps

    def connect(self, address: str, rdns: str, fcrdns: str) -> "Client":
        """See Harness.session."""
        ip = f"[{address}]" if ":" in address else address
        src, dest = (f"{ip}:33174", "192.0.2.25:25") if address != "local" else ("unix:/var/run/smtpd.sock",) * 2
        self._tell("link-connect", f"{rdns}|{fcrdns}|{src}|{dest}")
        decision = self._ask(Phase.CONNECT, f"{rdns}|{ip}")
        self.closed = self.closed or decision.verb is Verb.REJECT
        self._answer(decision, f"220 {self._hostname} ESMTP Pillarbox")
        if not self.closed:
            self._tell("link-greeting", self._hostname)
        return self._hang_up_if_closed()

    def ehlo(self, identity: str = "client.example.net") -> "Client":
        """EHLO."""
        return self._identify(Phase.EHLO, "EHLO", identity)

    def helo(self, identity: str = "client.example.net") -> "Client":
        """HELO."""
        return self._identify(Phase.HELO, "HELO", identity)

    def _identify(self, phase: Phase, method: str, identity: str) -> "Client":
        if not self._command(f"{method} {identity}", True):
            return self
        decision = self._ask(phase, identity)
        if decision.verb in _GOING_ON:
            self._greeted = True
            self._tell("link-identify", f"{method}|{decision.text if decision.verb is Verb.REWRITE else identity}")
        reply = f"250 {self._hostname} Hello {identity}, pleased to meet you"
        return self._answer(decision, reply, self._roll_back if decision.verb in _GOING_ON else None)

    def starttls(self, description: str = "TLSv1.3:TLS_AES_256_GCM_SHA384:256") -> "Client":
        """STARTTLS, and the handshake."""
        if not self._command("STARTTLS", self._greeted):
            return self
        decision = self._ask(Phase.STARTTLS, "")
        self._answer(decision, "220 2.0.0 Ready to start TLS")
        if decision.verb in _GOING_ON:
            self._tell("link-tls", description)
        return self

    def auth(self, username: str, password: str = "", *, result: str = "pass") -> "Client":
        """AUTH PLAIN; `result`: pass, fail or error."""
        if not self._command("AUTH PLAIN ********", self._greeted):
            return self
        response = "\0".join(["", username, password]).encode()  # RFC 4616 §2
        decision = self._ask(Phase.AUTH, f"PLAIN {b64encode(response).decode()}")
        if decision.verb not in _GOING_ON:
            return self._answer(decision, "")
        fields = [username, result] if self._words.username_first else [result, username]
        self._tell("link-auth", "|".join(fields))
        return self._answer(
            decision, "235 2.0.0 Authentication succeeded" if result == "pass" else "535 Authentication failed"
        )

    def mail(self, sender: str, parameters: str = "") -> "Client":
        """MAIL FROM."""
        if not self._command(f"MAIL FROM:<{sender}> {parameters}".rstrip(), self._greeted and not self._transaction):
            return self
        decision = self._ask(Phase.MAIL_FROM, sender)
        self._answer(decision, "250 2.0.0 Ok")
        if decision.verb in _GOING_ON:
            self._transaction = Transaction(f"{next(self._numbers):08x}", _address(decision, sender))
            self._tell("tx-begin", self._transaction.msgid)
            self._tell_address("tx-mail", self._transaction.sender, decision)
        return self

    def rcpt(self, address: str, parameters: str = "") -> "Client":
        """RCPT TO."""
        transaction = self._transaction
        if not self._command(f"RCPT TO:<{address}> {parameters}".rstrip(), transaction is not None):
            return self
        assert transaction is not None
        decision = self._ask(Phase.RCPT_TO, address)
        if decision.verb in _GOING_ON:
            transaction.rcpts.append(_address(decision, address))
            self._tell("tx-envelope", f"{transaction.msgid}|{transaction.msgid}{len(transaction.rcpts):08x}")
        reply = "250 2.1.5 Destination address valid: Recipient ok"
        return self._answer(
            decision, reply, lambda: self._tell_address("tx-rcpt", _address(decision, address), decision)
        )

    def message(self, message: bytes | str | EmailMessage) -> "Client":
        """DATA, the message, and its end. Line ends may be of either kind; dots are stuffed here."""
        transaction = self._transaction
        if not self._command("DATA", transaction is not None and bool(transaction.rcpts)):
            return self
        assert transaction is not None
        decision = self._ask(Phase.DATA, "")
        self._answer(decision, '354 Enter mail, end with "." on a line by itself', lambda: self._tell_data(decision))
        if decision.verb not in _GOING_ON:
            return self  # the transaction goes on: DATA may come again
        lines = self._filtered(split(_bytes(message)))
        self._tell("protocol-client", ".")
        decision = self._ask(Phase.COMMIT, "")
        if decision.verb not in _GOING_ON:
            return self._answer(decision, "", lambda: self._roll_back(decision))
        self._answer(decision, f"250 2.0.0 {transaction.msgid} Message accepted for delivery")
        self.delivered = "".join(f"{line}\r\n" for line in lines).encode(errors="surrogateescape")
        self._tell("tx-commit", f"{transaction.msgid}|{len(self.delivered)}")
        self._end_transaction()
        return self

    def rset(self) -> "Client":
        """RSET."""
        if self._command("RSET", True):
            decision = self._ask(Phase.RSET, "")
            self._answer(decision, "250 2.0.0 Reset state", self._roll_back if decision.verb in _GOING_ON else None)
        return self

    def noop(self, text: str = "") -> "Client":
        """NOOP."""
        if self._command(f"NOOP {text}".rstrip(), True):
            self._answer(self._ask(Phase.NOOP, text), "250 2.0.0 Ok")
        return self

    def quit(self) -> "Client":
        """QUIT, and the end of the session."""
        if self._command("QUIT", True):
            decision = self._ask(Phase.QUIT, "")
            self._answer(decision, "221 2.0.0 Bye", self.close if decision.verb in _GOING_ON else None)
        return self

    def close(self) -> "Client":
        """The client is gone."""
        if not self.closed:
            self.closed = True
            self._hang_up_if_closed()
        return self

    # What the server does

    def _command(self, line: str, possible: bool) -> bool:
        if self.closed:
            return False
        self._tell("protocol-client", line)
        if not possible:
            self._say("503 5.5.1 Invalid command: Command not allowed at this point.")
        return possible

    def _answer(self, decision: Decision, reply: str, then: Callable[[], object] | None = None) -> "Client":
        """Say it, tell what comes of it, and hang up where that was decided."""
        self.junk = self.junk or decision.verb is Verb.JUNK
        refused = decision.verb not in _GOING_ON
        self._say(decision.text if refused else reply)
        if then is not None:
            then()
        if decision.verb is Verb.DISCONNECT or (refused and decision.text.startswith("421")):
            self.close()
        return self

    def _say(self, reply: str) -> None:
        self.reply = reply
        self._tell("protocol-server", reply)

    def _roll_back(self, decision: Decision | None = None) -> None:
        if self._transaction is not None:
            if decision is not None:  # about the message
                self._tell_data(decision)
            self._tell("tx-rollback", self._transaction.msgid)
            self._end_transaction()

    def _end_transaction(self) -> None:
        if self._transaction is not None:
            self._tell("tx-reset", self._transaction.msgid)
            self._transaction = None

    def _hang_up_if_closed(self) -> "Client":
        if self.closed:
            self._roll_back()
            self._tell("link-disconnect", None)
        return self

    def _tell(self, event: str, text: str | None) -> None:
        if self._harness.wants("report", event):
            fields = "" if text is None else f"|{text}"
            line = f"report|{self._harness.version}|{TIME}|{SMTP_IN}|{event}|{self.id}{fields}"
            for said in self._harness.exchange(line):
                assert self._is_report(said), f"{event} was answered: {said}"

    def _tell_data(self, decision: Decision) -> None:
        assert self._transaction is not None
        self._tell("tx-data", f"{self._transaction.msgid}|{_result(decision)}")

    def _tell_address(self, event: str, address: str, decision: Decision) -> None:
        assert self._transaction is not None
        fields = [address, _result(decision)] if self._words.address_first else [_result(decision), address]
        self._tell(event, "|".join([self._transaction.msgid, *fields]))

    def _ask(self, phase: Phase, param: str) -> Decision:
        decision = proceed()
        if self._harness.wants("filter", phase):
            token = f"{next(self._numbers):016x}"
            asked = f"filter|{self._harness.version}|{TIME}|{SMTP_IN}|{phase}|{self.id}|{token}|{param}"
            answers = [line for line in self._harness.exchange(asked) if not self._is_report(line)]
            assert len(answers) == 1, f"{phase} has {len(answers)} answers: {answers}"
            ids = (token, self.id) if self._words.token_first else (self.id, token)
            decision = _parse_result(answers[0], ids)
            self.decisions.append((phase, decision))
        response = f"{decision.verb}|{decision.text}" if decision.text else decision.verb
        self._tell("filter-response", f"{_RESPONSE_NAMES.get(phase, phase)}|{response}")
        return decision

    def _filtered(self, lines: list[str]) -> list[str]:
        """The message as it comes out of the filter."""
        if not self._harness.wants("filter", Phase.DATA_LINE):
            return lines
        token = f"{next(self._numbers):016x}"
        start = f"filter|{self._harness.version}|{TIME}|{SMTP_IN}|{Phase.DATA_LINE}|{self.id}|{token}|"
        stuffed = [f".{line}" if line.startswith(".") else line for line in lines]
        written = self._harness.exchange(*(f"{start}{line}" for line in [*stuffed, "."]))
        prefix = data_prefix(self._words, self.id, token)
        passed = [line for line in written if not self._is_report(line)]
        assert all(line.startswith(prefix) for line in passed), f"not of this message: {passed}"
        passed = [line.removeprefix(prefix) for line in passed]
        assert passed and passed.index(".") == len(passed) - 1, f"a message ends with a dot, once: {passed}"
        return [line.removeprefix(".") for line in passed[:-1]]

    def _is_report(self, line: str) -> bool:
        if not line.startswith("report|"):
            return False
        _, when, subsystem, session, text = line.split("|", 4)
        assert float(when) > 0 and subsystem == SMTP_IN and session == self.id, f"not a report: {line}"
        self.reports.append(text)
        return True


def _parse_result(line: str, ids: tuple[str, str]) -> Decision:
    start = "|".join(["filter-result", *ids, ""])
    assert line.startswith(start), f"not an answer to what was asked ({start}): {line}"
    verb, bar, text = line.removeprefix(start).partition("|")
    assert bool(bar) == (verb not in (Verb.PROCEED, Verb.JUNK)), f"a parameter too many or too few: {line}"
    assert verb in set(Verb), f"no decision: {line}"
    try:
        made = {Verb.REJECT: reject, Verb.DISCONNECT: disconnect}.get(Verb(verb))
        return made(text) if made else Decision(Verb(verb), text)
    except ValueError as error:
        raise AssertionError(f"{error}: {line}") from None


def _result(decision: Decision) -> str:
    """What events call it."""
    if decision.verb in _GOING_ON:
        return "ok"
    return "tempfail" if decision.text.startswith("4") else "permfail"


def _address(decision: Decision, address: str) -> str:
    """The address, or what it was rewritten to, without brackets and parameters."""
    if decision.verb is not Verb.REWRITE:
        return address
    return decision.text.partition(">")[0].removeprefix("<")


def _bytes(message: bytes | str | EmailMessage) -> bytes:
    if isinstance(message, EmailMessage):
        return message.as_bytes(policy=SMTP)
    return message.encode(errors="surrogateescape") if isinstance(message, str) else message
