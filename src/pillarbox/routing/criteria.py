"""Why a rule matches or does not: its criteria one by one, each asked of a ruleset that has nothing else.

So it is `Ruleset` itself that says whether a criterion holds, and which entry of a table makes it hold: the entries
are halved until one is left. That costs as much as compiling the table twice, once for each criterion that is told.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Set
from typing import Any

import msgspec

from pillarbox.conf import model
from pillarbox.conf.format import format_criterion
from pillarbox.conf.model import Config, Criterion, Rule
from pillarbox.errors import TempFail
from pillarbox.mail.idn import fold_domain
from pillarbox.roles.explain import CriterionTried, one_line, visible
from pillarbox.routing.ruleset import NO_NAME, Question, Ruleset, Subject, ask
from pillarbox.routing.trace import source_of
from pillarbox.tables.table import MemoryTable, Table

PLACES = ("tag", "source", "dest", "helo", "auth", "tls", "mail_from", "rcpt_to")
WORDS = {"source": "from", "dest": "for"}
LARGE = 5000  # entries that are compiled in a thread, so that others get their turn

_ANYTHING: dict[str, Any] = {"source": Criterion(kind="any"), "dest": Criterion(kind="any")}


class Criteria:
    """Tries the criteria of one configuration's rules. It asks tables that are not in memory as the ruleset does."""

    def __init__(self, *, config: Config, tables: dict[str, Table], local_addresses: Callable[[], Set[str]]) -> None:
        self._config = config
        self._tables = tables
        self._local_addresses = local_addresses
        self._single: dict[tuple[str, Criterion], Ruleset] = {}
        self._found: dict[tuple[str, Criterion, str], str] = {}  # entries, by key
        self._bad: dict[Criterion, str] = {}

    async def tried(self, rule: Rule, subject: Subject) -> AsyncIterator[CriterionTried]:
        """Its criteria in the order in which they are looked at, up to the first that does not hold."""
        found = [(place, criterion) for place in PLACES if (criterion := getattr(rule, place)) is not None]
        for place, criterion in sorted(found, key=lambda f: self._is_asked(f[1])):
            tried = await self._try(place, criterion, subject)
            yield tried
            if not tried.holds:
                return

    def _is_asked(self, criterion: Criterion) -> bool:
        """What has to be asked of a table that is not in memory is looked at last."""
        return bool(criterion.table) and not isinstance(self._tables[criterion.table], MemoryTable)

    async def _try(self, place: str, criterion: Criterion, subject: Subject) -> CriterionTried:
        question = ask(place, criterion, subject) if criterion.table else None
        value = visible(question.key) if question is not None else ""
        entry = error = ""
        holds = False
        try:
            holds = await self._holds(place, criterion, subject)
            if criterion.table and holds is not criterion.negated:
                entry = await self._known_entry(place, criterion, subject, value)
        except TempFail as failure:
            error = str(failure)
        table = self._config.tables.get(criterion.table)
        return CriterionTried(
            text=one_line(format_criterion(self._config, criterion, WORDS.get(place, ""))),
            holds=holds,
            why=error or self._why(place, criterion, subject, question, holds),
            value=value,
            table=criterion.table,
            source=source_of(table),
            entry=entry,
        )

    async def _holds(self, place: str, criterion: Criterion, subject: Subject) -> bool:
        single = self._single.get((place, criterion))
        if single is None:
            single = self._single[place, criterion] = await self._compile(place, criterion, self._tables)
        return await single.decide(subject) is not None

    async def _compile(self, place: str, criterion: Criterion, tables: dict[str, Table]) -> Ruleset:
        def compiled() -> Ruleset:
            rule = Rule(line=0, **_ANYTHING | {place: criterion})
            return Ruleset(
                config=msgspec.structs.replace(self._config, rules=(rule,)),
                tables=tables,
                local_addresses=self._local_addresses,
                on_bad_regex=lambda _, pattern, reason: self._note_bad(criterion, pattern, reason),
            )

        table = tables.get(criterion.table)
        large = isinstance(table, MemoryTable) and len(table.entries) > LARGE
        return await asyncio.to_thread(compiled) if large else compiled()

    def _note_bad(self, criterion: Criterion, pattern: str, reason: str) -> None:
        self._bad.setdefault(criterion, f'"{visible(pattern)}" never matches: {reason}')

    async def _known_entry(self, place: str, criterion: Criterion, subject: Subject, key: str) -> str:
        """Rules of one domain name it each: its entry is looked for once."""
        plain = msgspec.structs.replace(criterion, negated=False)
        known = self._found.get((place, plain, key))
        if known is None:
            known = self._found[place, plain, key] = visible(await self._entry(place, plain, subject))
        return known

    async def _entry(self, place: str, criterion: Criterion, subject: Subject) -> str:
        """The first entry, in order, that makes the criterion hold; "" where only the table knows."""
        table = self._tables[criterion.table]
        if not isinstance(table, MemoryTable):
            return ""
        keys = table.all_keys()
        while len(keys) > 1:
            half = keys[: len(keys) // 2]
            keys = half if await self._one_of(half, place, criterion, subject) else keys[len(half) :]
        return keys[0] if keys and await self._one_of(keys, place, criterion, subject) else ""

    async def _one_of(self, keys: list[str], place: str, criterion: Criterion, subject: Subject) -> bool:
        tables = self._tables | {criterion.table: self._with_keys(criterion.table, keys)}
        return await (await self._compile(place, criterion, tables)).decide(subject) is not None

    def _with_keys(self, name: str, keys: list[str]) -> MemoryTable:
        return MemoryTable(
            name=name,
            entries=tuple((key, "") for key in keys),
            delimiter=self._config.smtp.sub_addr_delim[:1],
            on_bad_regex=lambda pattern, reason: None,
        )

    def _why(self, place: str, criterion: Criterion, subject: Subject, question: Question | None, holds: bool) -> str:
        """The fact that decided, negation left aside."""
        if criterion.kind == "rdns" and not subject.internal and subject.hostname in NO_NAME:
            return "the client has no name"
        if not criterion.table or question is None:
            return self._fact(place, criterion, subject, holds is not criterion.negated)
        table = self._config.tables.get(criterion.table)
        words, bad = "matches" if criterion.regex else "is in", ""
        if holds is criterion.negated:
            words = "matches nothing in" if criterion.regex else "is not in"
            bad = f"; {self._bad[criterion]}" if criterion in self._bad else ""
        return f"{_shown(place, criterion, question.key)} {words} {_table(table)}{bad}"

    def _fact(self, place: str, criterion: Criterion, subject: Subject, matched: bool) -> str:
        """What a criterion without a table looked at."""
        no = "" if matched else "not "
        if place == "auth":
            return f"authenticated as {visible(subject.username)}" if subject.username else (
                "submitted over the control socket" if subject.authenticated else "not authenticated"
            )  # fmt: skip
        if place == "tls":
            return "the session has TLS" if matched else "the session has no TLS"
        if criterion.kind == "any":
            return "always"
        if place == "dest":
            domain = visible(fold_domain(subject.dest.rpartition("@")[2]))
            return f"{domain} is {no}this host's name or address"
        if subject.internal:
            return "mail of our own, as a forwarded address is"
        if subject.address == "local":
            return "the client is on the control socket"
        if criterion.kind == "local":
            return f"{subject.address} is {no}an address of this host"
        return f"the client is {subject.address}" + (f", {subject.hostname}" if subject.hostname else "")


def _table(table: model.Table | None) -> str:
    """A table in a sentence."""
    assert table is not None  # every criterion's is declared
    return "this list" if table.is_unnamed() else f'"{table.name}" ({source_of(table)})'


def _shown(place: str, criterion: Criterion, key: str) -> str:
    """A key in a sentence."""
    if place == "mail_from" and key == "@":
        return "the null sender (@)"
    if not key:
        return f"an empty {criterion.kind.replace('_', '-')}"
    return visible(key)
