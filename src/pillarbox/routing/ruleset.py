"""The ruleset: which `match` decides about a recipient. The first whose criteria all hold.

Each criterion is a column over all rules: it answers with an integer that has a bit for every rule it lets pass.
What passes all columns is their intersection, and the lowest bit left is the first rule. So a decision costs a lookup
a criterion, not a rule, whatever the number of rules (`tables/matchers` holds the entries of all tables of a column).

Tables that are not in memory (programs, databases) have no column: what asks one passes at first, and is asked only
when its rule is the next that everything in memory lets pass. So a decision waits for no table that does not matter
to it, and asks each at most once for one key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple, Protocol

import msgspec

from pillarbox.conf.model import Config, Criterion, Rule
from pillarbox.errors import ConfigError, Problem
from pillarbox.mail.idn import fold_domain
from pillarbox.tables.matchers import Matcher, Source, build_matcher
from pillarbox.tables.services import Service, bracketed, parse_address
from pillarbox.tables.table import MemoryTable, Table

NO_NAME = ("", "<unknown>")  # the reverse name of a client that has none


class Subject(msgspec.Struct, kw_only=True):
    """What the rules are asked about: one recipient of one session.

    `address` is "local" for the control socket; `internal`: made by ourselves (a bounce, a forwarded address), which
    is always `from local`. `authenticated` without `username`: submitted over the control socket.
    """

    sender: str
    dest: str
    address: str
    local: bool = False
    internal: bool = False
    hostname: str = ""
    tag: str = ""
    helo: str = ""
    tls: bool = False
    authenticated: bool = False
    username: str = ""


class Question(NamedTuple):
    """What a criterion asks of its table."""

    table: str
    service: Service
    key: str


Asked = tuple[str, Criterion]  # the place of a criterion in its rule, and the criterion, which has a table

# In the order of the reference; a rule that fails early is not asked about the rest.
_PLACES = ("tag", "source", "dest", "helo", "auth", "mail_from", "rcpt_to")
_SERVICES = {
    "tag": Service.STRING,
    "src": Service.NETADDR,
    "rdns": Service.NETADDR,
    "domain": Service.DOMAIN,
    "helo": Service.DOMAIN,
    "auth": Service.STRING,
    "mail_from": Service.MAILADDR,
    "rcpt-to": Service.MAILADDR,
    "rcpt_to": Service.MAILADDR,
}


class Decider(Protocol):
    """What an expansion needs of the rules."""

    async def decide(self, subject: Subject) -> Rule | None:
        """The first rule that matches, None where none does. May raise TempFail."""
        ...


class Ruleset:
    """The rules of one configuration, compiled; raises ConfigError on a table that does not exist."""

    def __init__(
        self,
        *,
        config: Config,
        tables: dict[str, Table],
        local_addresses: Callable[[], Set[str]],
        on_bad_regex: Callable[[str, str, str], None],
    ) -> None:
        self._rules = config.rules
        self._all = (1 << len(config.rules)) - 1
        self._hostname = config.hostname.lower()
        self._local_addresses = local_addresses
        self._tables = tables
        asked = [list(_asked(rule, tables)) for rule in config.rules]
        self._asked = {index: criteria for index, criteria in enumerate(asked) if criteria}
        columns = _Columns(tables, config.smtp.sub_addr_delim[:1], on_bad_regex)
        rules = [_without(rule, a) if a else rule for rule, a in zip(config.rules, asked, strict=True)]
        self._tag = columns.build([r.tag for r in rules], Service.STRING)
        self._source = _Source(columns, [r.source for r in rules])
        self._dest = _Dest(columns, [r.dest for r in rules])
        self._helo = columns.build([r.helo for r in rules], Service.DOMAIN)
        self._auth = _Auth(columns, [r.auth for r in rules])
        self._tls = columns.build([r.tls for r in rules], Service.STRING)
        self._mail_from = columns.build([r.mail_from for r in rules], Service.MAILADDR)
        self._rcpt_to = columns.build([r.rcpt_to for r in rules], Service.MAILADDR)

    async def decide(self, subject: Subject) -> Rule | None:
        """The first rule that matches, None where none does (which refuses the recipient).

        Suspends, and may raise TempFail, only where a table has to be asked that is not in memory.
        """
        passing = self._passing(subject)
        answers: dict[Question, bool] = {}
        while passing:
            index = (passing & -passing).bit_length() - 1
            if index not in self._asked or await self._all_hold(self._asked[index], subject, answers):
                return self._rules[index]
            passing &= passing - 1
        return None

    def _passing(self, subject: Subject) -> int:
        """The rules that match by what is in memory."""
        passing = self._all & self._source.passing(subject, self._is_local)
        if passing:
            passing &= self._dest.passing(subject, self._is_local_domain)
        if passing and self._tag.used:
            passing &= self._tag.passing(subject.tag)
        if passing and self._helo.used:
            passing &= self._helo.passing(subject.helo)
        if passing and self._auth.used:
            passing &= self._auth.passing(subject)
        if passing and self._tls.used:
            passing &= self._tls.apply(self._tls.used if subject.tls else 0)
        if passing and self._mail_from.used:
            passing &= self._mail_from.passing(_sender(subject))
        if passing and self._rcpt_to.used:
            passing &= self._rcpt_to.passing(subject.dest)
        return passing

    async def _all_hold(self, asked: list[Asked], subject: Subject, answers: dict[Question, bool]) -> bool:
        """Ask the tables of a rule; `answers` are those of this decision so far."""
        for place, criterion in asked:
            if criterion.kind == "rdns" and not subject.internal and subject.hostname in NO_NAME:
                return False  # never passes, not even negated
            question = ask(place, criterion, subject)
            found = False
            if question is not None:
                if question not in answers:
                    answers[question] = await self._tables[question.table].match(question.service, question.key)
                found = answers[question]
            if found is criterion.negated:
                return False
        return True

    def _is_local(self, subject: Subject) -> bool:
        """`from local`: the control socket, ourselves, or an address of this machine."""
        if subject.internal or subject.local or subject.address == "local":
            return True
        return (parse_address(subject.address) or subject.address) in self._local_addresses()

    def _is_local_domain(self, domain: str) -> bool:
        """`for local`: localhost, the server's name, or an address of this machine (IPv6 in brackets)."""
        if domain in ("localhost", self._hostname):
            return True
        if domain[:1] == "[":
            domain = domain[1:-1]
            return ":" in domain and (parse_address(domain) or domain) in self._local_addresses()
        return domain[:1].isdigit() and domain in self._local_addresses()


