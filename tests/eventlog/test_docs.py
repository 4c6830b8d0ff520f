"""What docs/events.md shows works as it is printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.programs import lines, run

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs/events.md").read_text()
FILTER, TEST = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LOG = re.search(r"^```\n(report\|.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "filter").write_text(FILTER.replace("/usr/bin/env python3", sys.executable))
    (tmp_path / "filter").chmod(0o755)
    assert LOG is not None
    (tmp_path / "sales.log").write_text(LOG[1])
    return tmp_path


def test_a_filter_is_developed_with_a_few_lines_and_no_server(folder: Path) -> None:
    done = run(["smtpd-events", "replay", "--fast", "sales.log", "--", "./filter"], cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines(done.stdout)[:2] == [
        "00000000000000a1 2023-11-14 22:13:20.000000 192.0.2.7:4321",
        "    rcpt-to (sales@example.org): reject 550 5.7.1 not today",
    ]


def test_its_unit_test_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    names: dict[str, object] = {"__name__": "example"}
    exec(f"import json, subprocess\n{TEST}", names)
    test = names["test_sales_is_closed"]
    assert callable(test)
    test()
    (folder / "filter").write_text(FILTER.replace("/usr/bin/env python3", sys.executable).replace("sales@", "others@"))
    with pytest.raises(AssertionError):
        test()


def test_the_shell_s_loop_is_one(folder: Path) -> None:
    match = re.search(r"^smtpd-events cat --event tx-rcpt.*?^```", TEXT, re.DOTALL | re.MULTILINE)
    assert match is not None
    events = [f"report|0.7|1.0|smtp-in|tx-rcpt|{1:016x}|0badcafe|{result}" for result in ("permfail|a@b|c", "ok|d@e")]
    (folder / "rcpts.log").write_text("\n".join(events))
    script = match[0].removesuffix("```").replace("--since 1h", f"{folder}/rcpts.log")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env=environment)
    assert done.stdout.split() == [b"1", b"a@b|c"]


def test_every_option_is_there() -> None:
    synopsis = re.search(r"```\n(smtpd-events record.*?)```", TEXT, re.DOTALL)
    assert synopsis is not None
    for line in synopsis[1].splitlines():
        command = line.split()[1]
        shown = set(re.findall(r"(?<![\w-])--?[a-z]+", line.partition(" -- ")[0].partition(command)[2]))
        known = set(re.findall(r"(?<![\w-])--?[a-z]+", run(["smtpd-events", command, "--help"]).stdout.decode()))
        assert shown <= known
        assert known - shown - {"--help", "-h", "--since", "--until", "--json", "--verbose", "--subsystem"} <= set(), (
            line
        )
