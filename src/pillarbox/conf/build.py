"""smtpd.conf → `Config`: the entry to this package, and the statements that set one thing each.

The order of evaluation is the file's: what a statement names must have been declared above it. Every problem of the
file is collected; an error in one statement leaves the others to be looked at.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

import msgspec

from pillarbox.conf.actions import build_action
from pillarbox.conf.advice import advise
from pillarbox.conf.backends import build_table_backend, build_table_static
from pillarbox.conf.draft import Checker, Draft, Node, Wrong, options, token, word, words
from pillarbox.conf.filters import (
    build_filter_chain,
    build_filter_exec,
    build_filter_phase,
    build_filter_proc,
    build_proc,
    build_report,
)
from pillarbox.conf.lexer import Lexer
from pillarbox.conf.listeners import PORT_MAX, build_listen_on, build_listen_socket
from pillarbox.conf.model import Config, Listener, MtaLimits, Pki, Resolver
from pillarbox.conf.parser import Parser, Statement
from pillarbox.conf.report import Report, TooManyProblems
from pillarbox.conf.rules import build_match
from pillarbox.conf.values import is_host_name, is_printable, limit, parse_delay, parse_size
from pillarbox.errors import ConfigError, Problem

__all__ = ["Checker", "load_config"]

MAX_HOST_NAME = 255
MAX_WARN_INTERVALS = 4
QUEUE_KEY = 32  # bytes
_DAY = 86400


def load_config(
    *, file: str, read: Callable[[str], str], macros: dict[str, str], hostname: str, checker: Checker | None
) -> Config:
    """The configuration in `file`, which `read` returns, as it does includes and table files (or raises OSError).

    `macros` are those of the command line; `hostname` is the server's name. Without a `checker` nothing about the
    machine is checked. Raises ConfigError with all problems. `Config.warnings` says what is legal but hardly meant.
    """
    report = Report()
    try:
        text = read(file)
    except OSError as error:
        raise ConfigError([Problem(f"cannot read {file}: {error.strerror or error}")]) from None
    lexer = Lexer(name=file, text=text, macros=macros)
    draft = Draft(lexer=lexer, read=read, hostname=hostname, checker=checker, report=report)
    try:
        for statement in Parser(lexer=lexer, report=report).statements():
            _build(draft, statement)
        _check_pki(draft)
    except TooManyProblems:
        raise ConfigError(report.all()) from None
    if not draft.rules and not report.problems:
        report.problems.append(Problem("no rules, nothing to do: without a match no mail is accepted", file))
    if report.problems:
        raise ConfigError(report.all())
    config = _finish(draft, file)
    for (kind, name), message in advise(config, checker):
        draft.advise(kind, name, message)
    return msgspec.structs.replace(config, warnings=tuple(map(str, report.sorted_warnings())))


def _build(draft: Draft, statement: Statement) -> None:
    draft.begin(statement.source, statement.line)
    with draft.collecting():
        _STATEMENTS[str(statement.tree.data)](draft, statement.tree)


def _check_pki(draft: Draft) -> None:
    """What can only be said when no further statement may add to a pki."""
    for name, pki in draft.pki.items():
        draft.source, node = draft.pki_places[name]
        with draft.collecting():
            if not pki.cert:
                raise Wrong(node, f"missing certificate file: pki {name} has no cert")
            if not pki.key:
                raise Wrong(node, f"missing key file: pki {name} has no key")
            fault, warning = draft.checker.pki(pki) if draft.checker is not None else ("", "")
            if fault:
                raise Wrong(node, fault)
            if warning:
                draft.warn(node, warning)


def _finish(draft: Draft, file: str) -> Config:
    if not any(listener.socket for listener in draft.listeners):
        draft.listeners.append(Listener(id=len(draft.listeners), socket=True))
    return msgspec.structs.replace(
        draft.base,
        file=file,
        tables=draft.tables.all,
        pki=draft.pki,
        ca=draft.ca,
        listeners=tuple(draft.listeners),
        actions=draft.actions,
        rules=tuple(draft.rules),
        procs=draft.procs,
        filters=draft.filters,
        reports=tuple(draft.reports),
        mda_wrappers=draft.mda_wrappers,
        mta_domains=draft.mta_domains,
        **draft.options,
    )


def _macro(draft: Draft, node: Node) -> None:
    name, value = words(node)
    if any(c.isspace() for c in name[1:]):
        raise Wrong(token(node), "macro name cannot contain whitespace")
    draft.lexer.define(name, value)


def _include(draft: Draft, node: Node) -> None:
    path = word(node)
    try:
        draft.lexer.include(path, draft.read)
    except OSError as error:
        raise Wrong(node, f"failed to include file {path}: {error.strerror or error}") from None
    except LookupError as error:
        raise Wrong(node, f"failed to include file {path}: {error}") from None


def _admd(draft: Draft, node: Node) -> None:
    if not is_printable(word(node)):
        raise Wrong(token(node), "not a valid admd: letters, digits and punctuation only")
    draft.options["admd"] = word(node)


def _bounce(draft: Draft, node: Node) -> None:
    delays = []
    for index, text in enumerate(words(node)):
        with draft.collecting():
            delays.append(_delay(node, index, f"invalid bounce delay: {text}"))
    draft.options["bounce_warn"] = tuple(delays[:MAX_WARN_INTERVALS])
    if len(delays) > MAX_WARN_INTERVALS:
        draft.warn(node, f"only the first {MAX_WARN_INTERVALS} intervals count")


def _delay(node: Node, index: int, refusal: str) -> int:
    try:
        return parse_delay(word(node, index))
    except ValueError:
        raise Wrong(token(node, index), f"{refusal}; a time is a number and s, m, h or d") from None


def _named_by_host(node: Node) -> str:
    """The lower-cased name of a pki or a ca: a host name or "*"."""
    name = word(node)
    if name != "*" and not is_host_name(name):
        raise Wrong(token(node), f"not a valid domain name: {name}")
    if len(name) > MAX_HOST_NAME:
        raise Wrong(token(node), "name too long")
    return name.lower()


def _ca(draft: Draft, node: Node) -> None:
    name, path = _named_by_host(node), word(node, 1)
    draft.ca[name] = path
    draft.declare("ca", name, node)
    if draft.checker is not None and (fault := draft.checker.ca(path)):
        raise Wrong(node, fault)


def _pki(draft: Draft, node: Node) -> None:
    name = _named_by_host(node)
    pki = draft.pki.get(name) or Pki(name=name)
    for part in options(node):
        field, value = str(part.data).removeprefix("pki_"), word(part)
        if field == "dhe":
            value = value.lower()
            if value not in {"none", "auto", "legacy"}:
                raise Wrong(token(part), f"invalid DHE keyword: {word(part)}; it is none, auto or legacy")
        pki = msgspec.structs.replace(pki, **{field: value})
    draft.pki[name] = pki
    draft.pki_places[name] = (draft.source, node)
    draft.declare("pki", name, node)


def _resolver(draft: Draft, node: Node) -> None:
    try:
        address = str(ipaddress.ip_address(word(node)))
    except ValueError:
        raise Wrong(token(node), f"not an IP address: {word(node)}") from None
    port = int(word(node, 1)) if len(words(node)) > 1 else Resolver().port
    if not 0 < port <= PORT_MAX:
        raise Wrong(token(node, 1), f"invalid port: {port}")
    draft.options["resolver"] = Resolver(address=address, port=port)


def _set(group: str, field: str) -> Callable[[Draft, Node], None]:
    """A statement whose word is the value of a field."""

    def build(draft: Draft, node: Node) -> None:
        draft.change(group, **{field: word(node)})

    return build


def _srs_ttl(draft: Draft, node: Node) -> None:
    text = word(node)
    days = _delay(node, 0, f'ttl delay "{text}" is invalid') // _DAY
    if not days:
        raise Wrong(token(node), f'ttl delay "{text}" is too short: one day at least')
    draft.change("srs", ttl=days * _DAY)


def _mda_wrapper(draft: Draft, node: Node) -> None:
    name, command = words(node)
    if name in draft.mda_wrappers:
        raise Wrong(token(node), f"mda wrapper already declared with that name: {name}")
    draft.mda_wrappers[name] = command
    draft.declare("wrapper", name, node)


def _limits(group: str, kind: str, names: tuple[str, ...]) -> Callable[[Draft, Node], None]:
    """`… limit KEYWORD NUMBER …`; `kind` is the word that the reference's message has."""

    def build(draft: Draft, node: Node) -> None:
        for part in options(node):
            with draft.collecting():
                draft.change(group, **_limit(part, kind, names))

    return build


