"""crypt(3) of the system by ctypes, which Python has no module for since 3.13."""

import ctypes

_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so", None)  # None: in libc itself (musl)
_DATA = 256 * 1024  # bytes; struct crypt_data takes 32 KiB in libxcrypt and 128 KiB in glibc


class Crypt:
    """What a library has of it. Every thread may call it: crypt_r(3)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._crypt = library.crypt_r
        self._crypt.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        self._crypt.restype = ctypes.c_char_p
        self._gensalt = getattr(library, "crypt_gensalt", None)  # libxcrypt's
        if self._gensalt is not None:
            self._gensalt.argtypes = (ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int)
            self._gensalt.restype = ctypes.c_char_p

    def hash(self, password: bytes, setting: bytes) -> bytes | None:
        """The hash of a password without NUL, as `setting` (a hash, or its beginning) says; None: unknown here.

        Blocks for as long as the hash takes.
        """
        hashed: bytes | None = self._crypt(password, setting, ctypes.create_string_buffer(_DATA))
        # Failures are told by a value that is no hash, which begins with "*"; so do the fields of locked accounts.
        return None if hashed is None or hashed[:1] == b"*" else hashed

    def salt(self, prefix: bytes, cost: int) -> bytes | None:
        """The setting of a new hash of this kind (crypt(5)); cost 0: the library's choice. None: unknown here."""
        if self._gensalt is None:
            return None
        setting: bytes | None = self._gensalt(prefix, cost, None, 0)
        return setting


def load() -> Crypt | None:
    """The system's, None where it has none."""
    for name in _LIBRARIES:
        try:
            return Crypt(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue
    return None
