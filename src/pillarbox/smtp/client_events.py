"""What goes into the client's protocol core (transactions) and what comes out (events); see `client_protocol`."""

from dataclasses import dataclass

from pillarbox.mail.envelope import Result


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO; `notify` and `orcpt` as they stand on the wire, "" = absent."""

    address: str
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message. `body` None: it is streamed after `BodyWanted`. `size` in bytes with CRLF, before dot-stuffing.

    `smtputf8`: its header needs SMTPUTF8; whether its addresses do is seen from them.
    """

    sender: str
    recipients: tuple[Recipient, ...]
    size: int
    body: bytes | None = None
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False
    ret: str = ""
    envid: str = ""


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """The peer waits for the handshake; call `tls_started` after it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Greeted (and authenticated): transactions may begin."""


@dataclass(frozen=True, slots=True)
class BodyWanted:
    """Send the body: `body_chunk` for each piece, then `body_end`."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The recipient `index` of the transaction has its result; `text` is the peer's reply or our reason.

    `code`: as `Envelope.esc_code`, for reasons of ours that have one.
    """

    index: int
    result: Result
    text: str
    code: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Every recipient of the transaction was answered and the next one may begin, unless `Client.spent`."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is of no more use; `text` is the reference's reason. Unanswered recipients follow as tempfails."""

    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer answered QUIT."""


Event = TlsWanted | Ready | BodyWanted | Answered | Finished | Failed | Closed
