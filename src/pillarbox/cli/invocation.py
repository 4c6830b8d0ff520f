"""What every program of ours does with its own name and with `--state`."""

import os
import sys


def program_name() -> str:
    """The name that this program was started by, for its messages."""
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def split_state(arguments: list[str]) -> tuple[str | None, list[str]]:
    """`--state DIR` or `--state=DIR` before the command, and what remains."""
    state, rest = None, list(arguments)
    while rest and rest[0].partition("=")[0] == "--state":
        option = rest.pop(0)
        if "=" in option:
            state = option.partition("=")[2]
        elif rest:
            state = rest.pop(0)
    return state, rest
