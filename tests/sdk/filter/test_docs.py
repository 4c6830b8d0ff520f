"""The examples of docs/filters.md work as they are printed."""

import re
import subprocess
import sys
from dataclasses import fields
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from pillarbox.sdk.filter import events, hooks
from pillarbox.sdk.filter.testing import Harness

TEXT = (Path(__file__).resolve().parents[3] / "docs/filters.md").read_text()
PYTHON = re.findall(r"^ *```python\n(.*?)^ *```", TEXT, re.DOTALL | re.MULTILINE)


def run(*texts: str) -> dict[str, Any]:
    """What a program makes of itself, short of running."""
    names: dict[str, Any] = {"__name__": "example"}
    for text in texts:
        exec(re.sub("^   (?=[^ ]|    )", "", text, flags=re.MULTILINE).replace("filter.run()", ""), names)
    return names


def test_the_first_filter_is_one(tmp_path: Path) -> None:
    program = tmp_path / "filter-hello"
    program.write_text(PYTHON[0])
    talk = re.search(r"printf '(.*?)' \| \./filter-hello \| tail -n 3\n(.*?) *```", TEXT, re.DOTALL)
    assert talk is not None
    done = subprocess.run(
        [sys.executable, str(program)],
        input=talk[1].replace(r"\n", "\n"),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.splitlines()[-3:] == re.sub("^ +", "", talk[2], flags=re.MULTILINE).splitlines()


def test_its_test_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filter-hello").write_text(PYTHON[0])
    monkeypatch.chdir(tmp_path)
    run(PYTHON[1])["test_nobody_writes_from_there"]()


def test_the_filter_of_messages_is_one() -> None:
    with Harness(run(PYTHON[2])["filter"]) as harness:
        message = EmailMessage()
        message.set_content("hello")
        client = harness.session(address="192.0.2.7").ehlo("x.example").mail("a@example.org").rcpt("b@example.org")
        client.message(message)
        assert client.delivered and b"\r\nX-Client: 192.0.2.7 (x.example)\r\n" in client.delivered
        message.add_attachment("text", filename="a.txt")
        assert (
            client.mail("a@example.org").rcpt("b@example.org").message(message).reply.endswith("No attachments, please")
        )
        assert (
            client.mail("").rcpt("b@example.org").message("Subject: x\n\n" + "y\n" * 500_000).reply.startswith("552 ")
        )


def test_every_decorator_and_event_is_described() -> None:
    on = {name for name in vars(hooks.Hooks(hooks.Handlers())) if not name.startswith("_")}
    described = set(re.findall(r"`(?:@filter\.on)?\.(\w+)`", TEXT)) | {"smtp_out", "mda"}
    assert on <= described
    for kind in events.Event.__subclasses__():
        if kind.name:
            row = next(
                line for line in TEXT.splitlines() if f".{kind.name.replace('-', '_')}`" in line and line[0] == "|"
            )
            own = [each.name for each in fields(kind) if each.name not in ("time", "subsystem", "session")]
            assert all(f"`{name}`" in row for name in own), row
