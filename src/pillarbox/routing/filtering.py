"""Builtin filters (`filter NAME phase PHASE match CONDITION DECISION`): does the condition of each hold?

The dispatcher asks about those that follow each other in a phase (`filters/chain`); lookup has the tables.
"""

from collections.abc import Mapping

from pillarbox.conf.model import Config, Criterion, Filter
from pillarbox.errors import TempFail
from pillarbox.roles.lookup import FilterCase, FilterOutcome
from pillarbox.routing.ruleset import NO_NAME
from pillarbox.tables.program import ProgramTable
from pillarbox.tables.services import Service, bracketed, parse_address
from pillarbox.tables.table import Table

_SERVICES = {
    "rdns": Service.DOMAIN,
    "src": Service.NETADDR,
    "helo": Service.DOMAIN,
    "auth": Service.STRING,
    "mail-from": Service.MAILADDR,
    "rcpt-to": Service.MAILADDR,
}


class BuiltinFilters:
    """Those of one configuration."""

    def __init__(self, config: Config, tables: Mapping[str, Table]) -> None:
        self._filters = config.filters
        self._tables = tables

    async def decide(self, case: FilterCase) -> FilterOutcome:
        """Each in turn until one decides; a `report` goes on. Raises TempFail."""
        reports: list[tuple[str, str]] = []
        for name in case.filters:
            one = self._filters.get(name)
            if one is None:
                raise TempFail(f'filter "{name}" does not exist in configuration {case.generation}')
            if not await self._matches(one, case):
                continue
            if one.decision != "report":
                return FilterOutcome(reports=tuple(reports), name=name, decision=one.decision, argument=one.argument)
            reports.append((name, one.argument))
        return FilterOutcome(reports=tuple(reports))

    async def _matches(self, one: Filter, case: FilterCase) -> bool:
        """Does one of its conditions hold? (The grammar has one; the reference combines several like that.)"""
        for criterion in one.conditions:
            if await self._holds(criterion, case) is not criterion.negated:
                return True
        return False

    async def _holds(self, criterion: Criterion, case: FilterCase) -> bool:
        """The condition without its negation."""
        if criterion.kind == "fcrdns":
            return case.fcrdns == "pass"
        if not criterion.table:
            return bool(case.username) if criterion.kind == "auth" else _is_name(case.rdns)
        table = self._tables.get(criterion.table)
        if table is None:
            raise TempFail(f'table "{criterion.table}" does not exist')
        key = _key(criterion, case)
        if key is None:
            return False
        if criterion.regex:
            return await table.match(Service.REGEX, key)
        if criterion.kind == "auth" and isinstance(table, ProgramTable):
            return await _has_user(table, key)
        return await table.match(_SERVICES[criterion.kind], key)


async def _has_user(table: ProgramTable, user: str) -> bool:
    """The reference asks for a name and for credentials, which only programs keep apart: one of them will do."""
    services = [s for s in (Service.STRING, Service.CREDENTIALS) if await table.registers(s)]
    for service in services or [Service.STRING]:
        if await table.match(service, user):
            return True
    return False


def _is_name(rdns: str) -> bool:
    return rdns not in NO_NAME and parse_address(rdns) is None


def _key(criterion: Criterion, case: FilterCase) -> str | None:
    """What the table is asked for; None where that is not known of the session."""
    match criterion.kind:
        case "rdns":
            return case.rdns
        case "src":
            return bracketed(case.src)
        case "helo":
            return case.helo or None
        case "auth":
            return case.username or None
        case "mail-from":
            # As the client wrote it: for a regex the null sender is nothing, for a list of addresses it is "@".
            return case.sender if criterion.regex else case.sender or "@"
        case _:
            return case.rcpt
