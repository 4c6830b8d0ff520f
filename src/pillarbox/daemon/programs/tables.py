"""The programs of tables, in the parent: which program a table means, started and ended as lookup asks.

The parent never reads what a program says: its socket is handed to lookup (`handed`), which speaks
smtpd-tables(7) with it (`tables/program`) and decides when it has to be started again. Lookup can name tables of a
configuration, nothing else.
"""

import socket
from collections.abc import Callable

from pillarbox.conf.model import Config, Table, TableKind
from pillarbox.daemon.check import find_table_program
from pillarbox.daemon.programs.programs import Programs
from pillarbox.errors import TempFail


class TablePrograms:
    """Implements `roles.parent.Programs`. `hand(token, socket)` sends a socket to lookup; it stays ours to close.

    `configs`: the configuration of a generation, also of one that lookup is only preparing; None: there is none.
    """

    def __init__(self, *, configs: Callable[[int], Config | None], programs: Programs) -> None:
        self._configs = configs
        self._programs = programs
        self.hand: Callable[[int, socket.socket], None] | None = None

    async def start_table(self, generation: int, table: str, token: int) -> None:
        """See `roles.parent.Programs`."""
        config = self._configs(generation)
        found = None if config is None else config.tables.get(table)
        if found is None or found.kind is not TableKind.PROC:
            raise TempFail("no such table in this configuration")
        path, arguments = _command(found)
        connection = await self._programs.start(_key(generation, table), table, path, arguments)
        with connection:
            if self.hand is not None:
                self.hand(token, connection)

    async def stop_table(self, generation: int, table: str) -> None:
        """See `roles.parent.Programs`."""
        await self._programs.stop(_key(generation, table))

    async def stop_generation(self, generation: int) -> None:
        """End those of a configuration that nothing goes by any more."""
        await self._programs.stop_those(lambda key: key.startswith(_key(generation, "")))

    async def stop_all(self) -> None:
        """End all of them."""
        await self._programs.stop_all()


def _key(generation: int, table: str) -> str:
    return f"{generation} {table}"


def _command(table: Table) -> tuple[str, list[str]]:
    """Program and arguments: `backend:/config` is `table-backend /config`; `proc:/path` is that program itself."""
    if table.backend == "proc":
        return table.config, []
    path = find_table_program(table.backend)
    if not path:
        raise TempFail(f"table-{table.backend} is not installed")
    return path, [table.config] if table.config else []
