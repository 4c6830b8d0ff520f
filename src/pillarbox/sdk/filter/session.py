"""What a filter knows of a session: gathered from events, handed to every handler."""

from collections.abc import Callable
from typing import Generic, TypeVar

from pillarbox.sdk.filter import events

S = TypeVar("S")

# What has to be registered so that a session is known.
REMEMBERED = (
    "link-connect", "link-identify", "link-tls", "link-auth", "link-disconnect",
    "tx-reset", "tx-begin", "tx-mail", "tx-rcpt",
)  # fmt: skip


class Session(Generic[S]):
    """What was heard so far; a text is empty as long as nothing was. Gone when the client is.

    `src`, `dest`: `address:port`, or `unix:/path`. `state` is the filter's own.
    """

    __slots__ = (
        "_report", "dest", "fcrdns", "helo", "id", "method", "msgid", "rcpts", "rdns", "sender", "src", "state",
        "subsystem", "tls", "username",
    )  # fmt: skip

    def __init__(self, *, id: str, subsystem: str, state: S, report: Callable[["Session[S]", str], None]) -> None:
        self.id = id
        self.subsystem = subsystem
        self.state = state
        self._report = report
        self.rdns = self.fcrdns = self.src = self.dest = ""
        self.method = self.helo = self.tls = self.username = ""
        self.msgid = self.sender = ""
        self.rcpts: list[str] = []

    @property
    def address(self) -> str:
        """The client's IP address, without port and brackets; `local` for one behind a socket in the file system."""
        if self.src.startswith("unix:"):
            return "local"
        host, colon, port = self.src.rpartition(":")
        address = host if colon and (port.isdigit() or not port) and not self._bare_ipv6() else self.src
        return address.strip("[]")

    def _bare_ipv6(self) -> bool:
        return self.src.count(":") > 1 and not self.src.startswith("[")

    def report(self, text: str) -> None:
        """Have the server tell whoever listens (`filter-report`). OpenSMTPD, which cannot, gets it for its log."""
        self._report(self, text)

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.src} {self.helo}>"

    def remember(self, event: events.Event) -> None:
        """Take over what an event says."""
        match event:
            case events.TxRcpt(result="ok"):
                self.rcpts.append(event.address)
            case events.TxMail(result="ok"):
                self.sender = event.address
            case events.TxBegin():
                self._begin(event.msgid)
            case events.TxReset():
                self._begin("")
            case events.LinkConnect():
                self.rdns, self.fcrdns, self.src, self.dest = event.rdns, event.fcrdns, event.src, event.dest
            case events.LinkIdentify():
                self.method, self.helo = event.method, event.identity
            case events.LinkTLS():
                self.tls = event.description
            case events.LinkAuth(result="pass"):
                self.username = event.username

    def _begin(self, msgid: str) -> None:
        self.msgid, self.sender, self.rcpts = msgid, "", []
