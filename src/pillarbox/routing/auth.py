"""Passwords: does one fit a stored hash? Every hash that crypt(3) knows, bcrypt, argon2 and SCRAM verifiers;
never plain text.

Hashing takes long by design, so it is done in a few threads of its own: guessers queue up behind each other, not
before lookups. A user who is unknown or locked costs as much as a wrong password does.
"""

import asyncio
import hmac
import re
from concurrent.futures import ThreadPoolExecutor

import argon2
import bcrypt

from pillarbox.errors import TempFail
from pillarbox.routing import crypt
from pillarbox.smtp.sasl import verifier

MAX_PASSWORD = 1024  # bytes
THREADS = 2
MAX_WAITING = 200  # checks waiting or running, above that: TempFail
DEADLINE = 30.0  # seconds
# Modular crypt formats, SCRAM verifiers, and those of crypt(3) without a prefix: BSDi, DES and bigcrypt.
_HASH = re.compile(r"(?:\$\w[^$]*\$|SCRAM-SHA-256\$).{8,}|_[./0-9A-Za-z]{19}|[./0-9A-Za-z]{13}(?:[./0-9A-Za-z]{11})*")
_BCRYPT = ("$2a$", "$2b$", "$2y$")
# Hash of a random string nobody kept: what an unknown user's password is compared with.
_DECOY = "$6$zezsgGTepgInD3Ff$gib3SHh0sZKfWc56Fxs7bYxQaUNbRzqD3WEWmYZ6w0s5nnlDNWNjw0kW75ca.rgucGDEhjucsD3jsitg8yYK61"


class Passwords:
    """Checks passwords. Made before the sandbox closes: it loads libcrypt."""

    def __init__(self) -> None:
        self._crypt = crypt.load()
        self._executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="password")
        self._waiting = 0

    async def check(self, password: str, stored: str | None, *, decoy: str = "") -> bool:
        """Does the password fit the stored hash? Where there is none: the time of hashing against `decoy`, then False.

        TempFail: too many are waiting, or this system cannot compute such a hash.
        """
        if self._waiting >= MAX_WAITING:
            raise TempFail("too many passwords are being checked")
        secret = password.encode("utf-8", "surrogateescape")
        usable = b"\0" not in secret and len(secret) <= MAX_PASSWORD
        known = stored is not None and takes_time(stored)
        against = stored if stored is not None and known else decoy or _DECOY
        self._waiting += 1
        try:
            async with asyncio.timeout(DEADLINE):
                fits = await asyncio.get_running_loop().run_in_executor(
                    self._executor, self.fits, secret if usable else b"x", against
                )
        except TimeoutError:
            raise TempFail(f"a password was not checked within {DEADLINE:.0f} s") from None
        finally:
            self._waiting -= 1
        return fits and usable and known

    def fits(self, password: bytes, stored: str) -> bool:
        """The check itself; blocks for as long as the hash takes."""
        if stored.startswith("$argon2"):
            return _fits_argon2(password, stored)
        if stored.startswith(_BCRYPT):
            return _fits_bcrypt(password, stored)
        if stored.startswith(verifier.PREFIX):
            return _fits_scram(password, stored)
        return self._fits_crypt(password, stored)

    def close(self) -> None:
        """Forget what is waiting."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _fits_crypt(self, password: bytes, stored: str) -> bool:
        if self._crypt is None:
            raise TempFail("this system has no libcrypt")
        setting = stored.encode("utf-8", "surrogateescape")
        hashed = self._crypt.hash(password, setting)
        return hashed is not None and hmac.compare_digest(hashed, setting)


def takes_time(stored: str) -> bool:
    """Is it a hash, which takes time to compare a password with; not plain text, nor what a locked account has?"""
    return _HASH.fullmatch(stored) is not None


def _fits_argon2(password: bytes, stored: str) -> bool:
    try:
        return argon2.PasswordHasher().verify(stored, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def _fits_bcrypt(password: bytes, stored: str) -> bool:
    try:
        # Every implementation takes the first 72 bytes; the library refuses longer ones.
        return bcrypt.checkpw(password[:72], stored.encode())
    except ValueError:
        return False


def _fits_scram(password: bytes, stored: str) -> bool:
    try:
        return verifier.parse(stored).fits(password.decode("utf-8", "surrogateescape"))
    except ValueError:
        return False