def ask(place: str, criterion: Criterion, subject: Subject) -> Question | None:
    """What a criterion asks its table about a subject; None where nothing that a table holds could match."""
    kind = criterion.kind if place in ("source", "dest") else place
    service = _SERVICES[kind]
    if kind in ("src", "rdns"):
        name = subject.hostname if kind == "rdns" else bracketed(subject.address)
        key = "local" if subject.internal else name
    elif kind == "auth":
        if not subject.authenticated:
            return None
        key = subject.username
        service = Service.MAILADDR if "@" in key else Service.STRING
    elif kind == "domain":
        key = _domain(subject)
    elif kind == "mail_from":
        key = _sender(subject)
    else:
        key = {"tag": subject.tag, "helo": subject.helo}.get(kind, subject.dest)
    return Question(criterion.table, Service.REGEX if criterion.regex else service, key)


def _asked(rule: Rule, tables: dict[str, Table]) -> Iterator[Asked]:
    """The criteria of a rule whose tables are not in memory, in the order in which they are asked."""
    found = [(place, getattr(rule, place)) for place in _PLACES]
    # COMPAT: `for rcpt-to` is a recipient's criterion to the reference too, looked at last.
    for place, criterion in sorted(found, key=lambda f: f[0] == "dest" and f[1].kind == "rcpt-to"):
        if criterion is not None and criterion.table and not _in_memory(criterion.table, tables):
            yield place, criterion


def _in_memory(name: str, tables: dict[str, Table]) -> bool:
    table = tables.get(name)
    if table is None:
        raise ConfigError((Problem(f"table {name} does not exist"),))
    return isinstance(table, MemoryTable)


def _without(rule: Rule, asked: list[Asked]) -> Rule:
    """The rule without these criteria, so that it passes their columns."""
    anything = {"source": Criterion(kind="any"), "dest": Criterion(kind="any")}
    return msgspec.structs.replace(rule, **{place: anything.get(place) for place, _ in asked})


class _Column:
    """One criterion over all rules, as bits. `used` are the rules that have it."""

    def __init__(self, criteria: Sequence[Criterion | None], plain: Matcher | None, regex: Matcher | None) -> None:
        self.used = _bits(i for i, c in enumerate(criteria) if c is not None)
        self._negated = _bits(i for i, c in enumerate(criteria) if c is not None and c.negated)
        self._absent = ((1 << len(criteria)) - 1) & ~self.used
        self._plain = plain
        self._regex = regex

    def matched(self, key: str) -> int:
        """The rules whose table holds the key."""
        found = self._plain.mask(key) if self._plain is not None else 0
        return found | self._regex.mask(key) if self._regex is not None else found

    def apply(self, matched: int) -> int:
        """The rules that pass, given those that matched: negation applied, and all rules without the criterion."""
        return (matched ^ self._negated) | self._absent

    def passing(self, key: str) -> int:
        """The rules that this key passes."""
        return self.apply(self.matched(key))


