"""A program with a root directory of its own: enters it, gives up all rights, and becomes the program.

A script on its own (`daemon/programs` starts it): Python's subprocess knows no chroot, and what it would call between
fork and exec is not safe beside threads. Arguments: root, uid, gid, groups with commas, path, argv; ids may be empty.
"""

import os
import sys


def main(arguments: list[str]) -> None:
    """Enter, give up, execute; what prevents it is said on standard error."""
    root, uid, gid, groups, path, *argv = arguments
    what = root
    try:
        os.chroot(root)
        os.chdir("/")
        if uid:
            what = f"user {uid}"
            os.setgroups([int(group) for group in groups.split(",") if group])
            os.setresgid(int(gid), int(gid), int(gid))
            os.setresuid(int(uid), int(uid), int(uid))
        what = path
        os.execv(path, argv)
    except OSError as error:
        sys.exit(f"{what}: {error.strerror}" + ("" if what is root else f" (below {root})"))


if __name__ == "__main__":
    main(sys.argv[1:])
