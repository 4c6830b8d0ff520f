"""What a peer offers, and how a transaction is put to it: the lines to send, or why it cannot be sent there.

Pure decisions of the client's side of SMTP: `client_protocol` reads the offer from EHLO, asks `word` for each
transaction, and sends what that says. RFC 1870, 3461, 6152, 6531, 6533, 8689, 9422.
"""

import math
from dataclasses import dataclass

from pillarbox.mail import idn
from pillarbox.smtp.client_events import Recipient, Transaction

NO_SMTPUTF8 = 67  # RFC 6531 §3.5: X.6.7
NO_REQUIRETLS = 730  # RFC 8689 §8.4: X.7.30


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a peer cannot get a message. `code` as `Envelope.esc_code`."""

    text: str
    code: int = 0


_TLS_NEEDED = Refusal("550 5.7.30 REQUIRETLS support required: not offered by peer", NO_REQUIRETLS)
_UTF8_NEEDED = Refusal("553 5.6.7 SMTPUTF8 needed, but not offered by peer", NO_SMTPUTF8)


@dataclass(frozen=True, slots=True)
class Limits:
    """RFC 9422: what a peer takes in one session (messages, domains of recipients) and transaction (recipients)."""

    mails: float = math.inf
    rcpts: float = math.inf
    rcpt_domains: float = math.inf


@dataclass(frozen=True, slots=True)
class Wording:
    """A transaction in this peer's words: MAIL, and by index of the recipient each RCPT, or why there is none."""

    mail: bytes
    rcpts: tuple[tuple[int, bytes], ...]
    refused: tuple[tuple[int, Refusal], ...] = ()


class Offer:
    """The extensions of a peer, as its answer to EHLO or LHLO names them. `tls`: was it said over TLS?"""

    def __init__(self, *, tls: bool = False) -> None:
        self._tls = tls
        self._values: dict[str, str] = {}

    def note(self, line: str) -> None:
        """A line of the answer, without its code."""
        name, _, value = line.partition(" ")
        self._values[name.upper()] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def words(self, name: str) -> list[str]:
        """What stands behind the name of an extension, in upper case."""
        return self._values.get(name, "").upper().split()

    @property
    def limits(self) -> Limits:
        """Those that are announced (RFC 9422); what is no positive number limits nothing (§3.1)."""
        found = dict(word.partition("=")[::2] for word in self.words("LIMITS"))
        return Limits(_limit(found, "MAILMAX"), _limit(found, "RCPTMAX"), _limit(found, "RCPTDOMAINMAX"))

    @property
    def protects(self) -> bool:
        """Does the peer keep what REQUIRETLS demands (RFC 8689 §4.2.1)? Said in clear it is worth nothing."""
        return self._tls and "REQUIRETLS" in self._values

    @property
    def size(self) -> int:
        """The largest message in bytes; 0: it does not say (RFC 1870 §4: SIZE without a number, or 0, is no limit)."""
        value = self._values.get("SIZE", "").strip()
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else 0


def _limit(found: dict[str, str], name: str) -> float:
    value = found.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 6 and int(value) else math.inf


def word(offer: Offer, tx: Transaction) -> Wording | Refusal:
    """How to put a transaction to a peer; a `Refusal` where it cannot have it at all."""
    if 0 < offer.size < tx.size:
        return Refusal("message too large for peer")
    texts = (tx.sender, tx.envid, *(r.address + r.orcpt for r in tx.recipients))
    if any("\r" in text or "\n" in text for text in texts):
        return Refusal("553 5.1.7 line break in address")
    if tx.require_tls and tx.sender and not offer.protects:
        return _TLS_NEEDED  # a bounce, which has no sender, is better sent without than lost (§5)
    utf8 = tx.smtputf8 or not (tx.sender.isascii() and all(r.address.isascii() for r in tx.recipients))
    if not utf8 or "SMTPUTF8" in offer:
        mail = _mail(offer, tx, tx.sender, utf8=utf8)
        return Wording(mail, tuple([(i, _rcpt(offer, r, r.address, utf8=utf8)) for i, r in enumerate(tx.recipients)]))
    return _downgrade(offer, tx)


def _downgrade(offer: Offer, tx: Transaction) -> Wording | Refusal:
    """Domains can be written in ASCII; a header and a local part cannot (RFC 6531 §3.2)."""
    sender = idn.ascii_address(tx.sender)
    if tx.smtputf8 or sender is None:
        return _UTF8_NEEDED
    rcpts, refused = [], []
    for index, recipient in enumerate(tx.recipients):
        address = idn.ascii_address(recipient.address)
        if address is None:
            refused.append((index, _UTF8_NEEDED))
        else:
            rcpts.append((index, _rcpt(offer, recipient, address, utf8=False)))
    return Wording(_mail(offer, tx, sender, utf8=False), tuple(rcpts), tuple(refused)) if rcpts else _UTF8_NEEDED


def _mail(offer: Offer, tx: Transaction, sender: str, *, utf8: bool) -> bytes:
    line = f"MAIL FROM:<{sender}>"
    if "DSN" in offer:
        if tx.ret:
            line += f" RET={tx.ret}"
        if tx.envid:
            line += f" ENVID={tx.envid}"
    if tx.eight_bit and "8BITMIME" in offer:
        line += " BODY=8BITMIME"
    if utf8:
        line += " SMTPUTF8"
    if tx.require_tls and offer.protects:
        line += " REQUIRETLS"
    return line.encode()


def _rcpt(offer: Offer, recipient: Recipient, address: str, *, utf8: bool) -> bytes:
    line = f"RCPT TO:<{address}>"
    if "DSN" in offer:
        if recipient.notify:
            line += f" NOTIFY={recipient.notify}"
        if recipient.orcpt:
            line += f" ORCPT={recipient.orcpt if utf8 else idn.encode_unitext(recipient.orcpt)}"
    return line.encode()
