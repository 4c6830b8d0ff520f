"""Incoming: what control asks of a dispatcher. Implemented by `server/listener`."""

from typing import Protocol


class Incoming(Protocol):
    """Called by control."""

    async def pause(self, paused: bool) -> bool:
        """`smtpctl pause|resume smtp`: stop accepting connections, or go on. False where it was so already."""
        ...

    async def paused(self) -> bool:
        """Whether it accepts no connections (`smtpctl show status`)."""
        ...

    async def stats(self) -> dict[str, int]:
        """Counters under the reference's names (`smtp.session`, `smtp.session.inet4`, …)."""
        ...

    async def submit(self, user: str, uid: int) -> int:
        """Begin a session of a local user over the control socket (`sendmail`); returns its handle."""
        ...

    async def submit_write(self, handle: int, data: bytes) -> None:
        """Bytes of that session's client; returns when the session has taken them."""
        ...

    async def submit_read(self, handle: int) -> bytes:
        """The next bytes of the session's server; b"" when it closed."""
        ...

    async def submit_close(self, handle: int) -> None:
        """The client went away."""
        ...

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...
