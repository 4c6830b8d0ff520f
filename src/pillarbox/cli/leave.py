"""Leaving a message for the server's next start: `<state>/offline`, which everybody may write to and nobody list.

The file: its first line the arguments of sendmail joined by `|`, then the message. It has its final name only when
it is whole and on disk; `control/offline` reads it.
"""

import contextlib
import os
import secrets
import string
import time
from collections.abc import Iterable

_RANDOM = 10
_LETTERS = string.ascii_letters + string.digits


class CannotLeave(Exception):
    """Why not; `arguments`: because of what is in the command line."""

    def __init__(self, text: str, *, arguments: bool = False) -> None:
        super().__init__(text)
        self.arguments = arguments


def leave_offline(directory: str, arguments: list[str], pieces: Iterable[bytes]) -> None:
    """Write message and arguments durably. Raises `CannotLeave`, and then nothing is left."""
    for argument in arguments:
        if "|" in argument or "\n" in argument:
            raise CannotLeave(f"{argument} contains illegal character", arguments=True)
    name = f"{int(time.time())}.{''.join(secrets.choice(_LETTERS) for _ in range(_RANDOM))}"
    draft, final = os.path.join(directory, "." + name), os.path.join(directory, name)
    try:
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotLeave(f"cannot create temporary file {final}: {error.strerror}") from error
    try:
        os.fchmod(file, 0o600)
        _write(file, "|".join(arguments).encode("utf-8", "surrogateescape") + b"\n")
        for piece in pieces:
            _write(file, piece)
        os.fsync(file)
        os.rename(draft, final)
        # The directory cannot be opened by us to sync it. A sync of the file brings its new name to disk too, on the
        # journalling file systems of Linux.
        os.fsync(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise CannotLeave(f"write error: {error.strerror}") from error
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
