"""The envelope as a milter would have it, beside the one that the server has. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from pillarbox.milter.facts import Transaction
from pillarbox.milter.wire import AddRecipient, ChangeSender, DeleteRecipient

MAX_PATH = 256  # RFC 5321 §4.5.3.1.3
EnvelopeChange = AddRecipient | DeleteRecipient | ChangeSender


@dataclass(frozen=True, slots=True)
class Envelope:
    """Addresses without brackets, in lower case: a milter writes them as it likes."""

    sender: str
    recipients: frozenset[str]


def envelope_of(tx: Transaction) -> Envelope:
    """The one that the server has."""
    return Envelope(tx.sender.lower(), frozenset(address.lower() for address in tx.recipients))


def changed_envelope(tx: Transaction, changes: Iterable[EnvelopeChange]) -> Envelope:
    """The one that a milter wants, its changes made in their order."""
    envelope = envelope_of(tx)
    sender, recipients = envelope.sender, set(envelope.recipients)
    for change in changes:
        address = _address(change.address)
        match change:
            case AddRecipient():
                recipients.add(address)
            case DeleteRecipient():
                recipients.discard(address)
            case ChangeSender():
                sender = address
    return Envelope(sender, frozenset(recipients))


def describe(change: EnvelopeChange) -> str:
    """A change, for the log."""
    words = {AddRecipient: "add recipient", DeleteRecipient: "delete recipient", ChangeSender: "change sender to"}
    return f"{words[type(change)]} <{_address(change.address)[:MAX_PATH]}>"


def _address(raw: bytes) -> str:
    text = raw.decode(errors="replace").strip().lower()
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text
