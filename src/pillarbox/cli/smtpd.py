"""smtpd(8): `smtpd [-dFhnv] [-D macro=value] [-f file] [-P system] [-T trace]`, and ours.

Ours: `--state DIR`, `--one-process`, `--dispatchers N`, `--version`.
"""

import argparse
import os
import sys

from pillarbox import REFERENCE_VERSION, __version__
from pillarbox.errors import ConfigError, PillarboxError

_PAUSABLE = ("mda", "mta", "smtp")


def main() -> None:
    """The console entry: exits with the server's status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Parse the command line and do what it says; returns the exit status."""
    options = _parser().parse_args(arguments)
    from pillarbox import places  # noqa: PLC0415 - `-h` answers at once

    file = places.config_file(options.file, environ=os.environ, uid=os.geteuid())
    if options.check:
        from pillarbox.daemon.check import check_config  # noqa: PLC0415

        status = check_config(file, dict(options.macros), show=sys.stdout if options.verbose else None)
        if status:
            _hint(file)
        return status
    return _serve(options, file, places.server_state(options.state, environ=os.environ, uid=os.geteuid()))


def _serve(options: argparse.Namespace, file: str, state: str) -> int:
    from pillarbox.daemon import launch  # noqa: PLC0415 - only the server needs all of it
    from pillarbox.daemon.check import read_config  # noqa: PLC0415
    from pillarbox.daemon.settings import Settings  # noqa: PLC0415
    from pillarbox.log import Log, stderr_log  # noqa: PLC0415

    settings = Settings(
        file=os.path.abspath(file),
        state=os.path.abspath(state),
        directory=os.getcwd(),
        macros=dict(options.macros),
        foreground=options.foreground,
        debug=options.debug,
        verbose=options.verbose > 0 or bool(options.trace),
        one_process=options.one_process,
        dispatchers=options.dispatchers,
        paused=tuple(dict.fromkeys(options.paused)),
        trace=tuple(options.trace),
    )
    try:
        config = read_config(settings.file, settings.macros)
        log = stderr_log(verbose=settings.verbose) if settings.debug else Log(verbose=settings.verbose)
        return launch.launch(config, settings, log)
    except ConfigError as error:
        print(error, file=sys.stderr)
        _hint(settings.file)
    except PillarboxError as error:
        print(f"smtpd: {error}", file=sys.stderr)
    return 1


def _hint(file: str) -> None:
    """What to do with a configuration that looks older than 6.4."""
    from pillarbox.conf.legacy import is_legacy  # noqa: PLC0415 - only where something is wrong
    from pillarbox.daemon.check import read_file  # noqa: PLC0415

    try:
        old = is_legacy(read_file(file))
    except OSError:
        return
    if old:
        print(
            f"{file} looks older than OpenSMTPD 6.4: `smtpd-convert {file}` prints it in today's grammar",
            file=sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smtpd", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("-h", action="help", help="show this and end")
    add("--version", action="version", version=f"Pillarbox {__version__} (as OpenSMTPD {REFERENCE_VERSION})")
    add("-d", dest="debug", action="store_true", help="stay in the foreground and log to stderr")
    add("-F", dest="foreground", action="store_true", help="stay in the foreground and log to syslog")
    add(
        "-n",
        dest="check",
        action="store_true",
        help="check the configuration and end; with -v, print it in canonical form",
    )
    add("-v", dest="verbose", action="count", default=0, help="log more")
    add("-D", dest="macros", action="append", default=[], type=macro, metavar="macro=value", help="define a macro")
    add("-f", dest="file", metavar="file", help="the configuration")
    add("-P", dest="paused", action="append", default=[], choices=_PAUSABLE, help="start with a part paused")
    add("-T", dest="trace", action="append", default=[], metavar="trace", help="trace a subsystem (logs as -v)")
    add("--state", metavar="DIR", help="where everything that is written lies (also PILLARBOX_STATE)")
    add("--one-process", action="store_true", help="run all roles in this process")
    add("--dispatchers", type=_count, default=_dispatchers(), metavar="N", help="processes that hold sessions")
    return parser


def _dispatchers() -> int:
    """Half as many as cores: queue and lookup need the others. On two cores one was 10 % faster than two."""
    return max(1, (os.cpu_count() or 1) // 2)


def macro(text: str) -> tuple[str, str]:
    """An argument of `-D`. Raises ArgumentTypeError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not macro=value")
    return name, value


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("1 to 64")
    return number


if __name__ == "__main__":
    main()
