"""`smtpctl explain -f FILE`: lookup's own classes in this process, for a configuration that no server runs.

What a server reads with the rights of root is read with those of whoever asks: a `.forward` of somebody else counts as
absent where it may not be read, and the explanation says so. Certificates, keys and interfaces are not looked at: a
file may be meant for another machine, and a key is not everybody's to read.
"""

import os
import time
from typing import NoReturn, cast

from pillarbox import places
from pillarbox.conf.build import load_config
from pillarbox.conf.model import Config, Listener, Pki
from pillarbox.daemon import interfaces
from pillarbox.daemon.assembly.plans import Plans
from pillarbox.daemon.check import Machine, read_file
from pillarbox.daemon.hanging import Hanging
from pillarbox.daemon.system.forwards import Forwards
from pillarbox.dns.resolver import Resolver
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.seal import KEY_SIZE
from pillarbox.roles.explain import Explanation, Question
from pillarbox.roles.parent import System
from pillarbox.routing.lookup import Lookup
from pillarbox.routing.trace import NotSeen


class _Elsewhere(Machine):
    """This machine, as far as rules, tables and users go."""

    def listener(self, listener: Listener) -> str:
        """Any interface will do."""
        return ""

    def table_program(self, backend: str) -> bool:
        """Any program: it is not asked."""
        return True

    def pki(self, pki: Pki) -> tuple[str, str]:
        """Any certificate."""
        return "", ""

    def ca(self, path: str) -> str:
        """Any authority."""
        return ""


class _Reader:
    """The parent's rules for `.forward`, applied by who we are: all that an explanation asks of `System`."""

    def __init__(self, log: Log) -> None:
        self._forwards = Forwards(as_root=os.geteuid() == 0, hanging=Hanging(log), log=log)

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        """See `System.read_forward`; NotSeen where only the server could tell."""
        try:
            return await self._forwards.read(user, uid, gid, home)
        except TempFail as error:
            if os.geteuid() in (0, uid):
                raise
            raise NotSeen(f"{error}; a server reads it as {user}, here it counts as absent") from None

    async def read_database(self, path: str, offset: int) -> NoReturn:
        """A map that we may not read ourselves."""
        raise NotSeen(f"{path} is not ours to read; a server reads it as root")


def read_explained(file: str, macros: dict[str, str]) -> Config:
    """The configuration in a file, whichever machine it is for. Raises ConfigError."""
    return load_config(file=file, read=read_file, macros=macros, hostname=places.host_name(), checker=_Elsewhere())


async def explain_config(config: Config, question: Question, log: Log) -> Explanation:
    """The answer by this configuration, without a server. Raises ConfigError, TempFail."""
    addresses = interfaces.local_addresses()
    resolver = config.resolver
    lookup = Lookup(
        config=config,
        system=cast(System, _Reader(log)),
        resolver=Resolver(
            nameservers=[(resolver.address, resolver.port)] if resolver.address else None, now=time.monotonic
        ),
        seal_key=os.urandom(KEY_SIZE),
        log=log,
        now=time.time,
        local_addresses=lambda: addresses,
        libexec=places.libexec(),
        plans=Plans(libexec=places.libexec(), now=time.time),
    )
    try:
        return await lookup.explain(question)
    finally:
        await lookup.close_tables()
        lookup.close()