def _limit(part: Node, kind: str, names: tuple[str, ...]) -> dict[str, int]:
    keyword = word(part)
    if keyword not in names:
        raise Wrong(token(part), f"invalid {kind} limit keyword: {keyword}", names=names, near=keyword)
    return {keyword.replace("-", "_"): limit(word(part, 1))}


_SMTP_LIMITS = ("max-rcpt", "max-mails", "max-failed-logins", "max-failed-logins-per-source")
_MTA_LIMITS = tuple(f.replace("_", "-") for f in MtaLimits.__struct_fields__ if f != "family")


def _apply_mta_limits(draft: Draft, limits: MtaLimits, parts: list[Node]) -> MtaLimits:
    for part in parts:
        with draft.collecting():
            values: dict[str, Any] = (
                _limit(part, "mta", _MTA_LIMITS) if part.data == "limit" else {"family": str(part.data)}
            )
            limits = msgspec.structs.replace(limits, **values)
    return limits


def _mta_limit(draft: Draft, node: Node) -> None:
    draft.options["mta"] = _apply_mta_limits(draft, draft.get("mta"), options(node))


def _mta_limit_for(draft: Draft, node: Node) -> None:
    domain = word(node)
    # A domain's limits begin as the general ones are at its first mention; later changes of those do not reach it.
    limits = draft.mta_domains.get(domain) or draft.get("mta")
    draft.mta_domains[domain] = _apply_mta_limits(draft, limits, options(node))


