"""`proc`, `filter` and `report` → `Proc`, `Filter` and `EventReport`."""

from collections.abc import Callable
from typing import Any

import msgspec

from pillarbox.conf.draft import Draft, Node, Wrong, options, token, word, words
from pillarbox.conf.model import PROTOCOLS, EventReport, Filter, Proc
from pillarbox.conf.rules import condition
from pillarbox.conf.smtp import short_time

MAX_TIMEOUT = 600  # seconds; RFC 5321 §4.5.3.2.6: no client has to wait longer for an answer


def build_proc(draft: Draft, node: Node) -> None:
    """`proc NAME "command" options`."""
    name = word(node)
    if name in draft.procs:
        raise Wrong(node, f"processor already exists with that name: {name}")
    draft.declare("proc", name, node)
    draft.procs[name] = _proc(draft, node)


def build_report(draft: Draft, node: Node) -> None:
    """`report smtp-in|smtp-out|smtp|mda on PROC`: `smtp` is incoming and outgoing."""
    name = word(node)
    if name not in draft.procs:
        raise Wrong(token(node), f"no processor exist with that name: {name}", names=draft.procs, near=name)
    direction = str(options(node)[0].data).removeprefix("report_").replace("_", "-")
    for one in ("smtp-in", "smtp-out") if direction == "smtp" else (direction,):
        if any(known.direction == one and known.proc == name for known in draft.reports):
            raise Wrong(node, f"{one} already reported on {name}")
        draft.reports.append(EventReport(direction=one, proc=name, line=draft.line))


def build_filter_proc(draft: Draft, node: Node) -> None:
    """`filter NAME proc PROC`."""
    name, proc = _new_filter(draft, node), word(node, 1)
    if proc not in draft.procs:
        draft.report.broken("filter", name, draft.line)
        raise Wrong(token(node, 1), f"no processor exist with that name: {proc}", names=draft.procs, near=proc)
    draft.filters[name] = Filter(name=name, kind="proc", proc=proc)


def build_filter_exec(draft: Draft, node: Node) -> None:
    """`filter NAME proc-exec "command" options`: its process bears the filter's name."""
    name = _new_filter(draft, node)
    draft.filters[name] = Filter(name=name, kind="proc-exec", proc=name)
    draft.procs[name] = _proc(draft, node)


def build_filter_chain(draft: Draft, node: Node) -> None:
    """`filter NAME chain { … }`."""
    name = _new_filter(draft, node)
    try:
        draft.filters[name] = draft.chain(name, options(node)[0])
    except Wrong:
        draft.report.broken("filter", name, draft.line)
        raise


def build_filter_phase(draft: Draft, node: Node) -> None:
    """`filter NAME phase PHASE match CONDITION DECISION`. The phase is kept as written."""
    name = _new_filter(draft, node)
    phase = options(node)[0]
    what, decision = options(phase)
    draft.filters[name] = Filter(  # declared even if the condition is wrong: one message is enough
        name=name,
        kind="builtin",
        phase=str(phase.data).removeprefix("phase_").replace("_", "-"),
        decision=str(decision.data).removeprefix("do_"),
        argument=next(iter(words(decision)), ""),
    )
    draft.filters[name] = msgspec.structs.replace(draft.filters[name], conditions=(condition(draft, what),))


def _proc(draft: Draft, node: Node) -> Proc:
    given: dict[str, Any] = {}
    for part in options(node):
        what = str(part.data).removeprefix("proc_")
        with draft.collecting():
            if what in given:
                raise Wrong(part, f"{what.replace('_', ' ')} already specified for this processor")
            given[what] = _VALUES.get(what, word)(part)
    return Proc(name=word(node), command=word(node, 1), line=draft.line, file=draft.source.name, **given)


def _timeout(node: Node) -> int:
    return short_time(node, 0, "timeout", MAX_TIMEOUT)


def _protocol(node: Node) -> str:
    version = word(node)
    if version not in PROTOCOLS:
        raise Wrong(token(node), f"no such filter protocol: {version}; there are {', '.join(PROTOCOLS)}")
    return version


_VALUES: dict[str, Callable[[Node], Any]] = {"timeout": _timeout, "protocol": _protocol, "fail_open": lambda node: True}


def _new_filter(draft: Draft, node: Node) -> str:
    name = word(node)
    if name in draft.filters:
        raise Wrong(token(node, 0), f"filter already exists with that name: {name}")
    draft.declare("filter", name, node)
    return name
