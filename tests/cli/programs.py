"""The programs as people call them: processes of their own, under their own names."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_START = "import sys; from pillarbox.cli.{module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
_ENTRIES = {
    "mailq": ("smtpctl", "mailq"),
    "sendmail": ("sendmail", "main"),
    "smtpd": ("smtpd", "main"),
    "smtpd-convert": ("convert", "main"),
    "smtpd-events": ("events", "main"),
    "makemap": ("makemap", "main"),
    "newaliases": ("newaliases", "main"),
}


def run(
    argv: Sequence[str],
    *,
    state: Path | str = "/nonexistent",
    stdin: bytes = b"",
    user: int | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 60,
    cwd: Path | str = "/",
) -> "subprocess.CompletedProcess[bytes]":
    """Run `argv[0]`, one of ours, against a state directory; `user`: as this uid (needs root)."""
    module, function = _ENTRIES.get(argv[0], ("smtpctl", "main"))
    start = _START.format(module=module, function=function, name=argv[0])
    return subprocess.run(
        [sys.executable, "-c", start, *argv[1:]],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd=cwd,
        env={**os.environ, "PILLARBOX_STATE": str(state), "PYTHONPATH": "", **(environment or {})},
    )


def lines(data: bytes) -> list[str]:
    """Output as the corpus has it."""
    return data.decode().split("\n")[:-1] if data else []
