"""The events of one outgoing connection (`smtp-out`), made of what its `Client` says and hears.

Their order is that of incoming sessions: a command, the lines of its answer, what that means for the transaction.
Where commands are pipelined, one is told when the one before it was answered. Whom they go to is decided by
`filters/reports`.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pillarbox.filters.reports import Reports
from pillarbox.mta.route import bracketed
from pillarbox.smtp.client_steps import Step

_HOST_NAME = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")


@dataclass(frozen=True, slots=True)
class Passage:
    """A message on its way: `recipients` are (evpid, address) in the order of its `Transaction`; bytes."""

    msgid: int
    sender: str
    size: int
    recipients: tuple[tuple[int, str], ...]


class LinkEvents:
    """A `smtp.client_steps.Observer` that tells `reports`. `username`: whom the session authenticates as."""

    def __init__(self, reports: Reports, *, lmtp: bool, username: str) -> None:
        self._reports = reports
        self._lmtp = lmtp
        self._username = username
        self._connected = False
        self._due = 1  # replies to what was told last; first there is the banner
        self._untold: deque[tuple[Step, str, int]] = deque()  # commands that were sent meanwhile
        self._passage: Passage | None = None
        self._open = False  # the peer took MAIL, and the transaction was not ended
        self._rcpts: deque[int] = deque()  # recipients that were asked for and not answered
        self._accepted = 0
        self._committed = False

    # What `Link` says.

    def connected(self, host: str, src: tuple[str, int], dest: tuple[str, int]) -> None:
        """There is a connection. `host`: the peer's forward-confirmed name, "" for none; addresses with ports."""
        self._connected = True
        name, fcrdns = (host, "pass") if host else ("<unknown>", "fail")
        self._reports.link_connect(name, fcrdns, f"{bracketed(src[0])}:{src[1]}", f"{bracketed(dest[0])}:{dest[1]}")

    def tls_started(self, description: str) -> None:
        """The handshake succeeded: `VERSION:CIPHER:BITS`."""
        self._reports.link_tls(description)

    def timed_out(self) -> None:
        """The peer was given up."""
        if self._connected:
            self._tell_rest()
            self._reports.timeout()

    def closed(self) -> None:
        """The connection is over, if there was one."""
        if self._connected:
            self._connected = False
            self._tell_rest()
            self._end()
            self._reports.link_disconnect()

    # What `Delivery` says.

    def begin(self, passage: Passage) -> None:
        """What the next transaction is about."""
        self._passage = passage

    # What `Client` says.

    def sent(self, step: Step, line: str, index: int) -> None:
        """See `Observer.sent`."""
        self._untold.append((step, line, index))
        self._go_on()

    def heard(self, line: str) -> None:
        """See `Observer.heard`."""
        self._reports.protocol_server(line)

    def replied(self, step: Step, reply: str) -> None:
        """See `Observer.replied`."""
        self._due -= 1
        meaning = _MEANING.get(step)
        if meaning is not None:
            meaning(self, reply)
        self._go_on()

    def _go_on(self) -> None:
        while self._untold and self._due <= 0:
            self._tell(*self._untold.popleft())

    def _tell_rest(self) -> None:
        """Commands that will not be answered any more were sent nevertheless."""
        while self._untold:
            self._tell(*self._untold.popleft())

    def _tell(self, step: Step, line: str, index: int) -> None:
        self._due = 1
        if step in (Step.RSET, Step.QUIT):
            self._end()
        self._reports.protocol_client(line)
        if step in (Step.EHLO, Step.HELO, Step.LHLO):
            self._reports.link_identify(step.name, line.partition(" ")[2])
        elif step is Step.RCPT:
            self._rcpts.append(index)
            if self._open and self._passage is not None:
                self._reports.tx_envelope(self._passage.msgid, self._passage.recipients[index][0])
        elif step is Step.EOM and self._lmtp:
            self._due = self._accepted  # RFC 2033 §4.2

    # What the replies mean.

    def _on_banner(self, reply: str) -> None:
        if reply[0] == "2":
            name = reply[4:].partition(" ")[0]
            self._reports.link_greeting(name if _HOST_NAME.fullmatch(name) else "")

    def _on_authenticated(self, reply: str) -> None:
        self._reports.link_auth("pass" if reply[0] == "2" else "fail", self._username)

    def _on_challenge(self, reply: str) -> None:
        if not reply.startswith("334"):
            self._reports.link_auth("fail", self._username)

    def _on_mail(self, reply: str) -> None:
        passage = self._passage
        if passage is None:
            return
        self._accepted, self._committed = 0, False
        self._open = reply[0] == "2"
        if self._open:
            self._reports.tx_begin(passage.msgid)
        self._reports.tx_mail(passage.msgid, _result(reply), passage.sender)

    def _on_rcpt(self, reply: str) -> None:
        index = self._rcpts.popleft()
        if self._open and self._passage is not None:
            self._accepted += reply[0] == "2"
            self._reports.tx_rcpt(self._passage.msgid, _result(reply), self._passage.recipients[index][1])

    def _on_data(self, reply: str) -> None:
        if self._open and self._passage is not None:
            taken = reply[0] in "23"
            self._reports.tx_data(self._passage.msgid, "ok" if taken else _result(reply))
            if not taken:
                self._end()

    def _on_eom(self, reply: str) -> None:
        """LMTP answers for each recipient; the transaction is one, and some have the message where one said so."""
        self._committed = self._committed or (reply[0] == "2" and self._accepted > 0)
        if self._due <= 0:
            self._end()

    def _end(self) -> None:
        """The transaction is over, if there is one."""
        if not self._open or self._passage is None:
            return
        self._open = False
        if self._committed:
            self._reports.tx_commit(self._passage.msgid, self._passage.size)
        else:
            self._reports.tx_rollback(self._passage.msgid)
        self._reports.tx_reset(self._passage.msgid)


_MEANING: dict[Step, Callable[[LinkEvents, str], None]] = {
    Step.BANNER: LinkEvents._on_banner,
    Step.AUTH_PLAIN: LinkEvents._on_authenticated,
    Step.AUTH_LOGIN: LinkEvents._on_challenge,
    Step.AUTH_USER: LinkEvents._on_challenge,
    Step.AUTH_PASSWORD: LinkEvents._on_authenticated,
    Step.MAIL: LinkEvents._on_mail,
    Step.RCPT: LinkEvents._on_rcpt,
    Step.DATA: LinkEvents._on_data,
    Step.EOM: LinkEvents._on_eom,
}


def _result(reply: str) -> str:
    return {"2": "ok", "5": "permfail"}.get(reply[0], "tempfail")
