"""A dispatcher's part in limits that hold for the whole server: it asks lookup, and tells it who left.

Asked only where something is configured. Where lookup does not answer, nobody is turned away for it: without lookup no
mail is accepted anyway, and sessions are counted as soon as it is back (`reconnected`).
"""

import asyncio
from collections.abc import Callable, Coroutine

from pillarbox.conf.model import Config
from pillarbox.errors import PillarboxError
from pillarbox.roles.lookup import Lookup

PATIENCE = 5.0  # seconds
LEAVE_TRIES, LEAVE_AGAIN = 5, 5.0  # so often, and seconds between
_TELL_AT_ONCE = 1000  # sessions in one call


class Admissions:
    """`holder`: our name, by which lookup knows what is ours."""

    def __init__(
        self, *, lookup: Lookup, holder: str, background: Callable[[Coroutine[None, None, None]], None]
    ) -> None:
        self._lookup = lookup
        self._holder = holder
        self._background = background
        self._admitted: dict[int, str] = {}  # ticket → address
        self._last = 0

    async def admit(self, config: Config, address: str) -> tuple[int, str]:
        """A ticket, to be given back by `leave`; or 0 and the limit that is reached."""
        self._last += 1
        ticket, refusal = self._last, ""
        try:
            async with asyncio.timeout(PATIENCE):
                refusal = await self._lookup.admit(config.generation, self._holder, ticket, address)
        except (PillarboxError, TimeoutError):
            pass
        except asyncio.CancelledError:
            self._background(self._leave(ticket))
            raise
        if refusal:
            return 0, refusal
        self._admitted[ticket] = address
        return ticket, ""

    def leave(self, ticket: int) -> None:
        """The session is over."""
        if self._admitted.pop(ticket, None) is not None:
            self._background(self._leave(ticket))

    async def spend(self, config: Config, what: str, address: str, user: str) -> str:
        """One more of `what`; the rate that does not allow it, or ""."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._lookup.spend(config.generation, what, address, user)
        except (PillarboxError, TimeoutError):
            return ""

    async def reconnected(self) -> None:
        """There is a lookup that knows nothing of our sessions."""
        sessions = list(self._admitted.items())
        for start in range(0, len(sessions), _TELL_AT_ONCE):
            try:
                await self._lookup.hold(self._holder, dict(sessions[start : start + _TELL_AT_ONCE]))
            except PillarboxError:
                return  # it is gone again; there will be another

    async def _leave(self, ticket: int) -> None:
        # Said again where it may not have been heard: twice, or to a lookup that has just started, it does no harm.
        for _ in range(LEAVE_TRIES):
            try:
                return await self._lookup.leave(self._holder, ticket)
            except PillarboxError:
                await asyncio.sleep(LEAVE_AGAIN)
