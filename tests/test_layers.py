"""Packages import only downwards, and the pure ones do no I/O: read from the source, nothing is imported."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src/pillarbox"

# docs/design.md shows the same as a picture. What is on one layer does not import one another.
LAYERS = {
    0: ["errors", "log", "metrics", "places", "replacement", "sdk", "sockets"],
    1: ["mail"],
    2: ["smtp", "conf", "roles"],
    3: ["tables", "dns", "tls"],
    4: ["filters", "routing", "queue"],
    5: ["server", "mta", "mda", "bounce", "eventlog"],
    6: ["control", "web"],
    7: ["daemon"],
    8: ["cli", "backends", "milter"],
}
# Programs of their own, written on what everybody can write them on; they load nothing else of the server.
STANDALONE = {"sdk": set(), "backends": {"sdk"}, "milter": {"sdk"}}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
PURE = {"mail", "smtp", "conf", "roles"}
# Everything that reads a clock, a file, a socket or another process. `conf` is handed `read(path)` for includes.
IMPURE_MODULES = {
    "asyncio", "concurrent", "ctypes", "dns", "fcntl", "grp", "http", "io", "multiprocessing", "os", "pathlib", "pwd",
    "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "syslog", "tempfile",
    "threading", "urllib", "uvloop",
}  # fmt: skip
IMPURE_CALLS = {("time", "time"), ("time", "monotonic"), ("time", "sleep"), ("datetime", "now"), ("datetime", "utcnow")}
FILES = sorted(SOURCE.rglob("*.py"))


def package(path: Path) -> str:
    """The layer's unit that a file belongs to: the package, or the module where it is one file."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, inside functions too; relative ones made absolute."""
    here = ["pillarbox", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            if module == "pillarbox":
                for alias in node.names:
                    yield node.lineno, f"pillarbox.{alias.name}"
            else:
                yield node.lineno, module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    own = package(path)
    if own == "__init__":
        return
    assert own in LAYER, f"{own} has no layer: add it here and to docs/design.md"
    for line, module in imported(ast.parse(path.read_text()), path):
        parts = module.split(".")
        if parts[0] != "pillarbox" or len(parts) == 1 or parts[1] in (own, "__version__", "REFERENCE_VERSION"):
            continue
        assert LAYER.get(parts[1], 99) < LAYER[own], f"{path}:{line}: {own} (layer {LAYER[own]}) imports {module}"


@pytest.mark.parametrize("name", STANDALONE)
def test_programs_of_their_own_import_only_the_sdk(name: str) -> None:
    for path in FILES:
        if package(path) == name:
            for line, module in imported(ast.parse(path.read_text()), path):
                if module.startswith("pillarbox"):
                    assert module.split(".")[1] in STANDALONE[name] | {name}, f"{path}:{line} imports {module}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if package(p) in PURE], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_pure_packages_do_no_io_and_have_no_clock(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for line, module in imported(tree, path):
        assert module.split(".")[0] not in IMPURE_MODULES, f"{path}:{line}: a pure package imports {module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "input", "print"), (
                f"{path}:{node.lineno}: a pure package calls {node.func.id}"
            )
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            assert (node.func.value.id, node.func.attr) not in IMPURE_CALLS, (
                f"{path}:{node.lineno}: a pure package reads the clock"
            )


def test_only_declared_packages_are_imported() -> None:
    """What the code imports is in pyproject.toml, or is Python's own."""
    import tomllib

    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text())["project"]
    names = {
        "dnspython": "dns",
        "google-re2": "re2",
        "argon2-cffi": "argon2",
        "PyMySQL": "pymysql",
        "python-ldap": "ldap",
    }
    extras = [d for extra, packages in project["optional-dependencies"].items() if extra != "dev" for d in packages]
    plain = [re.split("[>;[ ]", d)[0] for d in [*project["dependencies"], *extras]]
    declared = {names.get(name, name) for name in plain}
    found = {m.split(".")[0] for p in FILES for _, m in imported(ast.parse(p.read_text()), p)}
    assert found - set(sys.stdlib_module_names) - {"pillarbox"} <= declared
