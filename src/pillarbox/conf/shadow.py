"""Which rules an earlier one covers: whatever such a rule would match, the earlier one has decided before.

Sound, not complete: a rule is said to be covered only where every criterion of the earlier one is among its own, or
wider than one of its own (`from any`; a list that holds all of its entries; `auth` of anybody). Patterns and networks
are compared as text. Tables that may change while the server runs (files, databases, programs) are only the same as
themselves.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, product
from math import prod
from typing import Any, TypeAlias

from pillarbox.conf.model import Config, Criterion, Rule, TableKind
from pillarbox.conf.uses import rule_criteria

# What must hold: the field, the criterion's kind, its negation, and the table's content or name.
Condition: TypeAlias = tuple[str, str, bool, Any]

_WIDER = 8  # lists that hold the entries of one are looked for up to this number,
_ENTRIES = 64  # for lists up to this length
_COMBINATIONS = 2048


class Coverage:
    """The rules so far, by what they ask for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen: dict[frozenset[Condition], int] = {}
        self._contents: dict[str, Any] = {}  # table → what stands for its content
        self._holders: dict[tuple[str, str, str], list[Any]] = {}  # (field, kind, entry) → contents with that entry
        self._known: set[tuple[str, str, Any]] = set()

    def add(self, index: int, rule: Rule) -> None:
        """The next rule; one that nothing passes is left out."""
        if never_matches(rule):
            return
        conditions = self.conditions(rule)
        self._seen.setdefault(frozenset(conditions), index)
        for field, kind, negated, content in conditions:
            if not negated and isinstance(content, frozenset) and (field, kind, content) not in self._known:
                self._known.add((field, kind, content))
                for entry in content:
                    self._holders.setdefault((field, kind, entry), []).append(content)

    def covering(self, conditions: Iterable[Condition]) -> int | None:
        """The first rule so far that decides about whatever meets these conditions."""
        choices = [(None, *self._wider(condition)) for condition in conditions]
        if prod(map(len, choices)) > _COMBINATIONS:
            choices = [choice[:2] for choice in choices]
        found: int | None = None
        for chosen in product(*choices):
            index = self._seen.get(frozenset(condition for condition in chosen if condition is not None))
            if index is not None and (found is None or index < found):
                found = index
        return found

    def conditions(self, rule: Rule) -> list[Condition]:
        """What a rule asks for; `from any` and `for any` ask for nothing."""
        return [
            (field, criterion.kind, criterion.negated, self._content(criterion))
            for field, criterion in rule_criteria(rule).items()
            if criterion.negated or criterion.kind != "any"
        ]

    def _content(self, criterion: Criterion) -> Any:
        if not criterion.table:
            return None
        key = f"{'regex' if criterion.regex else 'plain'} {criterion.table}"
        if key not in self._contents:
            table = self._config.tables[criterion.table]
            content: Any = key
            if table.kind is TableKind.STATIC:
                marked = "~" if criterion.regex else "="  # the case of a regex has a meaning
                content = frozenset(
                    marked + (entry if criterion.regex else entry.lower()) for entry, _ in table.entries
                )
            self._contents[key] = content
        return self._contents[key]

    def _wider(self, condition: Condition) -> Iterator[Condition]:
        """Conditions that hold wherever this one does, itself first."""
        field, kind, negated, content = condition
        yield condition
        if negated:
            return
        if kind == "socket":
            yield field, "local", False, None
        if kind in {"auth", "rdns"} and content is not None:
            yield field, kind, False, None
        if isinstance(content, frozenset) and 0 < len(content) <= _ENTRIES:
            holders = self._holders.get((field, kind, next(iter(content))), ())
            wider = (holder for holder in islice(holders, 4 * _WIDER) if holder is not content and holder > content)
            for holder in islice(wider, _WIDER):
                yield field, kind, False, holder


def never_matches(rule: Rule) -> bool:
    """`!from any` and `!for any` hold for nobody."""
    return any(criterion.negated and criterion.kind == "any" for criterion in (rule.source, rule.dest))
