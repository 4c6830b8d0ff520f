"""`fetch_…`: a list that the database returns, handed out value by value and asked for again from time to time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from pillarbox.backends.settings import Settings
from pillarbox.sdk.table import Service

# COMPAT: the reference's defaults.
EXPIRE = 60  # seconds that a list is used
REFRESH = 1000  # values handed out of a list


class Rotation:
    """`load` returns the list. Sorted and without duplicates, as the reference's."""

    def __init__(
        self,
        load: Callable[[], Awaitable[Iterable[str]]],
        *,
        expire: float = EXPIRE,
        refresh: int = REFRESH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._expire = expire
        self._refresh = refresh
        self._now = now
        self._lock = asyncio.Lock()
        self._values: list[str] = []
        self._fetched = 0
        self._loaded: float | None = None
        self._turn = 0

    async def next(self) -> str | None:
        """The next value, after the last the first again; None where the list is empty. Raises what `load` does."""
        async with self._lock:
            await self._renew()
        self._fetched += 1
        if not self._values:
            return None
        value = self._values[self._turn % len(self._values)]
        self._turn = (self._turn + 1) % len(self._values)
        return value

    async def _renew(self) -> None:
        now = self._now()
        if self._loaded is not None and self._fetched < self._refresh and now - self._loaded < self._expire:
            return
        self._values = sorted(set(await self._load()))
        self._loaded = now
        self._fetched = 0
        self._turn = 0


def rotation(settings: Settings, service: Service, load: Callable[[], Awaitable[Iterable[str]]]) -> Rotation:
    """With the file's `fetch_SERVICE_expire` and `fetch_SERVICE_refresh`."""
    return Rotation(
        load,
        expire=settings.number(f"fetch_{service}_expire", EXPIRE),
        refresh=settings.number(f"fetch_{service}_refresh", REFRESH),
    )
