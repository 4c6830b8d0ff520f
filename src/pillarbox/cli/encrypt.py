"""`smtpctl encrypt`: what a table keeps of a password or token.

A password's hash is the system's crypt(3)'s, or a SCRAM verifier; of a token, which is random, a plain hash will do.
"""

import secrets

from pillarbox.routing import crypt
from pillarbox.routing.tokens import hash_token
from pillarbox.smtp.sasl import verifier

# The best first, with its cost: crypt(5); 0 is the library's own choice. Each AUTH pays it again.
_METHODS = ((b"$y$", 0), (b"$2b$", 10), (b"$6$", 100_000))


class CannotHash(Exception):
    """This system has no crypt(3) that knows a strong hash, or the password cannot be hashed."""


def hash_password(password: bytes) -> str:
    """The hash of a password with a new salt; raises `CannotHash`."""
    if b"\0" in password:
        raise CannotHash("a password cannot contain NUL")
    library = crypt.load()
    if library is None:
        raise CannotHash("no libcrypt found")
    for prefix, cost in _METHODS:
        setting = library.salt(prefix, cost)
        hashed = library.hash(password, setting) if setting else None
        if hashed and hashed.startswith(prefix):
            return hashed.decode("ascii")
    raise CannotHash("crypt(3) knows no strong hash")


def hash_scram(password: bytes) -> str:
    """The SCRAM-SHA-256 verifier of a password with a new salt; raises `CannotHash`."""
    return str(verifier.make(_text(password), salt=secrets.token_bytes(verifier.SALT_SIZE)))


def hash_bearer(token: bytes) -> str:
    """The hash of a bearer token; raises `CannotHash`."""
    return hash_token(_text(token))


def _text(secret: bytes) -> str:
    try:
        text = secret.decode()
    except UnicodeDecodeError:
        raise CannotHash("it is not UTF-8") from None
    if not text or "\0" in text:
        raise CannotHash("it is empty, or contains NUL")
    return text
