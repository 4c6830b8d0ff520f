"""What passes between queue and those who deliver: dispatchers (`Outgoing`) and the parent (`Agent`).

Both are given orders and report `Outcome`s to `Queue.settle`, which they repeat until it is acknowledged. Both can
say what they still hold (`in_flight`), which a restarted queue asks before it schedules anything.
"""

from typing import Protocol

import msgspec

from pillarbox.mail.envelope import Envelope, Outcome


class Task(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message for one or more recipients of one next hop: one SMTP transaction.

    `sender` is the MAIL FROM to use (after SRS and mail-from rewriting). `body` is whole when not larger than
    INLINE_BODY, else empty and read by `Queue.read`. `attempts[i]` belongs to `envelopes[i]`.
    """

    msgid: int
    sender: str
    envelopes: tuple[Envelope, ...]
    attempts: tuple[int, ...]
    size: int
    body: bytes = b""
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False


class SessionOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Open one outgoing session: where to, from where, and how. Everything in it is decided by `mta/relay`."""

    session: int  # 64 bit id, in the log
    generation: int
    action: str  # relay action, for the report and the TLS material
    protocol: str  # smtp, smtps, smtp+tls, smtp+notls, lmtp
    host: str  # name for the log and the certificate
    address: str  # IP address, or path of a socket (lmtp)
    port: int
    helo: str
    source: str = ""
    tls: str = "opportunistic"  # none, opportunistic, required, immediate
    tls_verify: bool = False
    pki: str = ""
    ca: str = ""
    ciphers: str = ""
    protocols: str = ""
    credentials: tuple[str, str] | None = None  # user, password; only with a TLS session
    auth_table: str = ""
    auth_label: str = ""  # asked from lookup by the dispatcher itself, so that queue never sees a password
    host_for_log: str = ""  # reverse name of the address
    mails_max: int = 100
    keepalive: float = 10.0  # seconds to wait for a further task before QUIT
    transaction_delay: float = 0.0
    failures_max: int = 25
    require_tls: bool = False  # the peer must offer REQUIRETLS (RFC 8689), else nothing is sent to it
    filter: str = ""  # of the action: its processors hear the events of the session


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a session stands: `ready` (greeted, may take tasks), `failed` (before it was), `closed` (after).

    `error` of a failed one: the reference's reason; `network`: it counts as an error of the route. `blame`, where it
    was not: "source" (the address cannot be used here), "credentials" or "relay" (nothing can be sent this way: no
    secret, no usable certificate), "tls" (the host does not meet `require_tls`), "tls-now" (it may later), ""
    (ourselves; it may be tried again). `unused`: the last task was not begun when the session ended and is to be given
    to another; `left`: so are these of its envelopes (evpid), for which the peer's limits left no room.
    """

    session: int
    state: str
    error: str = ""
    network: bool = False
    delivered: int = 0
    blame: str = ""
    unused: bool = False
    left: tuple[int, ...] = ()


class Relays(Protocol):
    """Implemented in queue by `mta/relay`; called by dispatchers about their outgoing sessions."""

    async def next_task(self, session: int, wait: float) -> Task | None:
        """The next transaction for this session; waits up to `wait` seconds, None: there is none, QUIT."""
        ...

    async def session_event(self, event: SessionEvent) -> None:
        """Told when a session becomes ready, fails or closes. Tasks without an outcome are tempfails of their own."""
        ...


class InFlight(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a deliverer holds: attempts running, and outcomes not acknowledged yet."""

    running: tuple[tuple[int, int], ...] = ()  # (evpid, attempt)
    outcomes: tuple[Outcome, ...] = ()


class Outgoing(Protocol):
    """Implemented in each dispatcher by `mta/session`: it holds outgoing sessions that queue ordered."""

    async def open_session(self, order: SessionOrder) -> None:
        """Note the order and return; the rest is told by `Relays.session_event`."""
        ...

    async def in_flight(self) -> InFlight:
        """Asked by a queue that was restarted."""
        ...


class LocalDelivery(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message to one local user. The parent finds the action (method, command, path) in its own copy of the
    configuration that `generation` names.

    `user`, `uid`, `gid`, `home`: from the user table of the action.
    """

    envelope: Envelope
    attempt: int
    generation: int
    user: str
    uid: int
    gid: int
    home: str
    size: int
    body: bytes = b""  # as in Task
    resolved_lmtp: str = ""


class Agent(Protocol):
    """Implemented in the parent by `mda/agent`: deliveries as their users."""

    async def deliver(self, deliveries: list[LocalDelivery]) -> None:
        """Note the orders and return; outcomes go to `Queue.settle`."""
        ...

    async def in_flight(self) -> InFlight:
        """Asked by a queue that was restarted."""
        ...


class Deliverer(Protocol):
    """What the scheduler sees of `mta/relay.Relays` and `mda/deliveries`, within the queue role (no call crosses)."""

    def room(self, destination: str) -> int:
        """How many envelopes it would take for this destination now; 0: full, it will call `Scheduler.ready` again."""
        ...

    def deliver(self, attempts: "list[Attempt]") -> None:
        """Take envelopes for delivery; each ends in exactly one outcome handed to `Queue.settle`."""
        ...


class Witness(Protocol):
    """Is told by queue, within its role, what became of deliveries, once that is on disk."""

    def ended(self, envelope: Envelope, outcome: Outcome) -> None:
        """An attempt."""
        ...

    def expired(self, envelope: Envelope) -> None:
        """There will be no further attempt: the time of the envelope is over."""
        ...


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope handed to a `Deliverer`, with its message's facts. Same meaning of `body` as in Task."""

    envelope: Envelope
    attempt: int
    destination: str
    size: int
    body: bytes = b""
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False
