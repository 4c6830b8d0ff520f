"""smtpd-convert: an smtpd.conf of before OpenSMTPD 6.4 in today's grammar.

`smtpd-convert [-r] [-d DIR] [-o FILE] [-D macro=value] OLD`; "-" is stdin, output goes to stdout. Exit status: 0 all is
converted (or was in today's grammar), 1 something wants attention, 2 it could not be read or written.
"""

import argparse
import errno
import os
import stat
import sys
from collections.abc import Mapping

from pillarbox import places
from pillarbox.cli.smtpd import macro
from pillarbox.conf.legacy import Conversion, convert_config
from pillarbox.errors import ConfigError
from pillarbox.replacement import Replacement

_STDIN = "-"
_PRIVATE = 0o600  # a configuration may hold keys
_MAX_FILE = 1 << 26  # bytes


class _CannotWrite(Exception):
    """An output file that cannot be written; the text says which and why."""


def main() -> None:
    """The console entry: exits with the status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Convert what the command line names; returns the exit status."""
    options = _parser().parse_args(arguments)
    name = "stdin" if options.file == _STDIN else options.file
    given = sys.stdin.buffer.read(_MAX_FILE + 1) if options.file == _STDIN else None

    def read(path: str) -> str:
        return _decoded(given) if given is not None and path == name else _read_file(path)

    try:
        conversion = convert_config(
            file=name,
            read=read,
            macros=dict(options.macros),
            hostname=places.host_name(),
            follow=options.follow or bool(options.directory),
        )
        for place in _write(options, name, conversion.files):
            print(f"smtpd-convert: wrote {place}", file=sys.stderr)
    except (ConfigError, _CannotWrite) as error:
        print(_shown(str(error), sys.stderr.encoding), file=sys.stderr)
        return 2
    return _tell(name, conversion)


def _tell(name: str, conversion: Conversion) -> int:
    for remark in conversion.remarks:
        print(_shown(str(remark), sys.stderr.encoding), file=sys.stderr)
    if not conversion.changed and conversion.complete:
        print(f"smtpd-convert: nothing in {name} is of the grammar of before 6.4: left as it is", file=sys.stderr)
        return 0
    attention = sum(remark.attention for remark in conversion.remarks)
    print(
        f"smtpd-convert: rules: {conversion.rules}, actions: {conversion.actions}, to look at: {attention}",
        file=sys.stderr,
    )
    return int(not conversion.complete)


def _write(options: argparse.Namespace, name: str, files: Mapping[str, str]) -> list[str]:
    """Write every file to its place; returns the places, without stdout."""
    targets = _targets(options, name, files)
    for path, target in targets.items():
        if target == _STDIN:
            sys.stdout.buffer.write(_encoded(files[path]))
            sys.stdout.flush()
        else:
            _replace(target, files[path], like=None if path == name and options.file == _STDIN else path)
    return [target for target in targets.values() if target != _STDIN]


def _targets(options: argparse.Namespace, name: str, files: Mapping[str, str]) -> dict[str, str]:
    """Where each file goes: stdout, `-o`, FILE.new for what is included, or all into one directory."""
    targets: dict[str, str] = {}
    for path in files:
        if options.directory:
            base = os.path.basename(path) if path != "stdin" else "smtpd.conf"
            targets[path] = os.path.join(options.directory, base)
        else:
            targets[path] = (options.output or _STDIN) if path == name else f"{path}.new"
    if options.directory and options.output:
        targets[name] = options.output
    written = [target for target in targets.values() if target != _STDIN]
    if len(set(written)) < len(written):
        raise _CannotWrite("smtpd-convert: two of the files would get one name: use FILE.new (no -d)")
    for target in written:
        if any(_same(target, path) for path in files):
            raise _CannotWrite(f"smtpd-convert: {target} is what is converted: write it to another place")
    return targets


def _same(target: str, path: str) -> bool:
    try:
        return os.path.samefile(target, path)
    except OSError:
        return False


def _replace(target: str, text: str, *, like: str | None) -> None:
    """Write a file whole or not at all, with the mode of the one that it comes from."""
    try:
        mode = stat.S_IMODE(os.stat(like).st_mode) & 0o666 if like is not None else _PRIVATE
        with Replacement(target, prefix=".smtpd-convert.") as file:
            file.write(_encoded(text))
            os.fchmod(file.fileno(), mode)
    except OSError as error:
        raise _CannotWrite(f"smtpd-convert: cannot write {target}: {error.strerror or error}") from None


def _read_file(path: str) -> str:
    """A configuration, byte for byte: what is not UTF-8 goes out again as it came in. Raises OSError."""
    with open(path, "rb") as file:
        return _decoded(file.read(_MAX_FILE + 1))


def _decoded(data: bytes) -> str:
    """A file's text. Raises OSError where it is longer than a configuration can be: what is cut is lost."""
    if len(data) > _MAX_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(text: str, encoding: str) -> str:
    """A text that this terminal can show: a file may hold any byte."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="smtpd-convert",
        description="Write an smtpd.conf of before OpenSMTPD 6.4 in today's grammar.",
        epilog="Exit status: 0 converted, 1 something wants attention, 2 it could not be read or written.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="OLD", help="the configuration to convert; - is stdin")
    add("-o", dest="output", metavar="FILE", help="write to FILE instead of stdout")
    add("-r", dest="follow", action="store_true", help="convert what it includes too, into FILE.new")
    add("-d", dest="directory", metavar="DIR", help="convert what it includes too, all of it into DIR")
    add("-D", dest="macros", action="append", default=[], type=macro, metavar="macro=value", help="define a macro")
    return parser


if __name__ == "__main__":
    main()
