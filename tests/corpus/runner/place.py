"""The files of a case: a fresh copy of the fixtures, homes to deliver into, and what the case brings itself."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import sandbox
from tests.corpus.runner.text import GID, ROOT, UID, fill

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
_BINARY = {".crt", ".key", ".db", ".pem"}


def fresh(files: Mapping[str, Any] | None = None) -> None:
    """Empty `@ROOT@` and lay out a case's files in it."""
    shutil.rmtree(ROOT, ignore_errors=True)
    sandbox.clean_homes()
    ROOT.mkdir(parents=True)
    for path in sorted(FIXTURES.rglob("*")):
        if path.is_file():
            _copy(path, ROOT / path.relative_to(FIXTURES))
    for name in ("alice", "bob", "carol", "dave", "erin", "frank"):
        home = ROOT / "home" / name
        home.mkdir(parents=True)
        os.chown(home, UID, GID)
    (ROOT / "out").mkdir()
    (ROOT / "out").chmod(0o777)
    for name, spec in (files or {}).items():
        put(name, spec)


def put(name: str, spec: Any) -> Path:
    """Write one file: a text, lines, or `{text | copy_of, mode}`. Files in homes belong to their owner."""
    mode = None
    if isinstance(spec, Mapping):
        mode = spec.get("mode")
        spec = spec["text"] if "text" in spec else (ROOT / spec["copy_of"]).read_text()
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fill(joined(spec)), newline="")
    path.chmod(int(mode, 8) if mode else 0o755 if path.suffix in (".py", ".sh") else 0o644)
    if "home" in Path(name).parts:
        for owned in (path, *path.parents):
            if owned == ROOT or owned.parent == ROOT:
                break
            os.chown(owned, UID, GID)
    return path


def joined(text: str | Sequence[str]) -> str:
    """A text that a case gives whole or as lines."""
    return text if isinstance(text, str) else "\n".join(text) + "\n"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in _BINARY:
        shutil.copyfile(source, target)
        target.chmod(0o600 if source.suffix == ".key" else 0o644)
    else:
        target.write_text(fill(source.read_text()))
        target.chmod(0o755 if source.parent.name in ("bin", "filters") else 0o644)
