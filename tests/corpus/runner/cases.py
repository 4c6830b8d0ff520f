"""The cases of a corpus folder, and what is known about them: what waits, what is meant to differ."""

import fnmatch
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
FILES = {
    "config": "config/cases.json",
    "dialog": "dialog/cases.json",
    "expand": "expand/cases.json",
    "delivery": "delivery/cases.json",
    "relay": "relay/cases.json",
    "filter": "filter/cases.json",
    "migration": "migration/cases.json",
    "commands": "ctl/commands.json",
    "sendmail": "ctl/sendmail.json",
    "makemap": "ctl/makemap.json",
    "smtp1": "ctl/smtp1.json",
    "spool": "ctl/spool.json",
    "tables": "ctl/tables.json",
    "spf": "ctl/spf.json",
}


@dataclass(frozen=True)
class Case:
    """One recorded case."""

    kind: str
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its name within its kind."""
        return str(self.data["id"])

    @property
    def name(self) -> str:
        """Its name: `kind/id`."""
        return f"{self.kind}/{self.id}"


def load(folder: Path, kind: str) -> list[Case]:
    """The cases of a kind, none where the folder has no such file. A record without an id is part of every case."""
    path = folder / FILES[kind]
    if not path.exists():
        return []
    records = json.loads(path.read_text())
    shared = {name: value for record in records if "id" not in record for name, value in record.items()}
    return [Case(kind, {**shared, **record}) for record in records if "id" in record]


class Notes:
    """A data file of `"kind/pattern" = …` entries; the first pattern that fits a case is its note."""

    def __init__(self, path: Path) -> None:
        self.entries: dict[str, Any] = tomllib.loads(path.read_text())

    def find(self, case: Case) -> Any:
        """The note on this case, None where there is none."""
        for pattern, note in self.entries.items():
            if fnmatch.fnmatchcase(case.name, pattern):
                return note
        return None


def pending() -> Notes:
    """Cases that wait: the text says for what."""
    return Notes(HERE / "pending.toml")


def differs() -> Notes:
    """Cases that we mean to answer otherwise: `reason`, and `expect`, changes to the recording (see differs.toml)."""
    return Notes(HERE / "differs.toml")
