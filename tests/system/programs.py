"""Runs the package's programs from a process that has imported them already, forked anew for each call.

A corpus asks `smtpctl` a thousand times; most of what a call costs is starting Python and importing. What runs is the
program's own entry, in a process of its own, with its own arguments, environment, user and descriptors.
"""

import atexit
import importlib.metadata
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

DEADLINE = 60.0  # seconds a program may take
_PRELOAD = [
    "pillarbox.cli.smtpctl",
    "pillarbox.cli.sendmail",
    "pillarbox.cli.smtpd",
    "pillarbox.daemon.check",
    "pillarbox.daemon.explain",
]


class Programs:
    """The process that forks. Starts with the first call."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, argv: list[str], stdin: bytes, user: str, env: dict[str, str]) -> tuple[int, bytes, bytes]:
        """(exit status, stdout, stderr) of a program by name. Raises TimeoutError."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"argv": argv, "stdin": stdin.decode("latin-1"), "user": user, "env": env}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
        if not readable:
            self.stop()
            raise TimeoutError(f"{argv} did not end within {DEADLINE:.0f} s")
        answer = json.loads(process.stdout.readline())
        return answer["exit"], answer["out"].encode("latin-1"), answer["err"].encode("latin-1")

    def stop(self) -> None:
        """End the process, and with it a program that it waits for."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> "subprocess.Popen[bytes]":
        atexit.register(self.stop)
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )


def main() -> None:
    """Answer orders until the end of file."""
    entries = {e.name: e for e in importlib.metadata.distribution("pillarbox").entry_points}
    for module in _PRELOAD:
        importlib.import_module(module)
    for line in sys.stdin.buffer:
        order = json.loads(line)
        files = {name: os.fdopen(os.memfd_create(name), "w+b") for name in ("stdin", "out", "err")}
        files["stdin"].write(order["stdin"].encode("latin-1"))
        for file in files.values():
            file.seek(0)
        child = os.fork()
        if child == 0:
            _become(order, files, entries[Path(order["argv"][0]).name].load)
        _, status = os.waitpid(child, 0)
        answer = {name: _content(files[name]) for name in ("out", "err")}
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status), **answer}), flush=True)


def _become(order: dict[str, Any], files: Mapping[str, IO[bytes]], load: Callable[[], Callable[[], object]]) -> None:
    """In the child: be the program, and end."""
    status = 1
    try:
        for descriptor, name in enumerate(("stdin", "out", "err")):
            os.dup2(files[name].fileno(), descriptor)
        os.environ.clear()
        os.environ.update(order["env"])
        if order["user"]:
            _drop_to(order["user"])
        sys.argv = order["argv"]
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the old one has read ahead in our orders
        status = _status(load()())
    except SystemExit as end:
        status = _status(end.code)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top of a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _drop_to(name: str) -> None:
    import pwd

    account = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _status(code: object) -> int:
    return code & 0xFF if isinstance(code, int) else int(code is not None)


def _content(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode("latin-1")


if __name__ == "__main__":
    main()
