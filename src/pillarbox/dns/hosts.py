"""`/etc/hosts` (hosts(5)): names and addresses that are known without DNS."""

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

_CHECK = 5.0  # seconds between looks whether the file changed
_SIZE_MAX = 1024 * 1024


class Hosts:
    """The file, read again when it changes. One that cannot be read is empty, or as it was before."""

    def __init__(self, *, path: str, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._checked = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        self._addresses: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}

    def addresses(self, name: str) -> list[str]:
        """The addresses of a name, in the order of the file."""
        self._refresh()
        return self._addresses.get(name.lower().rstrip("."), [])

    def name(self, address: str) -> str:
        """The first name of an address, "" where it is not listed."""
        self._refresh()
        return self._names.get(address, "")

    def _refresh(self) -> None:
        if self._now() < self._checked + _CHECK:
            return
        self._checked = self._now()
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp or status.st_size > _SIZE_MAX:
                return
            text = Path(self._path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        self._stamp = stamp
        self._parse(text)

    def _parse(self, text: str) -> None:
        self._addresses, self._names = {}, {}
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            if len(words) < 2:
                continue
            try:
                address = str(ipaddress.ip_address(words[0].partition("%")[0]))
            except ValueError:
                continue
            self._names.setdefault(address, words[1])
            for name in words[1:]:
                known = self._addresses.setdefault(name.lower().rstrip("."), [])
                if address not in known:
                    known.append(address)
