"""What the documentation names is there: links, files, names in files, targets of make, commands and options."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillarbox.cli.grammar import _step
from pillarbox.cli.smtpctl import Smtpctl
from tests.test_layers import LAYERS, PURE

TOP = Path(__file__).resolve().parent.parent
SOURCE = TOP / "src/pillarbox"
DOCS = sorted(
    [TOP / "README.md", TOP / "CONTRIBUTING.md", TOP / "CHANGES.md", *TOP.glob("docs/*.md"), TOP / "bench/README.md"]
)
FOLDERS = [TOP / name for name in ("src", "tests", "docs", "bench", "tools", "examples")]
FILES = {path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()}
EACH = pytest.mark.parametrize("doc", DOCS, ids=lambda path: str(path.relative_to(TOP)))
# Programs with options that `--help` lists.
PROGRAMS = {
    "smtpd": ("pillarbox.cli.smtpd", "-h"),
    "smtpd-convert": ("pillarbox.cli.convert", "-h"),
    "smtpd-events": ("pillarbox.cli.events", "-h"),
    "filter-milter": ("pillarbox.milter.program", "--help"),
}
# About this tree, where a file may be named without its folder; in the others it may be the reader's own.
OUR_OWN = ("README.md", "CONTRIBUTING.md", "design.md", "flow.md")
EVENTS = ("record", "session", "stats", "cat", "replay")


def code(text: str) -> Iterator[str]:
    """Spans and lines of code."""
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))


def is_there(name: str, doc: Path) -> bool:
    """A path from the top, from the package or from the document; a name alone: a file of this name somewhere."""
    if "/" not in name and any(path.name == name for path in FILES):
        return True
    return any(list(folder.glob(name)) for folder in (TOP, SOURCE, doc.parent))


@EACH
def test_links_lead_somewhere(doc: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", doc.read_text()):
        path, _, heading = target.partition("#")
        if ":" in path:
            continue
        there = (doc.parent / path) if path else doc
        assert there.exists(), target
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in _headings(there)}
        assert not heading or heading in headings, target


def _headings(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("#")] if path.is_file() else []


@EACH
def test_files_that_are_named_are_there(doc: Path) -> None:
    packages = {path.name for path in SOURCE.iterdir() if path.is_dir()} | {path.name for path in FOLDERS}
    for word in re.findall(r"`([\w*./-]+)`", doc.read_text()):
        first = word.split("/")[0]
        if "/" not in word and doc.name not in OUR_OWN:
            continue
        if re.search(r"\w\.(py|md|lark|toml|lock)$", word) or ("/" in word and first in packages):
            assert is_there(word.rstrip("/"), doc) or is_there(f"{word}.py", doc), word


@EACH
def test_names_in_files_are_there(doc: Path) -> None:
    for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", doc.read_text()):
        text = (SOURCE / path).read_text()
        for name in re.findall(r"[\w.]+", names):
            last = name.rpartition(".")[2]
            assert re.search(rf"\b(def|class) {last}\b|\b{last}\b(: [^=\n]+)? = ", text), f"{path}: {name}"


@EACH
def test_targets_of_make_are_there(doc: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    for line in code(doc.read_text()):
        if line.startswith("make "):
            words = re.sub(r'#.*|"[^"]*"', "", line).split()[1:]
            assert {word for word in words if re.fullmatch("[a-z-]+", word)} <= targets, line


@EACH
def test_commands_of_smtpctl_are_there(doc: Path) -> None:
    grammar = Smtpctl("/nowhere").grammar()
    for line in code(doc.read_text()):
        words = line.partition("  ")[0].removeprefix("$ ").split()
        if words[:1] != ["smtpctl"] or words[1:2] == ["explain"]:
            continue
        node = grammar._root
        for word in words[1:]:
            if not re.fullmatch("-*[a-z]+", word):
                break
            step = _step(node, word)
            if step is None and word.startswith("-"):
                break
            assert step is not None, line
            node = step[0]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Long options by program, those of its commands included."""
    found: dict[str, set[str]] = {}
    for program, (module, ask) in PROGRAMS.items():
        text = _help(module, ask)
        for command in EVENTS if program == "smtpd-events" else ():
            text += _help(module, command, ask)
        found[program] = set(re.findall(r"--[a-z-]+", text))
    return found


def _help(module: str, *arguments: str) -> str:
    argv = [sys.executable, "-c", f"import {module} as m; m.main()", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout


@EACH
def test_options_are_there(doc: Path, options: dict[str, set[str]]) -> None:
    for line in code(doc.read_text()):
        program = line.removeprefix("$ ").partition(" ")[0]
        if program in options:
            given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.partition(" -- ")[0]))
            assert given <= options[program], line


def test_what_smtpd_has_beyond_the_reference_is_written_down(options: dict[str, set[str]]) -> None:
    text = (TOP / "docs/compatibility.md").read_text()
    assert {option for option in options["smtpd"] if not re.search(rf"`(smtpd )?{option}\b", text)} == set()


def test_every_page_can_be_found_from_the_readme() -> None:
    text = (TOP / "README.md").read_text()
    assert {doc.name for doc in DOCS if doc.name != "README.md" and f"{doc.name})" not in text} == set()


def test_the_picture_of_the_layers_is_what_is_checked() -> None:
    picture = re.findall(r"^(\d)  ([a-z* ]+)$", (TOP / "docs/design.md").read_text(), re.MULTILINE)
    assert {int(number): names.replace("*", "").split() for number, names in picture} == LAYERS
    assert {name[:-1] for _, names in picture for name in names.split() if name.endswith("*")} == PURE


def test_every_quirk_that_is_kept_is_written_down() -> None:
    text = (TOP / "docs/compatibility.md").read_text()
    quirks = {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if "COMPAT:" in p.read_text()}
    assert {path for path in quirks if f"`{path}`" not in text} == set()


def test_every_recorded_case_that_differs_is_explained() -> None:
    named = re.findall(r"`([\w-]+)`", (TOP / "docs/compatibility.md").read_text())
    differs = tomllib.loads((TOP / "tests/corpus/differs.toml").read_text())
    assert {case for case in differs if not fnmatch.filter(named, case.partition("/")[2])} == set()
