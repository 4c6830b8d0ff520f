"""The events of one session, with the fields of smtpd-filters(7), for the processors that registered them.

Whoever makes events holds a `Reports`, or None where nobody listens to the session: then an event costs one test.
`Processors.reports` makes them.
"""

from collections.abc import Callable, Container, Mapping

from pillarbox.roles.filters import Report

Listeners = tuple[Callable[[Report], None], ...]  # those that registered an event


class Reports:
    """`listeners`: for each event that somebody registered now, whom to tell. `now()`: epoch seconds.

    A result is "ok", "permfail" or "tempfail". Addresses are without brackets and parameters.
    """

    __slots__ = ("__weakref__", "_introduction", "_listeners", "_now", "_session", "_subsystem")

    def __init__(
        self, *, subsystem: str, session: int, listeners: Mapping[str, Listeners], now: Callable[[], float]
    ) -> None:
        self._subsystem = subsystem
        self._session = session
        self._listeners = listeners
        self._now = now
        self._introduction: dict[str, Report] = {}  # the link-* events so far, the last of each

    def wants(self, event: str) -> bool:
        """Does anybody listen? To be asked before a text is made that costs something."""
        return event in self._listeners

    def introduce(self, listener: Callable[[Report], None], events: Container[str]) -> None:
        """Tell somebody who has just begun to listen what has become of the connection so far, as it was told then."""
        for report in self._introduction.values():
            if report.event in events:
                listener(report)

    def _tell(self, event: str, text: str) -> None:
        listeners = self._listeners.get(event)
        if listeners:
            report = Report(self._subsystem, event, self._session, self._now(), one_line(text))
            for listener in listeners:
                listener(report)

    def _tell_link(self, event: str, text: str) -> None:
        report = Report(self._subsystem, event, self._session, self._now(), one_line(text))
        self._introduction.pop(event, None)  # it stands where it happened last
        self._introduction[event] = report
        for listener in self._listeners.get(event, ()):
            listener(report)

    def link_connect(self, rdns: str, fcrdns: str, src: str, dest: str) -> None:
        """`fcrdns`: pass, fail or error; addresses as `address:port` or `unix:/path`."""
        self._tell_link("link-connect", f"{rdns}|{fcrdns}|{src}|{dest}")

    def link_greeting(self, hostname: str) -> None:
        """The banner was sent, or came."""
        self._tell_link("link-greeting", hostname)

    def link_identify(self, method: str, identity: str) -> None:
        """HELO or EHLO (LHLO) was accepted."""
        self._tell_link("link-identify", f"{method}|{identity}")

    def link_tls(self, description: str) -> None:
        """TLS stands: `VERSION:CIPHER:BITS`."""
        self._tell_link("link-tls", description)

    def link_auth(self, result: str, username: str) -> None:
        """`result`: pass, fail or error."""
        self._tell_link("link-auth", f"{result}|{username}")

    def link_disconnect(self) -> None:
        """The session is over."""
        self._introduction.clear()
        self._tell("link-disconnect", "")

    def tx_reset(self, msgid: int) -> None:
        """The transaction is over, however it ended."""
        self._tell("tx-reset", f"{msgid:08x}")

    def tx_begin(self, msgid: int) -> None:
        """A transaction begins."""
        self._tell("tx-begin", f"{msgid:08x}")

    def tx_mail(self, msgid: int, result: str, address: str) -> None:
        """MAIL was answered."""
        self._tell("tx-mail", f"{msgid:08x}|{result}|{address}")

    def tx_rcpt(self, msgid: int, result: str, address: str) -> None:
        """RCPT was answered."""
        self._tell("tx-rcpt", f"{msgid:08x}|{result}|{address}")

    def tx_envelope(self, msgid: int, evpid: int) -> None:
        """An envelope was made."""
        self._tell("tx-envelope", f"{msgid:08x}|{evpid:016x}")

    def tx_data(self, msgid: int, result: str) -> None:
        """DATA was answered, or the message refused."""
        self._tell("tx-data", f"{msgid:08x}|{result}")

    def tx_commit(self, msgid: int, size: int) -> None:
        """The message was accepted; bytes."""
        self._tell("tx-commit", f"{msgid:08x}|{size}")

    def tx_rollback(self, msgid: int) -> None:
        """The message was not accepted."""
        self._tell("tx-rollback", f"{msgid:08x}")

    def protocol_client(self, line: str) -> None:
        """A line of the client, without secrets and CRLF."""
        self._tell("protocol-client", line)

    def protocol_server(self, line: str) -> None:
        """A line of the server; each line of a reply is an event."""
        self._tell("protocol-server", line)

    def filter_report(self, kind: str, name: str, message: str) -> None:
        """`kind`: builtin or proc."""
        self._tell("filter-report", f"{kind}|{name}|{message}")

    def filter_response(self, phase: str, decision: str, param: str = "") -> None:
        """`phase` as the reference writes it here: `connected` for connect, `tls` for starttls."""
        self._tell("filter-response", f"{phase}|{decision}|{param}" if param else f"{phase}|{decision}")

    def delivery(self, msgid: int, evpid: int, *, result: str, method: str, user: str, delay: int, text: str) -> None:
        """Ours, of `mda`: an attempt of local delivery ended; seconds since the message came."""
        user = user.replace("|", ":")  # only the last field may have one
        self._tell("delivery", f"{msgid:08x}|{evpid:016x}|{result}|{method}|{user}|{delay}|{text}")

    def timeout(self) -> None:
        """The session took too long."""
        self._tell("timeout", "")


def one_line(text: str) -> str:
    """The text as it may stand in a line: a peer's bytes that are no UTF-8 are shown as such, and no line is forged."""
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\r", " ").replace("\n", " ").replace("\0", " ")
