"""What needs the parent's rights: `System` (`daemon/system`), and programs that are not ours.

Those are `Programs` for tables (`daemon/programs/tables`) and `FilterPrograms` for filters (`daemon/programs/filters`).
"""

from typing import Protocol

import msgspec

Stamp = tuple[int, int, int, int, int]  # device, inode, size, mtime and ctime in ns: tells two states of a file apart


class DatabasePart(msgspec.Struct, frozen=True):
    """Some of a file, b"" behind its end."""

    stamp: Stamp
    data: bytes


class TableFile(msgspec.Struct, frozen=True, array_like=True):
    """What was read for a file table, and which file that was: a reload may have given the table another since."""

    path: str
    entries: tuple[tuple[str, str], ...]


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

    async def check_password(self, user: str, password: str, service: str, address: str) -> bool:
        """A system user's password, in a child with a deadline: by the PAM service, or with "" by shadow(5).

        `address`: the client's, for PAM's rules and log. Of a locked or expired account, or once it has itself expired,
        it does not fit.
        """
        ...

    async def login_secret(self) -> bytes:
        """A secret that lasts as long as the state directory: what made-up salts are derived from."""
        ...

    async def read_table(self, name: str) -> TableFile:
        """The file of a file table of the current configuration, read again."""
        ...

    async def read_database(self, path: str, offset: int) -> DatabasePart:
        """A part of the file of a `db:` table that lookup itself may not read."""
        ...

    async def configuration(self, offset: int) -> tuple[int, str]:
        """The generation that new sessions use, and its canonical text from a character on: a piece, "" at the end.

        Secrets are in it.
        """
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


class Programs(Protocol):
    """Called by lookup: the programs of tables, which run as a user without rights, never within a role."""

    async def start_table(self, generation: int, table: str, token: int) -> None:
        """Start the program of a table of a generation; the one that ran for it is ended before.

        Its standard input and output, a socket, travel over the channel under `token`, which the caller chose.
        TempFail: it cannot be started, the text says why.
        """
        ...

    async def stop_table(self, generation: int, table: str) -> None:
        """End the program of a table and all it has started, soon, whatever it does."""
        ...


class FilterPrograms(Protocol):
    """Called by filter: processors, which run as their own users, never within a role."""

    async def start_processor(self, number: int, generation: int, name: str, token: int) -> int:
        """Start a processor of a generation; the one that ran under this number is ended before. Returns its pid.

        Its standard input and output, a socket, travel over the channel under `token`, which the caller chose.
        TempFail: it cannot be started, the text says why.
        """
        ...

    async def stop_processor(self, number: int, grace: float) -> None:
        """End a processor and all it has started, after so many seconds at the latest, whatever it does."""
        ...
