"""`smtpd-events record`: the recorder, with the descriptors and signals of a process."""

import argparse
import os
import signal
import sys
import time

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import PERIODS, SUFFIXES, LogFiles, stream_factory
from pillarbox.eventlog.recorder import Recorder, write_soon

_ALL = ("smtp-in", "smtp-out", "mda")


def record(options: argparse.Namespace, folder: str) -> int:
    """Record what comes on standard input until it ends. Raises PillarboxError where it cannot begin."""
    if os.isatty(0):
        raise PillarboxError(
            "a mail server starts the recorder, and talks to it on its standard input, where you are;"
            ' as in smtpd.conf: proc recorder "smtpd-events record" (docs/events.md)'
        )
    files = LogFiles(
        folder,
        size=int(options.size * 1e6),
        period=PERIODS[options.every],
        keep=options.keep,
        suffix=SUFFIXES[options.compress],
        stream=stream_factory(options.compress),
        now=time.time,
    )
    try:
        files.check()
    except OSError as error:
        raise PillarboxError(
            f"{folder}: {error.strerror}; make the folder and give it to the user that the recorder runs as"
            f" (uid {os.geteuid()}), or name another with --dir"
        ) from None
    recorder = Recorder(
        files=files,
        subsystems=options.subsystem or _ALL,
        limit=int(options.buffer * 1e6),
        now=time.time,
        monotonic=time.monotonic,
        complain=write_soon,
    )
    os.set_blocking(0, True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.set_blocking(0, False))  # what is there is read, then it is over
    signal.signal(signal.SIGHUP, lambda *_: recorder.rotate())
    status = recorder.run(0, 1)
    sys.stderr.flush()
    return status
