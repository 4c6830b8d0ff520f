"""Passwords: does one fit a stored hash? Every hash that crypt(3) knows, bcrypt, argon2 and SCRAM verifiers;
never plain text.

Hashing takes long by design, so it is done in a few threads of its own: guessers queue up behind each other, not
before lookups. A user who is unknown or locked costs as much as a wrong password does.
"""

import asyncio
import ctypes
import hmac
import re
from concurrent.futures import ThreadPoolExecutor

import argon2
import bcrypt

from pillarbox.errors import TempFail
from pillarbox.smtp.sasl import verifier

MAX_PASSWORD = 1024  # bytes
THREADS = 2
MAX_WAITING = 200  # checks waiting or running, above that: TempFail
DEADLINE = 30.0  # seconds
_CRYPT_DATA = 256 * 1024  # bytes; struct crypt_data takes 32 KiB in libxcrypt and 128 KiB in glibc
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so", None)  # None: in libc itself (musl)
# Modular crypt formats, SCRAM verifiers, and those of crypt(3) without a prefix: BSDi, DES and bigcrypt.
_HASH = re.compile(r"(?:\$\w[^$]*\$|SCRAM-SHA-256\$).{8,}|_[./0-9A-Za-z]{19}|[./0-9A-Za-z]{13}(?:[./0-9A-Za-z]{11})*")
_BCRYPT = ("$2a$", "$2b$", "$2y$")
# Hash of a random string nobody kept: what an unknown user's password is compared with.
_DECOY = "$6$zezsgGTepgInD3Ff$gib3SHh0sZKfWc56Fxs7bYxQaUNbRzqD3WEWmYZ6w0s5nnlDNWNjw0kW75ca.rgucGDEhjucsD3jsitg8yYK61"


class Passwords:
    """Checks passwords. Made before the sandbox closes: it loads libcrypt."""

    def __init__(self) -> None:
        self._crypt = _load_crypt()
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
        data = ctypes.create_string_buffer(_CRYPT_DATA)
        result: bytes | None = self._crypt(password, setting, data)
        # crypt(3): failure tokens start with "*"; so do the fields of locked accounts.
        if result is None or result[:1] == b"*":
            return False
        return hmac.compare_digest(result, setting)


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


def _load_crypt() -> "ctypes._NamedFuncPointer | None":
    for name in _LIBRARIES:
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        function.restype = ctypes.c_char_p
        return function
    return None
