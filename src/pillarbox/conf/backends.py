"""`table …`: static ones, files (read and checked at once), databases, system users, and programs."""

from collections.abc import Callable
from functools import partial

from pillarbox.conf.draft import Draft, Node, Wrong, options, token, word
from pillarbox.conf.model import Table, TableKind
from pillarbox.conf.report import Report
from pillarbox.conf.tables import MAX_NAME, Shape, TableFileError, parse_table_file


def _new_table(draft: Draft, node: Node) -> str:
    name = word(node)
    if draft.tables.knows(name):
        raise Wrong(token(node), f'table "{name}" already defined')
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        raise Wrong(token(node), "table name too long")
    draft.declare("table", name, node)
    return name


def build_table_static(draft: Draft, node: Node) -> None:
    """`table NAME { … }`."""
    content = options(options(node)[0])[0]
    draft.static_table(_new_table(draft, node), content)


def build_table_backend(draft: Draft, node: Node) -> None:
    """`table NAME backend:/path`, `table NAME /path`, `table NAME backend`."""
    where = word(node, 1)
    backend, colon, path = ("file", ":", where) if where.startswith("/") else where.partition(":")
    if colon and not path.startswith("/"):
        raise Wrong(token(node, 1), f"invalid backend parameter for table: {word(node)}; a path begins with /")
    name = _new_table(draft, node)
    build = _BACKENDS.get(backend) or partial(_program_table, backend=backend)
    try:
        build(draft, node, name, path)
    except Wrong:
        draft.report.broken("table", name, draft.line)
        raise


def _file_table(draft: Draft, node: Node, name: str, path: str) -> None:
    if not path:
        draft.tables.add(Table(name=name, kind=TableKind.STATIC), Shape.NONE)
        return
    shape, fault = Shape.NONE, ""
    entries: tuple[tuple[str, str], ...] = ()
    try:
        shape, entries = parse_table_file(path, draft.read(path))
    except OSError as error:
        fault = error.strerror or str(error)
    except TableFileError as error:
        fault = str(error)
    mapping = shape is Shape.MAP
    draft.tables.add(Table(name=name, kind=TableKind.FILE, config=path, mapping=mapping, entries=entries), shape)
    if fault:
        raise Wrong(node, f"invalid configuration file {path} for table {name}: {fault}")


def _db_table(draft: Draft, node: Node, name: str, path: str) -> None:
    draft.tables.add(Table(name=name, kind=TableKind.DB, config=path), Shape.DYNAMIC)
    fault = "no file is named" if not path else draft.checker.table_database(path) if draft.checker else ""
    if fault:
        raise Wrong(node, f"invalid configuration file {path} for table {name}: {fault}")


def _getpwnam_table(draft: Draft, node: Node, name: str, path: str) -> None:
    draft.tables.add(Table(name=name, kind=TableKind.GETPWNAM), Shape.DYNAMIC)
    if path:
        raise Wrong(node, f"invalid configuration file {path} for table {name}: system users come from no file")


def _program_table(draft: Draft, node: Node, name: str, path: str, *, backend: str) -> None:
    draft.tables.add(Table(name=name, kind=TableKind.PROC, backend=backend, config=path), Shape.DYNAMIC)
    if backend != "proc" and draft.checker is not None and not draft.checker.table_program(backend):
        near = Report.nearest(backend, ["static", *_BACKENDS, "proc"])
        raise Wrong(token(node, 1), f'backend "{backend}" does not exist{near}')


_BACKENDS: dict[str, Callable[[Draft, Node, str, str], None]] = {
    "file": _file_table,
    "static": _file_table,
    "db": _db_table,
    "getpwnam": _getpwnam_table,
}
