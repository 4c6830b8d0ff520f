"""Warnings: what a configuration says that is legal, but surely not meant. They change no verdict.

Looked for in the finished `Config`, so that order does not matter; `Places` knows where each thing was declared. What
takes a look at the machine, or what only those parts know that read a value later, is asked of the `Checker`.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from pillarbox.conf.model import (
    UNNAMED_TABLE,
    Config,
    Filter,
    Listener,
    Relay,
    Rule,
    Table,
    TableKind,
    TlsMode,
)
from pillarbox.conf.report import Report
from pillarbox.conf.shadow import Coverage, never_matches
from pillarbox.conf.tables import BUILTIN
from pillarbox.conf.uses import criteria, rule_criteria, used_tables

# (kind of declaration, its name or number), and what to say about it.
Advice = tuple[tuple[str, str | int], str]


class Judge(Protocol):
    """What the machine and the readers of values know; each answer is "" where nothing is wrong."""

    def endpoints(self, listener: Listener) -> list[str]:
        """The addresses and ports that it binds."""
        ...

    def everybody_reads(self, path: str) -> bool:
        """Whether any user of the machine may read a file."""
        ...

    def value(self, what: str, text: str) -> str:
        """What is wrong with a value that is read later; `what`: regex, netaddr, relay-url."""
        ...


def advise(config: Config, judge: Judge | None) -> Iterator[Advice]:
    """All that there is to say."""
    yield from _unused(config)
    yield from _rules(config)
    yield from _tags(config)
    yield from _relays(config)
    yield from _same_listeners(config, judge)
    if judge is not None:
        yield from _secrets(config, judge)
        yield from _values(config, judge)


def _unused(config: Config) -> Iterator[Advice]:
    tables, relays = used_tables(config), [a for a in config.actions.values() if isinstance(a, Relay)]
    filters = [item.filter for item in config.listeners] + [relay.filter for relay in relays]
    filters += [member for declared in config.filters.values() for member in declared.chain]
    procs = [f.proc for f in config.filters.values()] + [report.proc for report in config.reports]
    pki = [name for listener in config.listeners for name in listener.pki] + [relay.pki for relay in relays]
    cas = [listener.ca for listener in config.listeners] + [relay.ca for relay in relays]
    used: dict[str, tuple[Iterable[str], Iterable[str], str]] = {
        "table": (_declared_tables(config), tables, "nothing reads"),
        "action": (config.actions, [rule.action for rule in config.rules], "no match uses"),
        "filter": ((n for n, f in config.filters.items() if not f.is_unnamed()), filters, "no listener or relay uses"),
        "proc": (config.procs, procs, "no filter or report uses"),
        "pki": ((name for name in config.pki if name != "*"), map(str.lower, pki), "no listener or relay uses"),
        "ca": (config.ca, map(str.lower, cas), "no listener or relay uses"),
        "wrapper": (
            config.mda_wrappers,
            [getattr(a, "wrapper", "") for a in config.actions.values()],
            "no action uses",
        ),
    }
    for kind, (declared, wanted, nobody) in used.items():
        missed = set(wanted)
        for name in declared:
            if name not in missed:
                yield (kind, name), f'{nobody} {"mda " if kind == "wrapper" else ""}{kind} "{name}"'


def _declared_tables(config: Config) -> Iterator[str]:
    return (t.name for t in config.tables.values() if t.name not in BUILTIN and not t.name.startswith(UNNAMED_TABLE))


# Rules


def _rules(config: Config) -> Iterator[Advice]:
    coverage, guarded = Coverage(config), False
    for index, rule in enumerate(config.rules):
        if never_matches(rule):
            yield ("match", index), "this match never applies: nobody is outside of any"
            continue
        conditions = coverage.conditions(rule)
        first = coverage.covering(conditions)
        if first is not None:
            yield ("match", index), f"this match is never reached: {_where(rule, config.rules[first])} covers it"
        elif (
            not guarded
            and _open_to(config, rule)
            and coverage.covering([*conditions, ("auth", "auth", True, None)]) is None
        ):
            claims = " and ".join(f.replace("_", "-") for f in ("helo", "mail_from") if getattr(rule, f) is not None)
            who = f"anybody who gives such a {claims}" if claims else "anybody"
            yield (
                ("match", index),
                f'open relay: {who} may send anywhere through action "{rule.action}"; add auth, or narrow from',
            )
        coverage.add(index, rule)
        # `match !from src <lan> for any reject`: what comes after it is for others only.
        guarded = guarded or all(negated for _, _, negated, _ in conditions)


def _where(rule: Rule, other: Rule) -> str:
    return f"the one in line {other.line}{'' if other.file == rule.file else f' of {other.file}'}"


def _open_to(config: Config, rule: Rule) -> bool:
    """Whether strangers may relay to anywhere by it, unless an earlier rule keeps them from it."""
    criteria_of = rule_criteria(rule)
    if not isinstance(config.actions.get(rule.action), Relay) or "rcpt_to" in criteria_of:
        return False
    if "auth" in criteria_of and not criteria_of["auth"].negated:
        return False
    if not (rule.dest.kind == "any" or rule.dest.negated):
        return False
    outside = rule.source.kind == "any" or (rule.source.negated and rule.source.kind in {"local", "socket"})
    return outside and any(
        _for_strangers(config, listener) and _tagged(config, rule, listener) for listener in config.listeners
    )


def _for_strangers(config: Config, listener: Listener) -> bool:
    """Whether it talks to the outside without authentication. A builtin filter may refuse whom it likes."""
    if listener.socket or listener.tls_verify or (listener.auth and not listener.auth_optional):
        return False
    if listener.interface in {"lo", "localhost", "::1"} or listener.interface.startswith("127."):
        return False
    return all(declared.kind != "builtin" for declared in _flat(config, listener.filter))


def _flat(config: Config, name: str) -> list[Filter]:
    if not name:
        return []
    declared = config.filters[name]
    return [config.filters[member] for member in declared.chain] if declared.kind == "chain" else [declared]


def _tagged(config: Config, rule: Rule, listener: Listener) -> bool:
    """Whether a session of this listener surely has a tag that the rule takes."""
    if rule.tag is None:
        return True
    if rule.tag.negated or rule.tag.regex:
        return False
    return any(entry.lower() == listener.tag.lower() for entry, _ in config.tables[rule.tag.table].entries)


def _tags(config: Config) -> Iterator[Advice]:
    given = {listener.tag.lower(): listener.tag for listener in config.listeners if listener.tag}
    for index, rule in enumerate(config.rules):
        if rule.tag is None or rule.tag.negated or rule.tag.regex:
            continue
        table = config.tables[rule.tag.table]
        wanted = [entry for entry, _ in table.entries]
        if table.kind is TableKind.STATIC and wanted and not any(tag.lower() in given for tag in wanted):
            near = Report.nearest(wanted[0], given.values()) if len(wanted) == 1 else ""
            yield ("match", index), f'this match never applies: no listener has the tag "{wanted[0]}"{near}'


# Actions, listeners, values


def _relays(config: Config) -> Iterator[Advice]:
    for relay in config.actions.values():
        if not isinstance(relay, Relay):
            continue
        place = ("action", relay.name)
        if relay.pki and relay.pki not in config.pki:
            yield place, f'no pki "{relay.pki}" is declared{Report.nearest(relay.pki, config.pki)}'
        if relay.ca and relay.ca not in config.ca:
            yield place, f'no ca "{relay.ca}" is declared{Report.nearest(relay.ca, config.ca)}'
        if not relay.host:
            continue
        scheme, _, rest = relay.host.rpartition("://")
        if relay.auth and "@" not in rest:
            yield place, f"auth has no effect: {relay.host} names no label, as smtps://label@host does"
        if not relay.auth and "@" in rest:
            yield place, f"{relay.host} names a label, but there is no auth table to find it in"
        if relay.tls and scheme.lower() == "smtp+notls":
            yield place, f"tls contradicts {relay.host}"


def _same_listeners(config: Config, judge: Judge | None) -> Iterator[Advice]:
    taken: dict[str, Listener] = {}
    for listener in config.listeners:
        if listener.socket:
            continue
        for endpoint in judge.endpoints(listener) if judge is not None else _endpoints(listener):
            first = taken.setdefault(endpoint, listener)
            if first is not listener:
                yield ("listener", listener.id), f"the listener of line {first.line} listens on {endpoint} already"
                break


def _endpoints(listener: Listener) -> list[str]:
    """What can be said without the machine."""
    port = listener.port or (465 if listener.tls is TlsMode.SMTPS else 25)
    families = [listener.family] if listener.family else ["inet4", "inet6"]
    return [f"{listener.interface} ({family}) port {port}" for family in families]


def _secrets(config: Config, judge: Judge) -> Iterator[Advice]:
    credentials = {a.auth for a in config.actions.values() if isinstance(a, Relay)}
    credentials |= {listener.auth for listener in config.listeners}
    for name in sorted(credentials & set(config.tables)):
        table = config.tables[name]
        if table.kind in {TableKind.FILE, TableKind.DB} and judge.everybody_reads(table.config):
            yield ("table", name), f"everybody may read the passwords in {table.config}: chmod o-r it"
    inline = any(config.tables[name].kind is TableKind.STATIC for name in credentials & set(config.tables))
    keys = config.srs.key or config.srs.backup_key or config.queue.encryption not in {"", "stdin"}
    if (inline or keys) and judge.everybody_reads(config.file):
        yield ("file", ""), f"everybody may read the {'passwords' if inline else 'keys'} in this file: chmod o-r it"


def _values(config: Config, judge: Judge) -> Iterator[Advice]:
    """Values that a check does not refuse, because the reference reads them later."""
    uses = {("regex", c.table) for c in criteria(config) if c.regex}
    uses |= {("netaddr", c.table) for c in criteria(config) if c.kind == "src" and c.table and not c.regex}
    relays = [relay for relay in config.actions.values() if isinstance(relay, Relay)]
    uses |= {("relay-url", name) for relay in relays for name in (relay.hosts, relay.domain) if name}
    users = _users(config)
    for what, name in sorted(uses):
        table = config.tables[name]
        place = users[name] if table.is_unnamed() else ("table", name)
        for text in _texts(table, what):
            if fault := judge.value(what, text):
                yield place, f"{fault}: {text}"
    for relay in relays:
        if relay.host and (fault := judge.value("relay-url", relay.host)):
            yield ("action", relay.name), f"{fault}: {relay.host}"


def _texts(table: Table, what: str) -> Iterator[str]:
    return (value if what == "relay-url" and table.mapping else key for key, value in table.entries)


def _users(config: Config) -> dict[str, tuple[str, str | int]]:
    """Where the tables without names were written."""
    found: dict[str, tuple[str, str | int]] = {}
    for index, rule in enumerate(config.rules):
        for criterion in rule_criteria(rule).values():
            found.setdefault(criterion.table, ("match", index))
    for declared in config.filters.values():
        for criterion in declared.conditions:
            found.setdefault(criterion.table, ("filter", declared.name))
    for action in config.actions.values():
        if isinstance(action, Relay):
            found.setdefault(action.hosts or action.domain, ("action", action.name))
    return found
