"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the server's side (RFC 5802, RFC 7677).

The password never crosses; of what is stored the exchange learns only what the client is told as well.
"""

import hmac
import re
from base64 import b64encode

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.exchange import (
    Answer,
    AskSalt,
    Challenge,
    CheckProof,
    Circumstances,
    Failure,
    Step,
    Success,
    challenge,
    decode,
    saslname,
)
from pillarbox.smtp.sasl.verifier import DIGEST_SIZE, prepare

_MESSAGE_MAX = 4096  # bytes
# RFC 5802 §7: client-first-message, and client-final-message; without `m=` (an extension that must
# be understood), and with an empty `a=`, which GNU SASL sends.
_FIRST = re.compile(rb"((?:p=([A-Za-z0-9.-]+)|[ny]),(?:a=([^,]*))?,)(n=([^,]+),r=([!-+\--~]+)(?:,[A-Za-z]=[^,]+)*)")
_FINAL = re.compile(rb"(c=([A-Za-z0-9+/=]+),r=([!-+\--~]+)(?:,[A-Za-z]=[^,]+)*),p=([A-Za-z0-9+/=]+)")


class Scram:
    """One exchange; `plus`: the mechanism with channel binding was chosen."""

    def __init__(self, circumstances: Circumstances, *, plus: bool) -> None:
        self._circumstances = circumstances
        self._plus = plus
        self._user = ""
        self._header = b""  # what `c=` has to say
        self._first = ""  # client-first-message-bare
        self._challenge = ""  # server-first-message
        self._nonce = ""
        self._proved = False

    def respond(self, line: str | None) -> Step:
        """Who, then the proof, then nothing more."""
        if self._proved:
            return self._agreed(line)
        if self._challenge:
            return self._final(decode(line or ""))
        if line is None:
            return Challenge("")
        return self._begin(decode(line))

    def answer(self, answer: Answer) -> Step:
        """The salt of the user's password, then the server's signature."""
        if isinstance(answer, tuple):
            salt, iterations = answer
            self._challenge = f"r={self._nonce},s={b64encode(salt).decode()},i={iterations}"
            return challenge(self._challenge)
        if not isinstance(answer, bytes) or not answer:
            return Failure()
        self._proved = True
        return challenge(f"v={b64encode(answer).decode()}")

    def label(self) -> str:
        """The mechanism: what is said is a proof, which somebody could try passwords on."""
        return f"AUTH SCRAM-SHA-256{'-PLUS' if self._plus else ''} (...)"

    def _begin(self, message: bytes) -> Step:
        found = _FIRST.fullmatch(message) if len(message) <= _MESSAGE_MAX else None
        if found is None:
            raise BadSyntax("client-first-message")
        header, binding, authzid, bare, user, nonce = found.groups()
        self._user = prepare(saslname(user))
        if not self._user or (authzid and prepare(saslname(authzid)) != self._user):
            return Failure()  # nobody acts for somebody else here
        if not self._binds(binding, header):
            return Failure()
        self._first = _unicode(bare)
        self._nonce = nonce.decode("ascii") + self._circumstances.nonce
        return AskSalt(self._user)

    def _binds(self, binding: bytes | None, header: bytes) -> bool:
        """Note what the channel binding must be (RFC 5802 §6); False where it cannot be."""
        self._header = header
        if binding is None:
            # `y`: the client could, and thinks that we cannot. If we said that we can, somebody took that away.
            return not self._plus and not (header[:1] == b"y" and self._circumstances.plus)
        data = self._circumstances.bindings.get(binding.decode("ascii"))
        if data is None or not self._plus:
            return False
        self._header += data
        return True

    def _final(self, message: bytes) -> Step:
        found = _FINAL.fullmatch(message) if len(message) <= _MESSAGE_MAX else None
        if found is None:
            raise BadSyntax("client-final-message")
        without_proof, bound, nonce, proof = found.groups()
        same = hmac.compare_digest(decode(bound.decode("ascii")), self._header)
        if not (same and hmac.compare_digest(nonce, self._nonce.encode())):
            return Failure()
        digest = decode(proof.decode("ascii"))
        if len(digest) != DIGEST_SIZE:
            raise BadSyntax("proof")
        message = f"{self._first},{self._challenge},{_unicode(without_proof)}".encode()
        return CheckProof(self._user, message, digest)

    def _agreed(self, line: str | None) -> Step:
        """RFC 4954 §4: what comes with success goes as a challenge, which the client answers with nothing."""
        if line and decode(line):
            raise BadSyntax("nothing was expected")
        return Success(self._user)


def _unicode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadSyntax("not UTF-8") from None
