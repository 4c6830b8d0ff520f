"""Pairs of one configuration in the grammar of before 6.4 and in today's: refused, converted, and the same then."""

import re
from pathlib import Path
from typing import Any

import msgspec

from pillarbox.conf.build import load_config
from pillarbox.conf.model import Config
from pillarbox.errors import ConfigError
from tests.corpus.runner.cases import Case
from tests.corpus.runner.place import fresh, put
from tests.corpus.runner.stage import Stage
from tests.system.server import run

_PLACES = {"line", "file", "warnings"}
_DYNAMIC = re.compile(r"<dynamic:\d+>\Z")


def judge_migration(case: Case, stage: Stage) -> str:
    """`smtpd -n` on the old file, `smtpd-convert`, and `smtpd -n` on what came out and on what was recorded."""
    fresh(case.data.get("files"))
    old = str(put("old.conf", case.data["old"]))
    refused = run(["smtpd", "-n", "-f", old])
    lines = sorted(set(map(int, re.findall(r"^\S+:(\d+): ", refused.err, re.MULTILINE))))
    recorded = case.data["old_refused_at_lines"]
    # The reference is silent about errors that follow one another closely; we name every line.
    if not refused.exit or lines[:1] != recorded[:1] or not set(recorded) <= set(lines):
        return f"refused at {lines}, recorded {recorded}: {refused.err[:300]!r}"
    if "smtpd-convert" not in refused.err.splitlines()[-1]:
        return f"no word of smtpd-convert: {refused.err[-200:]!r}"
    converted = run(["smtpd-convert", old])
    if converted.exit not in (0, 1):
        return f"smtpd-convert: exit {converted.exit}: {converted.err[:300]!r}"
    for name, text in (("converted", converted.out), ("recorded", case.data["new"])):
        checked = run(["smtpd", "-n", "-f", str(put(f"{name}.conf", text))])
        if checked.exit:
            return f"{name} is refused: {checked.err[:300]!r}"
    return _compare(converted.out, case)


def _compare(converted: str, case: Case) -> str:
    try:
        ours, theirs = _model(put("ours.conf", converted)), _model(put("theirs.conf", case.data["new"]))
    except ConfigError as error:
        return str(error)
    for field, value in theirs.items():
        if ours[field] != value:
            return f"{field}: {ours[field]!r}, recorded {value!r}"
    return ""


def _model(path: Path) -> dict[str, Any]:
    config = load_config(
        file=str(path), read=lambda name: Path(name).read_text(), macros={}, hostname="mx.example.org", checker=None
    )
    return comparable(config)


def comparable(config: Config) -> dict[str, Any]:
    """A configuration without places: tables without a name by what is in them, listeners in no order."""
    unnamed = {name: repr(table.entries) for name, table in config.tables.items() if _DYNAMIC.match(name)}

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key not in _PLACES and key not in unnamed}
        if isinstance(value, list | tuple):
            return [strip(part) for part in value]
        return unnamed.get(value, value) if isinstance(value, str) else value

    model: dict[str, Any] = strip(msgspec.to_builtins(config))
    model["listeners"] = sorted((listener | {"id": 0} for listener in model["listeners"]), key=repr)
    return model
