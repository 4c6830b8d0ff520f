"""makemap(8): a text file of keys and values to the database that a `db:` table reads; `-U` shows what one holds."""

import getopt
import os
import signal
import stat
import sys
from collections.abc import Callable

from pillarbox.cli.invocation import program_name
from pillarbox.errors import PillarboxError
from pillarbox.routing.aliases import AliasError, parse_member
from pillarbox.tables.berkeley import read_database
from pillarbox.tables.database import DatabaseError
from pillarbox.tables.mapfile import Format, Kind, MapError, lock_source, parse_map, replace_database

USAGE = "usage: makemap [-U] [-d dbtype] [-o dbfile] [-t type] file"
_OPTIONS = "b:C:d:ho:O:t:U"
_STDIN = "-"


class Usage(PillarboxError):
    """The program was called in a way that it does not know; the text is what is said about it."""


def main() -> int:
    """The console entry; returns the exit status."""
    return guarded("makemap", lambda: _run(sys.argv[1:]))


def guarded(name: str, command: Callable[[], int]) -> int:
    """A command, its errors told as err(3) does."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `makemap -U … | head` ends quietly
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return command()
    except Usage as error:
        print(error, file=sys.stderr)
    except PillarboxError as error:
        complain(name, str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


def _end(number: int, frame: object) -> None:
    """Told to end: by an exception, so that what was begun is tidied up."""
    sys.exit(128 + number)


def complain(name: str, text: str) -> None:
    """A line on stderr, whatever bytes a file or its name holds."""
    sys.stderr.flush()
    sys.stderr.buffer.write(os.fsencode(f"{name}: {text}\n"))
    sys.stderr.buffer.flush()


def parse_options(arguments: list[str], known: str, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    """getopt(3) with the messages of glibc; raises `Usage`."""
    try:
        options, rest = getopt.gnu_getopt(arguments, known)
    except getopt.GetoptError as error:
        what = "option requires an argument" if f"{error.opt}:" in known else "invalid option"
        raise Usage(f"{program_name()}: {what} -- '{error.opt[:1]}'\n{usage}") from None
    if any(option == "-h" for option, _ in options):
        raise Usage(usage)
    return options, rest


def _run(arguments: list[str]) -> int:
    options, rest = parse_options(arguments, _OPTIONS, USAGE)
    given = dict(options)
    layout = _layout(given.get("-d", Format.HASH))
    kind = _kind(given["-t"]) if "-t" in given else Kind.PLAIN
    target = given.get("-o", "")
    # What sendmail's programs of these names took: `-bi`, `-O AliasFile=FILE`, and `TYPE DATABASE < SOURCE`.
    option, _, aliases = given.get("-O", "").partition("=")
    aliases = aliases if option == "AliasFile" else ""
    if given.get("-b") == "i":
        from pillarbox.cli import newaliases  # noqa: PLC0415 - it reads configurations, which needs much

        return newaliases.make_aliases(rest, source=aliases, target=target, layout=layout)
    if len(rest) == 2 and not target:
        layout, target = _layout(rest[0]), _with_suffix(rest[1])
        rest = [_STDIN]
    if len(rest) != 1:
        raise Usage(USAGE)
    if "-U" in given:
        return _dump(rest[0])
    target = target or f"{rest[0]}.db"
    if make_map(rest[0], target, Kind.ALIASES if aliases else kind, layout) == 0:
        complain("makemap", f"warning: empty map created: {target}")
    return 0


def _with_suffix(path: str) -> str:
    return path if path.partition(".db")[1:] == (".db", "") else f"{path}.db"


def _layout(given: str) -> Format:
    if given not in list(Format):
        raise MapError(f"unsupported DB type '{given}'")
    return Format(given)


def _kind(given: str) -> Kind:
    if given not in (Kind.ALIASES, Kind.SET):
        raise MapError(f"unsupported type '{given}'")
    return Kind(given)


def make_map(source: str, target: str, kind: Kind, layout: Format) -> int:
    """Make the database `target` of a text; returns how many entries it has. Raises `MapError`, `target` unchanged."""
    like = None if source == _STDIN else _status(source)
    try:
        with open(0, "rb", closefd=False) if source == _STDIN else open(source, "rb") as file:
            lock_source(file, source)
            pairs = parse_map(file, name=source, kind=kind, is_alias=is_alias)
    except OSError as error:
        raise MapError(f"{source}: {error.strerror}") from None
    replace_database(target, pairs, layout, like=like)
    return len(pairs)


def _status(source: str) -> os.stat_result:
    try:
        return os.stat(source)
    except (OSError, ValueError) as error:
        raise MapError(f"stat: {source}: {getattr(error, 'strerror', None) or error}") from None


def is_alias(text: str) -> bool:
    """Is this one member of an alias that mail can be delivered to (aliases(5))?"""
    try:
        return bool(text) and parse_member(text) is not None
    except AliasError:
        return False


def _dump(path: str) -> int:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DatabaseError("not a file")
            database = read_database(lambda offset, size: os.pread(file.fileno(), size, offset), status.st_size)
            for key, value in database.items():
                sys.stdout.buffer.write(_text(key) + b"\t" + _text(value) + b"\n")
        sys.stdout.buffer.flush()
    except OSError as error:
        raise MapError(f"dbopen: {path}: {error.strerror}") from None
    except DatabaseError as error:
        raise MapError(f"dbopen: {path}: {error}") from None
    return 0


def _text(stored: bytes) -> bytes:
    return stored[:-1] if stored.endswith(b"\0") else stored


if __name__ == "__main__":
    sys.exit(main())
