"""What is stored of a password for SCRAM-SHA-256, in the form that PostgreSQL uses (after RFC 5803):

    SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>

Whoever reads it can neither log in with it nor pose as the client, but can try passwords on it: it is kept like a hash.
"""

import hashlib
import hmac
import re
import stringprep
import unicodedata
from base64 import b64decode, b64encode

import msgspec

PREFIX = "SCRAM-SHA-256$"
DIGEST_SIZE = 32
ITERATIONS = 60_000  # each login costs the client so much; Cyrus SASL's clients refuse more than 65,536
ITERATIONS_MIN = 4096  # RFC 7677 §4
ITERATIONS_MAX = 10_000_000
SALT_SIZE = 16
_FORM = re.compile(
    r"SCRAM-SHA-256\$([1-9][0-9]{0,7}):([A-Za-z0-9+/=]{1,344})\$([A-Za-z0-9+/]{43}=):([A-Za-z0-9+/]{43}=)"
)


class Verifier(msgspec.Struct, frozen=True, kw_only=True):
    """The stored form, read."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __str__(self) -> str:
        salt, stored, server = (b64encode(x).decode() for x in (self.salt, self.stored_key, self.server_key))
        return f"{PREFIX}{self.iterations}:{salt}${stored}:{server}"

    def signature(self, message: bytes, proof: bytes) -> bytes:
        """The server's signature of an AuthMessage; b"" where the proof does not fit (RFC 5802 §3)."""
        client_signature = hmac.digest(self.stored_key, message, "sha256")
        client_key = bytes(a ^ b for a, b in zip(client_signature, proof, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self.stored_key):
            return b""
        return hmac.digest(self.server_key, message, "sha256")

    def fits(self, password: str) -> bool:
        """Is it made of this password? Takes as long as its iterations do."""
        other = make(password, salt=self.salt, iterations=self.iterations)
        return hmac.compare_digest(other.stored_key, self.stored_key)


def parse(stored: str) -> Verifier:
    """Read the stored form; raises ValueError."""
    found = _FORM.fullmatch(stored)
    if found is None:
        raise ValueError("no SCRAM-SHA-256 verifier")
    iterations, salt, stored_key, server_key = found.groups()
    if not ITERATIONS_MIN <= int(iterations) <= ITERATIONS_MAX:
        raise ValueError(f"a SCRAM-SHA-256 verifier of {iterations} iterations")
    return Verifier(
        iterations=int(iterations),
        salt=b64decode(salt, validate=True),
        stored_key=b64decode(stored_key, validate=True),
        server_key=b64decode(server_key, validate=True),
    )


def make(password: str, *, salt: bytes, iterations: int = ITERATIONS) -> Verifier:
    """What to store of a password (RFC 5802 §3)."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode("utf-8", "surrogateescape"), salt, iterations)
    return Verifier(
        iterations=iterations,
        salt=salt,
        stored_key=hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest(),
        server_key=hmac.digest(salted, b"Server Key", "sha256"),
    )


def prepare(value: str) -> str:
    """SASLprep (RFC 4013): the same password however it was typed. What it forbids is left as it is, as others do."""
    if value.isascii():
        return value
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in value if not stringprep.in_table_b1(c))
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)  # RFC 3454 §4: Unicode 3.2
    return value if any(map(_prohibited, prepared)) or not _one_direction(prepared) else prepared


_PROHIBITED = (  # RFC 4013 §2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,  # §2.5: unassigned
)


def _prohibited(character: str) -> bool:
    return any(within(character) for within in _PROHIBITED)


def _one_direction(value: str) -> bool:
    """RFC 3454 §6: text that runs from right to left begins and ends so, and has nothing of the other direction."""
    right = [stringprep.in_table_d1(c) for c in value]
    return not any(right) or (right[0] and right[-1] and not any(map(stringprep.in_table_d2, value)))