class _Columns:
    """Builds columns, and the matchers behind them."""

    def __init__(self, tables: dict[str, Table], delimiter: str, on_bad_regex: Callable[[str, str, str], None]) -> None:
        self._tables = tables
        self._delimiter = delimiter
        self._on_bad_regex = on_bad_regex

    def build(self, criteria: Sequence[Criterion | None], service: Service) -> _Column:
        """The column of a criterion whose tables are asked for `service`, or for regex where it says so."""
        plain = self._matcher(criteria, service, regex=False)
        return _Column(criteria, plain, self._matcher(criteria, service, regex=True))

    def _matcher(self, criteria: Sequence[Criterion | None], service: Service, *, regex: bool) -> Matcher | None:
        rules_of: dict[str, int] = {}
        for index, criterion in enumerate(criteria):
            if criterion is not None and criterion.table and criterion.regex is regex:
                rules_of[criterion.table] = rules_of.get(criterion.table, 0) | 1 << index
        if not rules_of:
            return None
        sources: list[Source] = [(self._entries(name), mask) for name, mask in rules_of.items()]
        if not regex:
            return build_matcher(service, sources, delimiter=self._delimiter)
        names = ", ".join(rules_of) if len(rules_of) < 4 else f"{len(rules_of)} tables"
        return build_matcher(
            Service.REGEX,
            sources,
            delimiter=self._delimiter,
            on_bad_regex=lambda pattern, reason: self._on_bad_regex(names, pattern, reason),
        )

    def _entries(self, name: str) -> list[str]:
        table = self._tables[name]
        assert isinstance(table, MemoryTable)  # all others are asked
        return table.all_keys()


class _Source:
    """`from …`."""

    def __init__(self, columns: _Columns, criteria: list[Criterion]) -> None:
        self._all = _Column(criteria, None, None)
        self._any = _of_kind(criteria, "any")
        self._local = _of_kind(criteria, "local")
        self._socket = _of_kind(criteria, "socket")
        self._named = _bits(i for i, c in enumerate(criteria) if c.kind == "rdns" and not c.table)
        self._names = _bits(i for i, c in enumerate(criteria) if c.kind == "rdns" and c.table)
        self._address = columns.build([c if c.kind == "src" else None for c in criteria], Service.NETADDR)
        # COMPAT: the reference compares names as netaddr entries, so patterns (`*.example.net`) do not match here.
        self._hostname = columns.build([c if c.kind == "rdns" else None for c in criteria], Service.NETADDR)

    def passing(self, subject: Subject, is_local: Callable[[Subject], bool]) -> int:
        """The rules that this client passes."""
        matched = self._any
        if self._local and is_local(subject):
            matched |= self._local
        if subject.internal:
            return self._passing_internal(matched)
        if self._address.used:
            matched |= self._address.matched(bracketed(subject.address))
        if subject.address == "local":
            matched |= self._socket
        unnamed = 0
        if self._named or self._names:
            if subject.hostname in NO_NAME:
                unnamed = self._names  # never passes, not even negated
            else:
                matched |= self._named | self._hostname.matched(subject.hostname)
        return self._all.apply(matched) & ~unnamed

    def _passing_internal(self, matched: int) -> int:
        """Our own mail comes from "local"; `from socket` and `from rdns` never pass, not even negated."""
        matched |= self._address.matched("local") | self._hostname.matched("local")
        return self._all.apply(matched) & ~(self._socket | self._named)


class _Dest:
    """`for …`."""

    def __init__(self, columns: _Columns, criteria: list[Criterion]) -> None:
        self._all = _Column(criteria, None, None)
        self._any = _of_kind(criteria, "any")
        self._local = _of_kind(criteria, "local")
        self._domain = columns.build([c if c.kind == "domain" else None for c in criteria], Service.DOMAIN)
        self._address = columns.build([c if c.kind == "rcpt-to" else None for c in criteria], Service.MAILADDR)

    def passing(self, subject: Subject, is_local: Callable[[str], bool]) -> int:
        """The rules that this destination passes."""
        matched = self._any
        domain = _domain(subject)
        if self._local and is_local(domain):
            matched |= self._local
        if self._domain.used:
            matched |= self._domain.matched(domain)
        if self._address.used:
            matched |= self._address.matched(subject.dest)
        return self._all.apply(matched)


class _Auth:
    """`auth`: any user, or one of a table; a user name with an `@` is compared as an address."""

    def __init__(self, columns: _Columns, criteria: list[Criterion | None]) -> None:
        self._names = columns.build(criteria, Service.STRING)
        self._addresses = columns.build([c if c is None or not c.regex else None for c in criteria], Service.MAILADDR)
        self._anyone = _bits(i for i, c in enumerate(criteria) if c is not None and not c.table)
        self._regexes = columns.build([c if c is not None and c.regex else None for c in criteria], Service.STRING)
        self.used = self._names.used

    def passing(self, subject: Subject) -> int:
        """The rules that this user passes."""
        if not subject.authenticated:
            return self._names.apply(0)
        user = subject.username
        if "@" in user:
            matched = self._addresses.matched(user) | self._regexes.matched(user)
        else:
            matched = self._names.matched(user)
        return self._names.apply(matched | self._anyone)


def _bits(indexes: Iterable[int]) -> int:
    bits = 0
    for index in indexes:
        bits |= 1 << index
    return bits


def _of_kind(criteria: list[Criterion], kind: str) -> int:
    return _bits(i for i, c in enumerate(criteria) if c.kind == kind)


def _domain(subject: Subject) -> str:
    return fold_domain(subject.dest.rpartition("@")[2])


def _sender(subject: Subject) -> str:
    """The null sender is the address "@", which no entry but "@" matches."""
    return subject.sender or "@"
