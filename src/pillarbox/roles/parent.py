"""System: what needs the parent's rights. Implemented by `daemon/system`; control asks it to stop and to reload."""

from typing import Protocol

import msgspec


class Reloaded(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of a reload. `problems`: why nothing has changed; `notes`: what to know although it has.

    Each is a text for a person, those about a file with `file:line: ` before it.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class System(Protocol):
    """Called by lookup and control."""

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """`~/.forward`, opened as its owner; None where there is none.

        PermFail where it exists but may not be used (not a regular file, foreign owner, group or world writable): the
        reference logs `warn: smtpd: PATH: insecure file` and answers the recipient with 524. TempFail where that
        cannot be told now (too many open files, a sticky home): 424.
        """
        ...

    async def check_password(self, user: str, password: str) -> bool:
        """A system user's password, in a child with a deadline."""
        ...

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        """The entries of a file table, read again."""
        ...

    async def stop(self) -> None:
        """`smtpctl stop`: end as on SIGTERM."""
        ...

    async def reload(self) -> Reloaded:
        """`smtpctl reload`: read the configuration again, and use it in all roles or in none. One at a time."""
        ...

    async def remember_pause(self, kind: str, paused: bool) -> None:
        """`smtpctl pause|resume mda|mta|smtp`, so that a process that is started again knows."""
        ...

    async def remember_route(self, source: str, dest: str, paused: bool) -> None:
        """`smtpctl pause|resume mta from SOURCE for DEST`, likewise."""
        ...

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...
