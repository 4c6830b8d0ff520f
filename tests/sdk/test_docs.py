"""The examples of docs/tables.md work as they are printed."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pillarbox.sdk.table import Table
from tests.sdk.child import Child

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs/tables.md").read_text()
PYTHON = re.findall(r"^ *```python\n(.*?)^ *```", TEXT, re.DOTALL | re.MULTILINE)
FILES = dict(re.findall(r"^### table-(\w+)\n\n```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
DRIVERS = {"sqlite": "sqlite3", "postgres": "psycopg", "mysql": "pymysql", "ldap": "ldap", "redis": "redis"}


def test_the_first_table_is_one(tmp_path: Path) -> None:
    program = tmp_path / "table-hello"
    program.write_text(PYTHON[0])
    with Child([sys.executable, str(program), "/etc/mail/hello.conf"]) as child:
        assert child.lookup("alias", "root") == "found|alice, bob@example.org"
        assert child.end() == 0
    talk = re.search(r"printf '(.*?)' \| \./table-hello\n(.*?) *```", TEXT, re.DOTALL)
    assert talk is not None
    done = subprocess.run(
        [sys.executable, str(program)],
        input=talk[1].replace(r"\n", "\n"),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == re.sub("^ +", "", talk[2], flags=re.MULTILINE)


def test_its_test_is_one() -> None:
    names: dict[str, object] = {"__name__": "example"}
    exec(PYTHON[0].replace("table.run()", ""), names)
    exec(re.sub("^   ", "", PYTHON[1], flags=re.MULTILINE), names)
    test = names["test_root_is_two_people"]
    assert callable(test)
    test()


@pytest.mark.parametrize("name", DRIVERS)
def test_each_configuration_is_taken_without_a_complaint(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if importlib.util.find_spec(DRIVERS[name]) is None:
        pytest.skip(f"{DRIVERS[name]} is not installed")
    file = tmp_path / "table.conf"
    file.write_text(FILES[name])
    importlib.import_module(f"pillarbox.backends.{name}").load(str(file), Table()).close()
    assert caplog.text == ""
