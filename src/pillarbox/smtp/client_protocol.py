"""The client's side of SMTP and LMTP, sans-IO: bytes of the peer in, events and bytes to write out.

`mta/delivery` owns one per connection: it feeds what it read, writes `output()`, and acts on the events. What a
transaction becomes (outcomes, log lines, the next one) is decided there. RFC 5321, 2033, 2920, 3207, 3461, 4954.
"""

import base64
import re
from collections import deque
from collections.abc import Callable

from pillarbox.mail.envelope import Result
from pillarbox.smtp.client_data import DotStuffer
from pillarbox.smtp.client_events import (
    Answered,
    BodyWanted,
    Closed,
    Event,
    Failed,
    Finished,
    Ready,
    TlsWanted,
    Transaction,
)
from pillarbox.smtp.client_offer import Limits, Offer, Refusal, Wording, word
from pillarbox.smtp.client_steps import Observer, Step

_LINE_MAX = 2048  # bytes of one reply line, as the reference's buffer
_TEXT_MAX = 2048  # characters kept of a multi-line reply
_LINES_MAX = 1000  # of one reply: EHLO has a few dozen
_HELD_MAX = 65536  # bytes a peer may send while the body is on its way
_STATUS = re.compile(r"\d\.\d\.\d(?=\s)")
_MASKED = {  # how lines with secrets are shown
    Step.AUTH_PLAIN: "AUTH PLAIN ********",
    Step.AUTH_USER: "********",
    Step.AUTH_PASSWORD: "********",
}


