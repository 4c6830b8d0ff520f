"""dead.letter: where a message that was refused stays with its writer."""

import os
import pwd
import stat
from collections.abc import Iterable
from itertools import chain


def save_dead_letter(user: pwd.struct_passwd | None, pieces: Iterable[bytes]) -> bool:
    """Append to `~/dead.letter`; whether it is on disk.

    Only in the caller's own home: root that sends for a user must not write where that user says.
    """
    if user is None or user.pw_uid != os.geteuid():
        return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(os.path.join(user.pw_dir, "dead.letter"), flags, 0o600)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        for piece in chain(pieces, (b"\n",)):
            left = piece
            while left:
                left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
