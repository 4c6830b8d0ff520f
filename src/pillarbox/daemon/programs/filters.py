"""The programs of filters, in the parent: what a processor's command means, as whom it runs, started as filter asks.

The parent never reads what a processor says: its socket is handed to the filter role (`handed`), which speaks
smtpd-filters(7) with it and decides when it has to be started again. That role can name processors of a configuration,
nothing else.
"""

import grp
import os
import pwd
import shlex
import socket
from collections.abc import Callable
from functools import partial

from pillarbox import places
from pillarbox.conf.model import Config, Proc
from pillarbox.daemon.check import find_program
from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.programs.programs import Identity, Programs
from pillarbox.errors import ConfigError, Problem, TempFail

SHELL = "/bin/sh"
GRACE_MAX = 10.0  # seconds that the filter role may give a processor to end by itself


class FilterPrograms:
    """Implements `roles.parent.FilterPrograms`. `hand(token, socket)` sends a socket to filter; it stays ours to close.

    `configs`: the configuration of a generation, also of one that filter is only preparing; None: there is none.
    `account()`: whom processors run as that name no user; None: all of them run as whoever we are.
    """

    def __init__(
        self,
        *,
        configs: Callable[[int], Config | None],
        programs: Programs,
        account: Callable[[], Account] | None,
    ) -> None:
        self._configs = configs
        self._programs = programs
        self._account = account
        self.hand: Callable[[int, socket.socket], None] | None = None

    async def start_processor(self, number: int, generation: int, name: str, token: int) -> int:
        """See `roles.parent.FilterPrograms`."""
        config = self._configs(generation)
        proc = None if config is None else config.procs.get(name)
        if proc is None:
            raise TempFail("no such processor in this configuration")
        account = self._account
        connection = await self._programs.start(
            str(number),
            name,
            SHELL,
            ["-c", f"exec {full_command(proc)}"],
            argv0="sh",
            identity=None if account is None else partial(_identity, proc, account),
            root="" if account is None else proc.chroot,
        )
        with connection:
            if self.hand is not None:
                self.hand(token, connection)
        return self._programs.pid(str(number))

    async def stop_processor(self, number: int, grace: float) -> None:
        """See `roles.parent.FilterPrograms`."""
        await self._programs.stop(str(number), min(grace, GRACE_MAX))

    async def stop_all(self) -> None:
        """End all of them."""
        await self._programs.stop_all()


def full_command(proc: Proc) -> str:
    """Its command. One without a slash at the beginning is a program with ours, or with the reference's."""
    if proc.command.startswith("/"):
        return proc.command
    program, space, arguments = proc.command.partition(" ")
    return (find_program(program) or f"{places.libexec()}/{program}") + space + arguments


def _identity(proc: Proc, account: Callable[[], Account]) -> Identity | None:
    """Its user and group, without any other group as with the reference; None: it names none. TempFail: no such."""
    if not proc.user and not proc.group:
        return None
    try:
        uid, gid = pwd.getpwnam(proc.user)[2:4] if proc.user else (account().uid, 0)
    except KeyError:
        raise TempFail(f"no user {proc.user}") from None
    try:
        gid = grp.getgrnam(proc.group).gr_gid if proc.group else gid
    except KeyError:
        raise TempFail(f"no group {proc.group}") from None
    return Identity(uid, gid, (gid,))


def check_processors(config: Config, *, as_root: bool) -> None:
    """Raise ConfigError where a processor cannot be started: no such program, user or group."""
    found = [(proc, _fault(proc, as_root)) for proc in config.procs.values()]
    problems = [Problem(fault, proc.file or config.file, proc.line) for proc, fault in found if fault]
    if problems:
        raise ConfigError(problems)


def _fault(proc: Proc, as_root: bool) -> str:
    if as_root:
        try:
            _identity(proc, lambda: Account("", 0, 0))  # who it is otherwise is no question of the configuration
        except TempFail as error:
            return f"processor {proc.name}: {error}"
    try:
        path = shlex.split(full_command(proc))[0]
    except ValueError as error:
        return f"processor {proc.name}: {proc.command}: {error}"
    if any(c in path for c in "$`*?"):
        return ""  # the shell knows what is meant
    real = os.path.join(proc.chroot, path.lstrip("/")) if proc.chroot and as_root else path
    if not os.path.exists(real):
        return f"processor {proc.name}: {real}: no such program"
    if not os.path.isfile(real) or not os.stat(real).st_mode & 0o111:
        return f"processor {proc.name}: {real} is not executable"
    return ""