def _mta_max_deferred(draft: Draft, node: Node) -> None:
    draft.options["mta_max_deferred"] = limit(word(node))


def _queue_compression(draft: Draft, node: Node) -> None:
    draft.change("queue", compression=True)


def _queue_encryption(draft: Draft, node: Node) -> None:
    if not words(node):
        draft.change("queue", encryption_ask=True)
        return
    key = word(node)
    if key.lower() in {"stdin", "-"}:
        key = "stdin"
    elif len(key.encode("utf-8", "surrogatepass")) != QUEUE_KEY:
        raise Wrong(token(node), f"invalid key for queue encryption: {QUEUE_KEY} bytes, as of openssl rand -hex 16")
    draft.change("queue", encryption=key)


def _queue_ttl(draft: Draft, node: Node) -> None:
    draft.change("queue", ttl=_delay(node, 0, f"invalid ttl delay: {word(node)}"))


def _smtp_max_message_size(draft: Draft, node: Node) -> None:
    text = word(node)
    try:
        size = parse_size(text)
    except ValueError:
        raise Wrong(token(node), f"invalid size: {text}") from None
    draft.change("smtp", max_message_size=size)


def _smtp_sub_addr_delim(draft: Draft, node: Node) -> None:
    text = word(node)
    if len(text.encode("utf-8", "surrogatepass")) != 1:
        raise Wrong(token(node), "subaddressing-delimiter must be one character")
    if not is_printable(text) or text in " @":
        raise Wrong(token(node), "sub-addr-delim uses invalid character")
    draft.change("smtp", sub_addr_delim=text)


_STATEMENTS: dict[str, Callable[[Draft, Node], None]] = {
    "macro": _macro,
    "include": _include,
    "admd": _admd,
    "bounce": _bounce,
    "ca": _ca,
    "pki": _pki,
    "proc": build_proc,
    "report": build_report,
    "srs_key": _set("srs", "key"),
    "srs_backup": _set("srs", "backup_key"),
    "srs_ttl": _srs_ttl,
    "resolver": _resolver,
    "mda_wrapper": _mda_wrapper,
    "mda_limit": _limits(
        "mda", "scheduler", ("max-session", "max-session-per-user", "task-lowat", "task-hiwat", "task-release")
    ),
    "mta_max_deferred": _mta_max_deferred,
    "mta_limit": _mta_limit,
    "mta_limit_for": _mta_limit_for,
    "scheduler_limit": _limits(
        "scheduler", "scheduler", ("max-inflight", "max-evp-batch-size", "max-msg-batch-size", "max-schedule")
    ),
    "smtp_limit": _limits("smtp", "session", _SMTP_LIMITS),
    "smtp_ciphers": _set("smtp", "ciphers"),
    "smtp_max_message_size": _smtp_max_message_size,
    "smtp_sub_addr_delim": _smtp_sub_addr_delim,
    "queue_compression": _queue_compression,
    "queue_encryption": _queue_encryption,
    "queue_ttl": _queue_ttl,
    "table_static": build_table_static,
    "table_backend": build_table_backend,
    "listen_socket": build_listen_socket,
    "listen_on": build_listen_on,
    "action": build_action,
    "match": build_match,
    "filter_proc": build_filter_proc,
    "filter_exec": build_filter_exec,
    "filter_chain": build_filter_chain,
    "filter_phase": build_filter_phase,
}
