"""What is reported of one session (smtp-in), each event where it happens, in the order that OpenSMTPD has.

A session that nobody listens to has none of this. A reply comes before what it says about a transaction, so `tx-*`
events that become known earlier wait for it.
"""

from collections.abc import Iterable

from pillarbox.filters.reports import Reports
from pillarbox.roles.lookup import ReverseName
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply

HIDDEN = "********"  # in place of what may be a password
_ENDS = (Verb.DATA, Verb.BDAT)


class SessionEvents:
    """The narrator of one session. `reports`: who listens."""

    __slots__ = ("_address", "_begun", "_msgid", "_over", "_rcpts", "_size", "_verb", "reports")

    def __init__(self, reports: Reports) -> None:
        self.reports = reports
        self._verb: Verb | None = None  # of the last command
        self._address = ""  # in its argument, without brackets
        self._begun = False  # did it come to its effect?
        self._msgid: int | None = None  # of the transaction
        self._rcpts = 0
        self._over = False  # the transaction is over, which is told behind the reply
        self._size: int | None = None  # of its message, where that was accepted

    # --- the connection ---------------------------------------------------------------------------------------------

    def connected(self, name: ReverseName, src: str, dest: str) -> None:
        """Somebody came."""
        self.reports.link_connect(name.name or "<unknown>", name.fcrdns, src, dest)

    def disconnected(self) -> None:
        """The session is over, and a transaction with it."""
        self._end_transaction()
        self.reports.link_disconnect()

    # --- commands and replies ---------------------------------------------------------------------------------------

    def command(self, line: str) -> None:
        """A line of the client, without secrets."""
        self.reports.protocol_client(line)
        self._verb, self._begun, self._address = None, False, ""

    def parsed(self, verb: Verb, argument: str) -> None:
        """What it means; again where a filter rewrote it."""
        self._verb = verb
        if "<" in argument:  # what a filter made of it may be no address; then it is about the one that came
            self._address = argument.partition("<")[2].partition(">")[0]

    def begins(self) -> None:
        """The command is allowed, by filters too."""
        self._begun = True

    def end_of_message(self) -> None:
        """The dot behind a message, where there was one."""
        if self._verb is Verb.DATA:
            self.reports.protocol_client(".")

    def message_begins(self) -> None:
        """Behind BDAT there is no reply that says so."""
        if self._msgid is not None:
            self.reports.tx_data(self._msgid, "ok")

    def envelopes(self, msgid: int, evpids: Iterable[int]) -> None:
        """A recipient was expanded to these."""
        for evpid in evpids:
            self.reports.tx_envelope(msgid, evpid)

    def over(self, size: int | None) -> None:
        """The transaction has ended; the size of its message where that was accepted."""
        if self._msgid is not None:
            self._over, self._size = True, size

    def replied(self, reply: Reply, msgid: int | None) -> None:
        """We said something. `msgid`: of the transaction that there is now."""
        if self.reports.wants("protocol-server"):
            last = len(reply.lines) - 1
            for index, line in enumerate(reply.lines):
                self.reports.protocol_server(f"{reply.code}{' ' if index == last else '-'}{line}")
        result = "ok" if reply.positive else "tempfail" if reply.code < 500 else "permfail"
        if self._verb is Verb.MAIL:
            self._mail_replied(result, msgid)
        elif self._msgid is not None:
            if self._verb is Verb.RCPT:
                self._rcpts += reply.positive
                self.reports.tx_rcpt(self._msgid, result, self._address)
            elif self._verb in _ENDS and self._rcpts and (reply.code == 354 or not reply.positive):
                self.reports.tx_data(self._msgid, result)
        self._end_transaction()

    def _mail_replied(self, result: str, msgid: int | None) -> None:
        if result == "ok" and msgid is not None:
            self._msgid, self._rcpts = msgid, 0
            self.reports.tx_begin(msgid)
        # One that is refused before it could begin is none: nothing is told of it, unless it came within another.
        if self._begun or self._msgid is not None:
            self.reports.tx_mail(self._msgid or 0, result, self._address)

    def _end_transaction(self) -> None:
        if not self._over or self._msgid is None:
            return
        if self._size is not None:
            self.reports.tx_commit(self._msgid, self._size)
        else:
            self.reports.tx_rollback(self._msgid)
        self.reports.tx_reset(self._msgid)
        self._msgid, self._over, self._size = None, False, None
