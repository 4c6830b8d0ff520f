"""Lookup: tables, ruleset, expansion, credentials, DNS. Implemented by `routing/lookup`."""

from typing import Protocol

import msgspec

from pillarbox.mail.envelope import Notify, Sealed
from pillarbox.roles.explain import Explanation, Question


class Client(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What the ruleset may ask about a session. `address` is "local" for the control socket and for bounces.

    `local`: from the control socket, or from an address of this machine (`match from local`).
    """

    listener: int
    smtpname: str
    address: str
    local: bool
    hostname: str = ""  # reverse name, "" where there is none
    tag: str = ""
    helo: str = ""
    tls: bool = False
    username: str = ""
    internal: bool = False  # a bounce: made by ourselves, always `from local`


class Login(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Who wants to log in, from where. `table`: of credentials or tokens, or how system users are asked for."""

    generation: int
    table: str
    user: str
    address: str


class Recipient(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One RCPT TO to be routed and expanded; `rcpt` and `sender` without angle brackets, sender "" = null."""

    generation: int
    client: Client
    msgid: int
    sender: str
    rcpt: str
    dsn_notify: Notify = Notify.NONE
    dsn_orcpt: str = ""
    dsn_ret: str = ""
    dsn_envid: str = ""


class Expansion(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The answer: sealed envelopes, or a refusal (`code` and `text` of the reply, without CRLF).

    `text` of a refusal is everything after the code, e.g. `Invalid recipient: <x@y>` (code 550).
    """

    envelopes: tuple[Sealed, ...] = ()
    code: int = 250
    text: str = ""


class ReverseName(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What DNS says about a client. `name`: what its address points to, "" where that is nothing.

    `fcrdns`: "pass" where the name has this address, "fail" where not, "error" where that could not be asked.
    """

    name: str = ""
    fcrdns: str = "fail"

    @property
    def confirmed(self) -> str:
        """The name where it can be believed, else ""."""
        return self.name if self.fcrdns == "pass" else ""


class FilterCase(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Builtin filters that follow each other in a phase, and what they may ask about a session.

    `rdns`: "<unknown>" where there is none. `src`: "local" for the control socket. `helo`, `sender` and `rcpt` as
    the client wrote them, "" before it did; `username` where it has logged in.
    """

    generation: int
    filters: tuple[str, ...]
    rdns: str = ""
    fcrdns: str = ""
    src: str = ""
    helo: str = ""
    username: str = ""
    sender: str = ""
    rcpt: str = ""


class FilterOutcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What came of them: `report`s as (filter, text), and the first other decision with its filter, "" without one.

    `decision`: bypass, disconnect, junk, reject or rewrite.
    """

    reports: tuple[tuple[str, str], ...] = ()
    name: str = ""
    decision: str = ""
    argument: str = ""


class User(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Who a local delivery runs as."""

    name: str
    uid: int
    gid: int
    home: str


class MxHost(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One address of one exchanger; `preference` as in the MX record. Sorted, shuffled within a preference."""

    preference: int
    name: str
    address: str
    secure: bool = False  # DNSSEC: the resolver vouched for the MX record, or for there being none


class Lookup(Protocol):
    """Asked by dispatchers (incoming) and by queue (outgoing, bounces, local deliveries)."""

    async def expand(self, recipient: Recipient) -> Expansion:
        """Route and expand one recipient. Temporary trouble is a 4xx in the answer, not an exception."""
        ...

    async def reverse_name(self, address: str) -> str:
        """The forward-confirmed reverse name of an address, "" where it has none or it did not answer in time."""
        ...

    async def client_name(self, address: str) -> ReverseName:
        """What DNS says about a client, believed or not (filters and reports); "error" where it does not answer."""
        ...

    async def filter(self, case: FilterCase) -> FilterOutcome:
        """What builtin filters decide. TempFail where a table cannot be asked."""
        ...

    async def authenticate(self, login: Login, password: str) -> bool:
        """Check a password. TempFail if it cannot be told, or if too many logins failed from there."""
        ...

    async def check_token(self, login: Login, token: str) -> bool:
        """Check a bearer token against a table of tokens. TempFail as with passwords."""
        ...

    async def offers_scram(self, generation: int, table: str) -> bool:
        """Can every user of a credentials table log in by SCRAM-SHA-256?"""
        ...

    async def scram_salt(self, login: Login) -> tuple[bytes, int]:
        """Salt and iterations of a user's password (RFC 5802), made up where there is none. TempFail as above."""
        ...

    async def scram_signature(self, login: Login, message: bytes, proof: bytes) -> bytes:
        """The server's signature of an AuthMessage, b"" where the client's proof does not fit. TempFail as above."""
        ...

    async def may_send_as(self, generation: int, table: str, user: str, sender: str) -> bool:
        """Does the senders table allow this user this address (`listen … senders`)?"""
        ...

    async def trusts_proxy(self, generation: int, table: str, address: str) -> bool:
        """netaddr service (`listen … proxy from <table>`): may this address say whose connection it passes on?"""
        ...

    async def admit(self, generation: int, holder: str, ticket: int, address: str) -> str:
        """Count a session of a dispatcher (`holder`) in, under its ticket; else the keyword of the limit reached."""
        ...

    async def hold(self, holder: str, sessions: dict[int, str]) -> None:
        """Sessions that lookup's predecessor admitted: ticket → address."""
        ...

    async def leave(self, holder: str, ticket: int) -> None:
        """A session is over."""
        ...

    async def spend(self, generation: int, what: str, address: str, user: str) -> str:
        """One more of `mails`, `rcpt` or `failed-commands`; the keyword of the rate that does not allow it, or ""."""
        ...

    async def host_name(self, generation: int, table: str, address: str) -> str:
        """addrname service (`hostnames <table>`, `helo-src <table>`): the name for a local address, or ""."""
        ...

    async def user(self, generation: int, table: str, name: str) -> User | None:
        """userinfo service: who `name` is, None where unknown."""
        ...

    async def credentials(self, generation: int, table: str, label: str) -> tuple[str, str] | None:
        """credentials service for a relay: (user, password) of a label."""
        ...

    async def relay_url(self, generation: int, table: str, domain: str) -> str:
        """relayhost service (`relay domain <table>`): the URL for a domain, "" where there is none."""
        ...

    async def source_addresses(self, generation: int, table: str) -> list[str]:
        """source service (`relay src <table>`): the addresses to send from."""
        ...

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        """Where mail for a domain goes (RFC 5321 §5.1; RFC 7505 null MX). `mx` False: addresses of the name only.

        TempFail: no answer. PermFail: the domain does not exist, has no address, or takes no mail; the text is the
        reference's (`Domain does not exist`, `No MX found for domain`, …). `family`: "", "inet4", "inet6".
        """
        ...

    async def explain(self, question: Question) -> Explanation:
        """What would become of a recipient, and why (`smtpctl explain`); nothing is changed by asking."""
        ...

    async def update_table(self, name: str) -> bool:
        """Read a table again (`smtpctl update table`)."""
        ...

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...
