"""`python -m tests.fuzz TARGET [SECONDS [FOLDER]]`: give mutations of the recorded dialogues to a target, with atheris.

FOLDER (of one target) keeps what reached new code for the next time, and the input of a failure. Exit status 0 where
nothing was found; else the input is printed.
"""

import sys
import tempfile
from pathlib import Path

import atheris

_PACKAGES = ["pillarbox.smtp", "pillarbox.mail", "pillarbox.server.headers"]


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=_PACKAGES):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.seeds import seeds

    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number:03}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2000", "-max_len=20000"]
    atheris.Setup([sys.argv[0], str(folder), f"-artifact_prefix={folder}/", "-verbosity=0", *limits], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
