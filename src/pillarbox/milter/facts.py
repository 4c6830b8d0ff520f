"""What is known of an SMTP session, gathered from the reports and requests of the mail server."""

import re
from dataclasses import dataclass, field

# `MAIL FROM:<address> PARAMETERS`, `RCPT TO:<address> PARAMETERS`; a quoted local part may hold ">".
_PATH = re.compile(r'\s*(?:MAIL\s+FROM|RCPT\s+TO)\s*:\s*<(?:"(?:[^"\\]|\\.)*"|[^">])*>(.*)', re.IGNORECASE | re.DOTALL)
_MECHANISM = re.compile(r"\s*AUTH\s+([A-Za-z0-9_-]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection. `family`: 4, 6, or L for a socket of the machine, which has no port."""

    family: str
    address: str
    port: int = 0


# Milters know mail of this machine by the address; Postfix tells them the same of what sendmail(8) brought.
LOCAL = Endpoint("L", "127.0.0.1")


def parse_endpoint(text: str) -> Endpoint:
    """`address:port` or `unix:/path`, as reports have it, or the address alone, as requests do."""
    if text == "local" or text.startswith("unix:"):
        return LOCAL
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return Endpoint("6", address, _port(port.removeprefix(":")))
    if text.count(":") > 1:  # IPv6 without brackets: a colon before the port, or none, cannot be told apart
        return Endpoint("6", text)
    address, _, port = text.partition(":")
    return Endpoint("4", address, _port(port))


def _port(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 16 else 0


@dataclass(slots=True)
class Transaction:
    """A message on its way. `sender` and the recipients are without brackets."""

    sender: str
    parameters: tuple[str, ...] = ()
    msgid: str = ""
    recipients: list[str] = field(default_factory=list)  # those that the server took
    message_id: str = ""  # the Message-ID of its header


@dataclass(slots=True)
class Facts:
    """A session. `hostname`: what the server calls itself there; `version`: what it says it is.

    `known`: was it told who the client is? A filter that is started again may not be, of sessions that go on.
    """

    hostname: str
    version: str = ""
    known: bool = False
    client: Endpoint = LOCAL
    server: Endpoint = LOCAL
    rdns: str = ""
    verified: bool = False  # the name has the address, too (FCrDNS)
    method: str = ""
    helo: str = ""
    tls: tuple[str, str, str] | None = None  # version, cipher, bits
    mechanism: str = ""
    user: str = ""
    command: str = ""  # the last line of the client
    transaction: Transaction | None = None

    @property
    def client_name(self) -> str:
        """The client's name, or its address in brackets where no name is sure."""
        if self.client.family == "L":
            return "localhost"
        return self.rdns if self.verified and self.rdns else f"[{self.client.address}]"

    def connected(self, rdns: str, fcrdns: str, source: str, destination: str) -> None:
        """The fields of `link-connect`."""
        self.known = True
        self.rdns = "" if rdns.startswith("<") else rdns  # "<unknown>"
        self.verified = fcrdns == "pass"
        self.client = parse_endpoint(source)
        self.server = parse_endpoint(destination)

    def identified(self, method: str, identity: str) -> None:
        """HELO or EHLO."""
        self.method = method.upper()
        self.helo = identity

    def encrypted(self, description: str) -> None:
        """The field of `link-tls`, `VERSION:CIPHER:BITS`; what the client said in the clear is forgotten."""
        version, _, rest = description.partition(":")
        cipher, _, bits = rest.partition(":")
        self.tls = (version, cipher, bits.partition(":")[0])
        self.method = self.helo = ""

    def said(self, line: str) -> None:
        """A line of the client: the parameters of a command are only there."""
        self.command = line
        if match := _MECHANISM.match(line):
            self.mechanism = match[1].upper()

    def parameters(self) -> tuple[str, ...]:
        """What the client put behind the address, in the command that we are asked about."""
        match = _PATH.match(self.command)
        return tuple(match[1].split()) if match else ()
