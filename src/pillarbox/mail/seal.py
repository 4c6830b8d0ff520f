"""Seals: what lookup made and a dispatcher only carries, queue can tell from a forgery.

The key is made by `daemon` at each start and given to lookup and queue alone. The message id is part of the sealed
envelope (the upper half of its evpid), so an envelope cannot be moved to another message either.
"""

import hashlib
import hmac

KEY_SIZE = 32
MAC_SIZE = 16


def seal(key: bytes, data: bytes) -> bytes:
    """The MAC of `data`: 16 bytes. `key` is `KEY_SIZE` secret bytes.

    Keyed BLAKE2b (RFC 7693 §2.9): for 300 bytes it took 0.9 µs here, HMAC-SHA256 by `hmac.digest` 1.5 µs.
    """
    return hashlib.blake2b(data, key=key, digest_size=MAC_SIZE).digest()


def verify(key: bytes, data: bytes, mac: bytes) -> bool:
    """Was `mac` made by `seal` with this key over this data? Compares in constant time."""
    return hmac.compare_digest(seal(key, data), mac)
