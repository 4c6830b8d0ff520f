"""Who refers to what within a configuration: tables, criteria; and the configuration without accidents of its text."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pillarbox.conf.model import (
    AUTH_SYSTEM,
    UNNAMED_CHAIN,
    UNNAMED_TABLE,
    Config,
    Criterion,
    Filter,
    Listener,
    Local,
    Relay,
    Rule,
    Table,
    pam_service,
)
from pillarbox.conf.tables import BUILTIN

_TABLES: dict[type, tuple[str, ...]] = {
    Listener: ("auth", "tokens", "hostnames", "senders", "proxy_from"),
    Local: ("alias", "virtual", "userbase"),
    Relay: ("hosts", "domain", "auth", "helo_src", "src"),
}
CRITERIA = ("source", "dest", "tag", "helo", "tls", "auth", "mail_from", "rcpt_to")
"""The fields of a Rule that are criteria, in the order in which they are written."""


def used_tables(config: Config) -> set[str]:
    """The names of all tables that listeners, actions, rules and filters refer to."""
    found = {table for item in (*config.listeners, *config.actions.values()) for table in _referred(item).values()}
    found.update(criterion.table for criterion in criteria(config) if criterion.table)
    return found


def criteria(config: Config) -> Iterator[Criterion]:
    """All conditions, of rules and of filters."""
    for rule in config.rules:
        yield from rule_criteria(rule).values()
    for declared in config.filters.values():
        yield from declared.conditions


def rule_criteria(rule: Rule) -> dict[str, Criterion]:
    """What a rule asks for, by field."""
    found: dict[str, Criterion] = {}
    for field in CRITERIA:
        criterion = getattr(rule, field)
        if criterion is not None:
            found[field] = criterion
    return found


def _referred(item: Listener | Local | Relay) -> dict[str, str]:
    """Field → table."""
    fields = ((field, getattr(item, field)) for field in _TABLES[type(item)])
    return {field: table for field, table in fields if table not in {"", AUTH_SYSTEM} and not pam_service(table)}


def normal(config: Config) -> Config:
    """The configuration without what does not change its meaning.

    Two files mean the same where this is equal: lines, file names, warnings and the generation are left out, tables
    and chains without names are numbered by where they are used, and those that nothing uses are gone.
    """
    return _Renumbered(config).config()


class _Renumbered:
    """One pass over a configuration in canonical order; every use of an unnamed table or chain gets one of its own."""

    def __init__(self, config: Config) -> None:
        self._old = config
        self._tables: dict[str, Table] = {}
        self._chains: dict[str, Filter] = {}
        for table in config.tables.values():
            if not table.is_unnamed() and table.name not in BUILTIN:
                self._tables[table.name] = table

    def config(self) -> Config:
        """The result."""
        old = self._old
        filters = {n: self._condition(f) for n, f in old.filters.items() if not f.is_unnamed()}
        listeners = tuple(self._item(listener, line=0) for listener in old.listeners)
        actions = {name: self._item(action, line=0, file="") for name, action in old.actions.items()}
        rules = tuple(self._rule(rule) for rule in old.rules)
        return msgspec.structs.replace(
            old,
            file="",
            generation=0,
            warnings=(),
            tables=self._tables,
            filters=filters | self._chains,
            listeners=listeners,
            actions=actions,
            rules=rules,
            procs={n: msgspec.structs.replace(proc, line=0, file="") for n, proc in old.procs.items()},
            reports=tuple(msgspec.structs.replace(report, line=0) for report in old.reports),
        )

    def _table(self, name: str) -> str:
        table = self._old.tables[name]
        if table.is_unnamed():
            table = msgspec.structs.replace(table, name=f"{UNNAMED_TABLE}{len(self._tables)}>")
        self._tables[table.name] = table
        return table.name

    def _item(self, item: Any, **changes: object) -> Any:
        changes |= {field: self._table(table) for field, table in _referred(item).items()}
        name = "" if isinstance(item, Local) else item.filter
        if name and self._old.filters[name].is_unnamed():
            chain = self._old.filters[name]
            changes["filter"] = chain_name = f"{UNNAMED_CHAIN}{len(self._chains)}>"
            self._chains[chain_name] = msgspec.structs.replace(chain, name=chain_name)
        return msgspec.structs.replace(item, **changes)

    def _criterion(self, criterion: Criterion) -> Criterion:
        if not criterion.table:
            return criterion
        return msgspec.structs.replace(criterion, table=self._table(criterion.table))

    def _condition(self, declared: Filter) -> Filter:
        conditions = tuple(map(self._criterion, declared.conditions))
        return msgspec.structs.replace(declared, conditions=conditions) if conditions else declared

    def _rule(self, rule: Rule) -> Rule:
        changed = {field: self._criterion(criterion) for field, criterion in rule_criteria(rule).items()}
        return msgspec.structs.replace(rule, line=0, file="", **changed)