class Client:
    """One connection's protocol. `tls`: none, opportunistic, required, immediate (see `roles.delivery.SessionOrder`).

    `require_tls`: the peer must offer REQUIRETLS (RFC 8689); `unprotected` is why it does not do, `for_now` says that
    it may do later.
    `credentials` are used on a TLS connection only. `failures_max` refused recipients in a row end the session
    (0: never). Counters: `delivered` messages, `tried` transactions since the last success, `mails` begun in all.
    `observer` is told every line, if anybody wants to know.
    """

    def __init__(
        self,
        *,
        helo: str,
        lmtp: bool = False,
        tls: str = "none",
        credentials: tuple[str, str] | None = None,
        failures_max: int = 0,
        require_tls: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.delivered = 0
        self.tried = 0
        self.mails = 0
        self.spent = False
        self.failed = False
        self.closed = False
        self._helo = helo
        self._lmtp = lmtp
        self._tls = tls
        self._tls_active = False
        self._starttls_sent = False
        self._credentials = credentials
        self._failures_max = failures_max
        self._require_tls = require_tls
        self._observer = observer
        self.unprotected = ""
        self.for_now = False
        self._failures = 0
        self._offer = Offer()
        self._buffer = bytearray()
        self._reply = ""
        self._reply_lines = 0
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._expect: deque[Step] = deque((Step.BANNER,))
        self._tx: Transaction | None = None
        self._wording = Wording(b"", ())
        self._unanswered: list[int] = []  # recipients of the transaction without a result, in order
        self._asked = 0  # recipients whose RCPT was sent
        self._heard = 0  # recipients whose RCPT was answered
        self._accepted: deque[int] = deque()
        self._sending_body = False
        self._stuffer = DotStuffer()

    # What the shell asks and says.

    @property
    def offers_dsn(self) -> bool:
        """Does the peer take responsibility for delivery reports (RFC 3461)?"""
        return "DSN" in self._offer

    @property
    def limits(self) -> Limits:
        """What the peer takes."""
        return self._offer.limits

    @property
    def handshaking(self) -> bool:
        """Was opportunistic STARTTLS sent, and is TLS not established? Whoever breaks now is tried again in clear."""
        return self._starttls_sent and self._tls == "opportunistic"

    @property
    def in_transaction(self) -> bool:
        """Is a transaction under way?"""
        return self._tx is not None

    @property
    def awaits_verdict(self) -> bool:
        """Was the message sent, and is its fate what the peer has to say next?"""
        return bool(self._expect) and self._expect[0] is Step.EOM

    def output(self) -> bytes:
        """What is to be written now."""
        if not self._out:
            return b""
        data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        return data

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes of the peer."""
        events: list[Event] = []
        self._events = events
        self._buffer += data
        if self._sending_body:
            if len(self._buffer) > _HELD_MAX:
                self._fail("Remote host sent too much data")
            return events
        self._consume()
        return events

    def tls_started(self) -> list[Event]:
        """The handshake succeeded: after STARTTLS greet anew, with immediate TLS the banner comes now."""
        self._events = []
        self._tls_active = True
        self._offer = Offer(tls=True)
        self._starttls_sent = False
        if Step.BANNER not in self._expect:
            self._send(b"EHLO " + self._helo.encode(), Step.EHLO)
        return self._events

    def begin(self, transaction: Transaction) -> list[Event]:
        """Start a transaction. What the peer cannot take is answered at once, without asking it."""
        self._events = []
        self._tx = transaction
        self._unanswered = list(range(len(transaction.recipients)))
        self._asked = self._heard = 0
        self._accepted.clear()
        wording = word(self._offer, transaction)
        if isinstance(wording, Refusal):
            self._answer_all(Result.PERMFAIL, wording.text, wording.code)
            self._finish()
            return self._events
        self._wording = wording
        for index, refusal in wording.refused:
            self._answer(index, Result.PERMFAIL, refusal.text, refusal.code)
        self.tried += 1
        self.mails += 1
        self._send(wording.mail, Step.MAIL)
        if "PIPELINING" in self._offer:
            while self._asked < len(wording.rcpts):
                self._send_rcpt()
            self._send(b"DATA", Step.DATA)
        return self._events

    def body_chunk(self, chunk: bytes) -> None:
        """Send a piece of the body."""
        self._out.append(self._stuffer.feed(chunk))

    def body_end(self) -> list[Event]:
        """The body is complete: end it, and look at what the peer may have said meanwhile."""
        self._events = []
        self._sending_body = False
        self._end_of_data(self._stuffer.end())
        self._expect_eom()
        if self._buffer:
            self._consume()
        return self._events

    def quit(self) -> None:
        """Say QUIT; `Closed` or the end of the connection follows."""
        self._send(b"QUIT", Step.QUIT)

    def eof(self) -> list[Event]:
        """The peer closed."""
        return self.fail("Connection closed unexpectedly")

    def fail(self, text: str) -> list[Event]:
        """The connection broke, or a deadline passed."""
        self._events = []
        if not (self.failed or self.closed):
            self._fail(text)
        return self._events

    # Replies.

    def _consume(self) -> None:
        # A reply can only answer what was sent before it came: more than that was injected, or the peer is confused.
        due = len(self._expect)
        while due and not self.failed:
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) >= _LINE_MAX:
                    self._fail("Input too long")
                return
            line = self._buffer[: end - 1 if end and self._buffer[end - 1] == 13 else end]
            del self._buffer[: end + 1]
            due -= self._line(_visible(line.decode("utf-8", "backslashreplace")))
            if self._sending_body:
                return
        if self._buffer and not self.failed:
            self._show_unasked()
            idle_close = not self._tx and self._buffer.startswith(b"4")  # RFC 5321 §3.8: 421 at any time
            self._fail("Connection closed unexpectedly" if idle_close else "Remote host sent too much data")

    def _show_unasked(self) -> None:
        if self._observer is not None:
            line = self._buffer[:_LINE_MAX].partition(b"\n")[0].rstrip(b"\r")
            self._observer.heard(_visible(line.decode("utf-8", "backslashreplace")))

    def _line(self, line: str) -> bool:
        """One line of a reply; True when it was the last one."""
        if self._observer is not None:
            self._observer.heard(line)
        error = _reply_error(line)
        if error:
            self._fail(f"Bad response: {error}")
            return False
        step = self._expect[0]
        if step in (Step.EHLO, Step.LHLO) and self._reply_lines:
            self._offer.note(line[4:])
        self._reply_lines += 1
        if self._reply_lines > _LINES_MAX:
            self._fail("Input too long")
            return False
        last = line[3:4] != "-"
        self._gather(line, last)
        if not last:
            return False
        reply, self._reply, self._reply_lines = self._reply, "", 0
        self._expect.popleft()
        if self._observer is not None:
            self._observer.replied(step, reply)
        _ON_REPLY[step](self, reply)
        return True

    def _gather(self, line: str, last: bool) -> None:
        """Join the lines of a reply to one.

        COMPAT: codes of later lines are dropped, and so is the space before a text without an enhanced code.
        """
        if not self._reply:
            self._reply = line
            return
        text = line[4:]
        text = text[5:] if _STATUS.match(text) else text
        if len(self._reply) + len(text) < _TEXT_MAX:
            self._reply += text
        elif last:
            self._reply = line

    def _on_banner(self, reply: str) -> None:
        if reply[0] != "2":
            self._fail(f"BANNER rejected: {reply}")
        elif self._lmtp:
            self._send(b"LHLO " + self._helo.encode(), Step.LHLO)
        else:
            self._send(b"EHLO " + self._helo.encode(), Step.EHLO)

    def _on_ehlo(self, reply: str) -> None:
        if reply[0] != "2":
            if self._credentials is not None or self._tls in ("required", "immediate"):
                self._fail(f"EHLO rejected: {reply}")
            else:
                self._offer = Offer()
                self._send(b"HELO " + self._helo.encode(), Step.HELO)
        elif self._tls == "none":
            self._events.append(Ready())
        elif self._tls_active:
            self._authenticate()
        elif "STARTTLS" in self._offer:
            self._starttls_sent = True
            self._send(b"STARTTLS", Step.STARTTLS)
        elif self._tls == "required":
            self._refuse_peer("TLS required but not supported by remote host")
        else:
            self._authenticate()

    def _on_helo(self, reply: str) -> None:
        if reply[0] == "2":
            self._events.append(Ready())
        else:
            self._fail(f"HELO rejected: {reply}")

    def _on_lhlo(self, reply: str) -> None:
        if reply[0] == "2":
            self._events.append(Ready())
        else:
            self._fail(f"LHLO rejected: {reply}")

    def _on_starttls(self, reply: str) -> None:
        if reply[0] == "2":
            # RFC 3207 §4.2: forget what was learned in clear.
            self._offer = Offer()
            self._events.append(TlsWanted())
        elif self._tls != "required":
            self._starttls_sent = False
            self._authenticate()
        elif reply.startswith("421"):  # it serves nobody now
            self._fail(f"STARTTLS rejected: {reply}")
        else:  # RFC 3207 §4: 454 is of now, and says nothing about what the peer can do
            self.for_now = reply[0] != "5"
            self._refuse_peer(f"STARTTLS rejected: {reply}")

    def _refuse_peer(self, text: str) -> None:
        self.unprotected = text
        self._fail(text)

    def _authenticate(self) -> None:
        if self._require_tls and not self._offer.protects:
            self._refuse_peer("REQUIRETLS not offered by remote host")
        elif self._credentials is None:
            self._events.append(Ready())
        elif not self._tls_active:
            self._fail("Refuse to AUTH over insecure channel")
        elif "AUTH" not in self._offer:
            self._fail("AUTH not advertised")
        else:
            mechanisms = self._offer.words("AUTH")
            if "PLAIN" in mechanisms:
                user, password = self._credentials
                self._send(b"AUTH PLAIN " + _base64(f"\0{user}\0{password}"), Step.AUTH_PLAIN)
            elif "LOGIN" in mechanisms:
                self._send(b"AUTH LOGIN", Step.AUTH_LOGIN)
            else:
                self._fail("no supported AUTH method")

    def _on_auth_done(self, reply: str) -> None:
        if reply[0] == "2":
            self._events.append(Ready())
        else:
            self._fail(f"AUTH rejected: {reply}")

    def _on_auth_login(self, reply: str) -> None:
        self._continue_login(reply, 0, Step.AUTH_USER)

    def _on_auth_user(self, reply: str) -> None:
        self._continue_login(reply, 1, Step.AUTH_PASSWORD)

    def _continue_login(self, reply: str, part: int, step: Step) -> None:
        if not reply.startswith("334") or self._credentials is None:
            self._fail(f"AUTH rejected: {reply}")
        else:
            self._send(_base64(self._credentials[part]), step)

    # The transaction.

    def _send_rcpt(self) -> None:
        index, line = self._wording.rcpts[self._asked]
        self._asked += 1
        self._send(line, Step.RCPT, index)

    def _on_mail(self, reply: str) -> None:
        if reply[0] != "2":
            self._answer_all(_result(reply), reply)
            self._reset_unless_asked()
        elif not self._expect:
            self._send_rcpt()

    def _on_rcpt(self, reply: str) -> None:
        index, _ = self._wording.rcpts[self._heard]
        self._heard += 1
        if not self._unanswered:  # MAIL was refused: the rest of the pipeline only echoes that
            return
        if reply[0] == "2":
            self._failures = 0
            self._accepted.append(index)
        else:
            self._answer(index, _result(reply), reply)
            self._failures += 1
            if self._failures_max and self._failures >= self._failures_max:
                self.spent = True
        if not self._expect:
            self._after_rcpt()

    def _after_rcpt(self) -> None:
        """Without pipelining: what comes after one RCPT was answered."""
        if self.spent:
            self._answer_all(Result.TEMPFAIL, "Too many consecutive errors, closing connection")
            self._finish()
        elif self._asked < len(self._wording.rcpts):
            self._send_rcpt()
        elif self._accepted:
            self._send(b"DATA", Step.DATA)
        else:
            self._reset_unless_asked()

    def _on_data(self, reply: str) -> None:
        if reply[0] not in "23":
            self._answer_all(_result(reply), reply)
            self._reset_unless_asked()
        elif not self._accepted:
            # RFC 2920 §3.1: DATA was taken although no recipient was; nothing may follow but the end.
            self._end_of_data(b".\r\n")
            if self._lmtp:  # no recipient, no reply
                self._send(b"RSET", Step.RSET)
            else:
                self._expect.append(Step.EOM)
        else:
            self._start_body()

    def _start_body(self) -> None:
        assert self._tx is not None
        self._stuffer = DotStuffer()
        if self._tx.body is None:
            self._sending_body = True
            self._events.append(BodyWanted())
        else:
            self._out.append(self._stuffer.feed(self._tx.body))
            self._end_of_data(self._stuffer.end())
            self._expect_eom()

    def _expect_eom(self) -> None:
        # RFC 2033 §4.2: LMTP answers once for each accepted recipient.
        self._expect.extend([Step.EOM] * (len(self._accepted) if self._lmtp else 1))

    def _on_eom(self, reply: str) -> None:
        result = _result(reply)
        if result is Result.OK and self._accepted:
            self.tried = 0
            self.delivered += 1
        while self._accepted:
            self._answer(self._accepted.popleft(), result, reply)
            if self._lmtp:
                break
        if not self._expect:
            self._finish()

    def _on_rset(self, _reply: str) -> None:
        self._finish()

    def _on_quit(self, _reply: str) -> None:
        self.closed = True
        self._events.append(Closed())

    def _reset_unless_asked(self) -> None:
        """Leave the transaction, once the replies to what was pipelined have come."""
        if not self._expect:
            self._send(b"RSET", Step.RSET)

    def _answer(self, index: int, result: Result, text: str, code: int = 0) -> None:
        self._unanswered.remove(index)
        self._events.append(Answered(index, result, text, code))

    def _answer_all(self, result: Result, text: str, code: int = 0) -> None:
        self._events += [Answered(index, result, text, code) for index in self._unanswered]
        self._unanswered = []
        self._accepted.clear()

    def _finish(self) -> None:
        self._tx = None
        self._events.append(Finished())

    # Plumbing.

    def _send(self, line: bytes, step: Step, index: int = -1) -> None:
        self._out.append(line + b"\r\n")
        self._expect.append(step)
        if self._observer is not None:
            self._observer.sent(step, _MASKED.get(step) or line.decode(), index)

    def _end_of_data(self, end: bytes) -> None:
        self._out.append(end)
        if self._observer is not None:
            self._observer.sent(Step.EOM, ".", -1)

    def _fail(self, text: str) -> None:
        self.failed = True
        self._sending_body = False
        self._events.append(Failed(text))
        if self._tx is not None:
            self._answer_all(Result.TEMPFAIL, text)
            self._tx = None
        self._expect.clear()
        self._buffer.clear()


_ON_REPLY: dict[Step, Callable[[Client, str], None]] = {
    Step.BANNER: Client._on_banner,
    Step.EHLO: Client._on_ehlo,
    Step.HELO: Client._on_helo,
    Step.LHLO: Client._on_lhlo,
    Step.STARTTLS: Client._on_starttls,
    Step.AUTH_PLAIN: Client._on_auth_done,
    Step.AUTH_LOGIN: Client._on_auth_login,
    Step.AUTH_USER: Client._on_auth_user,
    Step.AUTH_PASSWORD: Client._on_auth_done,
    Step.MAIL: Client._on_mail,
    Step.RCPT: Client._on_rcpt,
    Step.DATA: Client._on_data,
    Step.EOM: Client._on_eom,
    Step.RSET: Client._on_rset,
    Step.QUIT: Client._on_quit,
}


def _reply_error(line: str) -> str:
    """What is wrong with a reply line, "" for nothing."""
    if len(line) >= _LINE_MAX:
        return "line too long"
    if len(line) < 3:
        return "line too short"
    if not ("2" <= line[0] <= "5" and line[:3].isascii() and line[:3].isdigit()):
        return "reply code out of range"
    return ""


def _visible(line: str) -> str:
    """What a peer says ends up in reports and on terminals: nothing in it may control them."""
    return line if line.isprintable() else "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def _result(reply: str) -> Result:
    return {"2": Result.OK, "5": Result.PERMFAIL}.get(reply[0], Result.TEMPFAIL)


def _base64(text: str) -> bytes:
    return base64.b64encode(text.encode())
