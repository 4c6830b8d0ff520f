"""newaliases(8): makes the database of the configuration's table `aliases` anew."""

import os
import sys

from pillarbox import places
from pillarbox.cli.makemap import Usage, guarded, make_map, parse_options
from pillarbox.conf.build import load_config
from pillarbox.daemon.check import Machine, read_file
from pillarbox.errors import ConfigError, PillarboxError
from pillarbox.tables.mapfile import Format, Kind

USAGE = "usage: newaliases [-f file]"
_TABLE = "aliases"
_DEFAULT = "/etc/mail/aliases"


class _BeforeTheDatabase(Machine):
    """A machine on which databases need not be there yet: this program makes one."""

    def table_database(self, path: str) -> str:
        return ""


def main() -> int:
    """The console entry; returns the exit status."""
    return guarded("newaliases", lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    options, rest = parse_options(arguments, "f:h", USAGE)
    return make_aliases(rest, config=dict(options).get("-f"))


def make_aliases(
    rest: list[str],
    *,
    config: str | None = None,
    source: str = "",
    target: str = "",
    layout: Format = Format.HASH,
) -> int:
    """Make the database of `source`, or of the file that the configuration names; returns the exit status."""
    if os.geteuid() != 0:
        raise PillarboxError("need root privileges")
    if rest:
        raise Usage(USAGE)
    try:
        source = source or _configured(places.config_file(config, environ=os.environ, uid=0))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    count = make_map(source, target or f"{source}.db", Kind.ALIASES, layout)
    print(f"{source}: {count} aliases")
    return 0


def _configured(path: str) -> str:
    """The text that the table `aliases` comes from. Raises ConfigError."""
    config = load_config(
        file=path, read=read_file, macros={}, hostname=places.host_name(), checker=_BeforeTheDatabase()
    )
    table = config.tables.get(_TABLE)
    if table is None:
        return _DEFAULT
    if not table.config:
        raise PillarboxError(f'table "{_TABLE}" of {path} comes from no file')
    return table.config.removesuffix(".db")


if __name__ == "__main__":
    sys.exit(main())
