"""Certificates and keys as paths that `ssl` can load, without a file on a disk."""

import contextlib
import os
import ssl
from collections.abc import Iterable

from pillarbox.conf.model import Relay
from pillarbox.daemon.processes.channel import sealed_memory
from pillarbox.daemon.settings import Generation
from pillarbox.errors import PermFail, TempFail


class ClientMaterial:
    """What outgoing sessions authenticate with and trust: the `pki` and `ca` of each configuration, by name.

    Keys stay in sealed memory of this process and are named by its own /proc/self/fd.
    """

    def __init__(self, generations: Iterable[Generation]) -> None:
        self._generations: dict[int, _Material] = {}
        for generation in generations:
            self._generations[generation.number] = _Material(generation)

    def add(self, generation: Generation) -> None:
        """One more. Raises PermFail where a pair or an authority that an action names does not load."""
        material = _Material(generation)
        try:
            for action in generation.config.actions.values():
                if isinstance(action, Relay):
                    _try(generation.config.file, action, material)
        except BaseException:
            material.close()
            raise
        self._generations[generation.number] = material

    def forget(self, generation: int) -> None:
        """No session goes by it any more."""
        if generation in self._generations:
            self._generations.pop(generation).close()

    def authorities(self, generation: int, name: str) -> str:
        """The PEM certificates of a `ca`."""
        return self._of(generation).authority(name)

    def pair(self, generation: int, name: str) -> tuple[str, str]:
        """Paths of the certificate chain and key of a `pki`. Raises TempFail where the configuration has it no more."""
        return self._of(generation).pair(name)

    def _of(self, generation: int) -> "_Material":
        material = self._generations.get(generation)
        if material is None:
            raise TempFail(f"configuration {generation} is gone")
        return material


class _Material:
    """That of one configuration."""

    def __init__(self, generation: Generation) -> None:
        self._authorities = generation.ca
        self._pairs: dict[str, tuple[int, int]] = {}
        for name, pair in generation.pki.items():
            self._pairs[name] = sealed_memory(name, pair.cert), sealed_memory(name, pair.key)

    def authority(self, name: str) -> str:
        if name not in self._authorities:
            raise TempFail(f"ca {name}: not in the configuration")
        return self._authorities[name].decode("ascii", "replace")

    def pair(self, name: str) -> tuple[str, str]:
        if name not in self._pairs:
            raise TempFail(f"pki {name}: not in the configuration")
        cert, key = self._pairs[name]
        return f"/proc/self/fd/{cert}", f"/proc/self/fd/{key}"

    def close(self) -> None:
        for descriptor in [fd for pair in self._pairs.values() for fd in pair]:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _try(file: str, action: Relay, material: _Material) -> None:
    """Load what the action of a file names, as its sessions will."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if action.pki:
            context.load_cert_chain(*material.pair(action.pki))
        if action.ca:
            context.load_verify_locations(cadata=material.authority(action.ca))
    except (OSError, ValueError, TempFail) as error:  # ssl.SSLError is an OSError
        raise PermFail(f'{file}:{action.line}: action "{action.name}": TLS: {error}') from error
