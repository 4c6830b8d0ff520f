"""Bearer tokens as a table keeps them: user → hashes, set apart by commas, for a user may have several."""

import hashlib
import hmac

_PREFIX = "SHA-256$"


def hash_token(token: str) -> str:
    """How a token is stored. It is random and long, so no slow hash has to protect it."""
    return _PREFIX + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def fits_token(token: str, stored: str) -> bool:
    """Is it one of those? The time of the answer does not tell which, or how nearly."""
    offered = hash_token(token).encode()
    fits = False
    for known in stored.split(","):
        fits |= hmac.compare_digest(offered, known.strip().encode("utf-8", "surrogateescape"))
    return fits
