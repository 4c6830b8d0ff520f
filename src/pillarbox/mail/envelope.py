"""The envelope: one message for one final destination, as every role sees it.

Created by `routing/expand` before the RCPT is answered, kept by `queue`, read by `mta`, `mda` and `bounce`.
Field names are those that `smtpctl show envelope` prints (with `_` for `-`).
"""

from enum import IntFlag, StrEnum

import msgspec

from pillarbox.mail.idn import fold_domain


class Kind(StrEnum):
    """How an envelope leaves: local delivery, relay."""

    MDA = "mda"
    MTA = "mta"


class Notify(IntFlag):
    """RFC 3461 §4.1 NOTIFY, with the reference's numbers; 0 = not given."""

    NONE = 0
    SUCCESS = 1
    FAILURE = 2
    DELAY = 4
    NEVER = 8


class Flag(IntFlag):
    """Envelope flags. `INTERNAL`: made by the server itself (bounces)."""

    NONE = 0
    AUTHENTICATED = 1
    BOUNCE = 2
    INTERNAL = 4


class Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One recipient of one message after expansion.

    Times are seconds since the epoch, 0 = never. `ttl` 0 = the global ttl applies. `sender` is "" for the null
    sender. `dispatcher` is the *name* of the action: it is resolved at delivery time, so that a changed
    configuration applies to mail already queued. `rcpt` is the RCPT TO as given, `dest` what expansion made of it.
    """

    evpid: int
    kind: Kind
    dispatcher: str
    sender: str
    rcpt: str
    dest: str
    ctime: int
    tag: str = ""
    smtpname: str = ""  # host name of the listener
    helo: str = ""
    hostname: str = ""  # reverse name of the client
    sockaddr: str = ""  # client address; "local" for submissions over the control socket and for bounces
    username: str = ""  # authenticated user
    flags: Flag = Flag.NONE
    ttl: int = 0
    dsn_notify: Notify = Notify.NONE
    dsn_ret: str = ""  # "", "FULL", "HDRS"
    dsn_envid: str = ""
    dsn_orcpt: str = ""
    mda_exec: str = ""  # command of an alias or .forward, instead of the action's
    mda_subaddress: str = ""
    mda_user: str = ""
    # What attempts add; changed by the queue alone.
    retry: int = 0
    last_try: int = 0
    last_bounce: int = 0
    errorline: str = ""
    esc_class: int = 0
    esc_code: int = 0

    @property
    def msgid(self) -> int:
        """The message: the upper 32 bits of the envelope id."""
        return self.evpid >> 32

    @property
    def dest_user(self) -> str:
        """The local part of the destination."""
        return self.dest.rpartition("@")[0]

    @property
    def dest_domain(self) -> str:
        """The domain of the destination, in lower case and ASCII."""
        return fold_domain(self.dest.rpartition("@")[2])


class Result(StrEnum):
    """How an attempt to deliver ended."""

    OK = "ok"
    TEMPFAIL = "tempfail"
    PERMFAIL = "permfail"
    LOOP = "loop"


class Outcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The end of one attempt. `(evpid, attempt)` names it, so a repeated report is recognised.

    `errorline` is what `show queue` prints and the DSN quotes. `relayed_without_dsn`: the next hop took the
    message but does not speak DSN, so a success DSN says `relayed` (RFC 3461 §5.2.2). `reply`: with which words the
    next hop took the message, for `show hoststats`. `session`: under which id it is in the log, 0: under none.
    """

    evpid: int
    attempt: int
    result: Result
    errorline: str = ""
    esc_class: int = 0
    esc_code: int = 0
    relayed_without_dsn: bool = False
    reply: str = ""
    session: int = 0


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """An encoded `Envelope` with its seal (`mail/seal`): made by lookup, carried by a dispatcher, verified by queue."""

    data: bytes
    mac: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Envelope).decode


def encode_envelope(envelope: Envelope) -> bytes:
    """The stored and sealed form of an envelope."""
    return _encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """The inverse of `encode_envelope`; raises `msgspec.MsgspecError` on anything else."""
    return _decode(data)
