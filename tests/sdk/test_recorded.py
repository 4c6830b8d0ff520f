"""What the real smtpd 7.8 asked its tables, asked of tables written on the SDK: the same answers as recorded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillarbox.sdk.table import Service, Table
from pillarbox.sdk.testing import Harness

CASES = json.loads((Path(__file__).resolve().parent.parent / "corpus/ctl/tables.json").read_text())
TABLES = [
    pytest.param(case["tables"][f"tp/{name}.json"], lines, id=f"{case['id']}-{name}")
    for case in CASES
    for name, lines in case.get("requests", {}).items()
]


def written(content: dict[str, Any]) -> Table:
    """A table with what the recorded one held."""
    table = Table()

    def lookup(service: str) -> Callable[[str], str | None]:
        return lambda key: content["data"].get(service, {}).get(key)

    for name in content["services"]:
        if name == "auth":
            table.check(Service.AUTH)(lambda key: key in content["data"]["auth"])
        else:
            table.lookup(Service(name))(lookup(name))
        if name in ("source", "relayhost"):
            table.fetch(Service(name))(lambda: content["fetch"])
    return table


@pytest.mark.parametrize(("content", "lines"), TABLES)
def test_the_recorded_questions_get_the_recorded_answers(content: dict[str, Any], lines: list[str]) -> None:
    said = [line[2:] for line in lines if line.startswith("> ")]
    asked = [line[2:] for line in lines if line.startswith("< table|")]
    with Harness(written(content)) as harness:
        answers = [harness.ask(line.replace("<ts>", "1.000001").replace("<reqid>", "0badcafe")) for line in asked]
        assert [f"register|{name}" for name in harness.registered] + ["register|ready"] == said[: -len(answers) or None]
        for question, answer, recorded in zip(asked, answers, said[-len(answers) :] if answers else [], strict=True):
            service = question.split("|")[5]
            if service in content["services"] or question.split("|")[4] == "update":
                assert answer == recorded.replace("<reqid>", "0badcafe")
            else:
                # smtpd asks without a look at what was registered; the recorded table said "not-found" to that.
                assert answer.partition("|")[2].startswith("0badcafe|error|this table offers no ")
