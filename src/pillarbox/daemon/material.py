"""Certificates and keys as paths that `ssl` can load, without a file on a disk."""

from pillarbox.daemon.channel import sealed_memory
from pillarbox.daemon.settings import KeyPair
from pillarbox.errors import TempFail


class ClientMaterial:
    """What outgoing sessions authenticate with and trust: the `pki` and `ca` of the configuration, by name.

    Keys stay in sealed memory of this process and are named by its own /proc/self/fd.
    """

    def __init__(self, authorities: dict[str, bytes], pairs: dict[str, KeyPair]) -> None:
        self._authorities = authorities
        self._pairs = {
            name: tuple(f"/proc/self/fd/{sealed_memory(name, content)}" for content in (pair.cert, pair.key))
            for name, pair in pairs.items()
        }

    def authorities(self, generation: int, name: str) -> str:
        """The PEM certificates of a `ca`."""
        if name not in self._authorities:
            raise TempFail(f"ca {name}: not in the configuration")
        return self._authorities[name].decode("ascii", "replace")

    def pair(self, generation: int, name: str) -> tuple[str, str]:
        """The certificate chain and key of a `pki`."""
        if name not in self._pairs:
            raise TempFail(f"pki {name}: not in the configuration")
        cert, key = self._pairs[name]
        return cert, key
