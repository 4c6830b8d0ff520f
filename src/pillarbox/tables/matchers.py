"""Matchers: which of many tables hold a key, answered at once.

A matcher is compiled from (entries, mask) pairs: `mask` is an integer whose set bits stand for the rules that use
those entries. `mask(key)` is the union of the masks of all entries that match. A ruleset of a thousand rules so
costs one lookup per criterion rather than one per rule, and a single table is a matcher with the mask 1.

All keys are matched without regard to case, domains in Unicode as what they are in ASCII. Compiling is linear in the
entries; matching does not walk them.
"""

import re
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

import re2

from pillarbox.mail.idn import fold_address, fold_domain
from pillarbox.tables.patterns import domain_regex, parse_network
from pillarbox.tables.services import Service, split_address

Source = tuple[Iterable[str], int]  # the keys of a table, and the mask that they stand for
SET_SIZE = 1000  # patterns compiled into one automaton
SET_MEMORY = 32 << 20  # bytes that its states may take; past it matching goes pattern by pattern


class Matcher(Protocol):
    """Answers for one service."""

    def mask(self, key: str) -> int:
        """The union of the masks of all entries that match the key, 0 where none does."""
        ...


class StringMatcher:
    """Equal strings."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._exact: dict[str, int] = {}
        for entries, mask in sources:
            for entry in entries:
                _add(self._exact, entry.lower(), mask)

    def mask(self, key: str) -> int:
        """See `Matcher`."""
        return self._exact.get(key.lower(), 0)


class DomainMatcher:
    """Host names and patterns of them. `*.suffix` is looked up by the suffix; only odder patterns are regexes."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._exact: dict[str, int] = {}
        self._suffix: dict[str, int] = {}
        odd: list[Source] = []
        for entries, mask in sources:
            for entry in entries:
                pattern = fold_domain(entry)
                if "*" not in pattern:
                    _add(self._exact, pattern, mask)
                elif pattern[:2] == "*." and "*" not in pattern[1:] and len(pattern) > 2:
                    _add(self._suffix, pattern[2:], mask)
                else:
                    odd.append((("^" + domain_regex(pattern) + "$",), mask))
        self._odd = RegexMatcher(odd) if odd else None

    def mask(self, key: str) -> int:
        """See `Matcher`."""
        name = fold_domain(key)
        found = self._exact.get(name, 0)
        if self._suffix:
            found |= self._suffix.get(name.partition(".")[2], 0)
        if self._odd is not None:
            found |= self._odd.mask(name)
        return found


class MailaddrMatcher:
    """Addresses: `user`, `@domain`, `user@domain`, the domain perhaps a pattern; a lone `@` is everybody.

    An entry without a sub-address also matches addresses that have one (`alice` matches alice+lists); one that has a
    sub-address matches just that.
    """

    def __init__(self, sources: Iterable[Source], *, delimiter: str) -> None:
        self._delimiter = delimiter
        self._all = 0
        self._exact: dict[str, int] = {}  # user@domain, user@*.suffix, user@
        domains: list[Source] = []
        odd: list[Source] = []
        for entries, mask in sources:
            for entry in entries:
                user, domain = split_address(fold_address(entry))
                if not user and not domain:
                    self._all |= mask
                elif not user:
                    domains.append(((domain,), mask))
                elif "*" not in domain or (domain[:2] == "*." and "*" not in domain[1:] and len(domain) > 2):
                    _add(self._exact, f"{user}@{domain}", mask)
                else:
                    odd.append(((f"^{re.escape(user)}@{domain_regex(domain)}$",), mask))
        self._domains = DomainMatcher(domains) if domains else None
        self._odd = RegexMatcher(odd) if odd else None

    def mask(self, key: str) -> int:
        """See `Matcher`."""
        user, domain = split_address(fold_address(key))
        found = self._all
        if self._domains is not None:
            found |= self._domains.mask(domain)
        base = user.partition(self._delimiter)[0]
        found |= self._mask_user(base, domain)
        if base != user:
            found |= self._mask_user(user, domain)
        return found

    def _mask_user(self, user: str, domain: str) -> int:
        if not user:
            return 0
        get = self._exact.get
        found = get(f"{user}@{domain}", 0) | get(f"{user}@", 0) | get(f"{user}@*.{domain.partition('.')[2]}", 0)
        if self._odd is not None:
            found |= self._odd.mask(f"{user}@{domain}")
        return found


class NetaddrMatcher:
    """Addresses in networks, by one dictionary for each prefix length in use; and equal strings (`local`, names)."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._exact: dict[str, int] = {}
        networks: dict[int, dict[int, dict[int, int]]] = {socket.AF_INET: {}, socket.AF_INET6: {}}
        for entries, mask in sources:
            for entry in entries:
                _add(self._exact, entry.lower(), mask)
                network = parse_network(entry)
                if network is not None:
                    family, prefix, bits = network
                    _add(networks[family].setdefault(bits, {}), prefix, mask)
        self._networks4 = [(32 - bits, table) for bits, table in networks[socket.AF_INET].items()]
        self._networks6 = [(128 - bits, table) for bits, table in networks[socket.AF_INET6].items()]

    def mask(self, key: str) -> int:
        """See `Matcher`; the key is an address, with or without brackets, or any string."""
        found = self._exact.get(key.lower(), 0)
        if ":" in key:
            if self._networks6:
                found |= _mask_networks(socket.AF_INET6, _inner_address(key), self._networks6)
        elif self._networks4:
            found |= _mask_networks(socket.AF_INET, key, self._networks4)
        return found


class RegexMatcher:
    """Regular expressions (RE2: linear time), searched for anywhere in the key.

    One that cannot be compiled never matches; `on_error(pattern, reason)` is told about it.
    """

    def __init__(self, sources: Iterable[Source], *, on_error: Callable[[str, str], None] | None = None) -> None:
        patterns = [(_encode(entry), mask) for entries, mask in sources for entry in entries]
        good: list[tuple[bytes, int]] = []
        probe = re2.Set.SearchSet(_options())
        for pattern, mask in patterns:
            try:
                probe.Add(pattern)
            except re2.error as error:
                if on_error is not None:
                    on_error(pattern.decode(errors="replace"), _reason(pattern) or str(error))
                continue
            good.append((pattern, mask))
        self._sets = [_Automaton(good[i : i + SET_SIZE]) for i in range(0, len(good), SET_SIZE)]

    def mask(self, key: str) -> int:
        """See `Matcher`."""
        subject = _encode(key)
        found = 0
        for automaton in self._sets:
            found |= automaton.mask(subject)
        return found


class _Automaton:
    """Up to `SET_SIZE` patterns searched for in one pass.

    An RE2 set that runs out of memory for its states answers "nothing", so an empty pattern, which matches always,
    stands first: where even that is missing, the patterns are tried one by one, slower but as bounded.
    """

    def __init__(self, patterns: list[tuple[bytes, int]]) -> None:
        self._patterns = patterns
        self._masks = (0, *(mask for _, mask in patterns))
        self._single: list[tuple[re2._Regexp, int]] | None = None
        self._set: re2.Set | None = re2.Set.SearchSet(_options())
        self._set.Add(b"")
        for pattern, _ in patterns:
            self._set.Add(pattern)
        try:
            self._set.Compile()
        except re2.error:  # too large for one automaton
            self._set = None

    def mask(self, subject: bytes) -> int:
        matched = self._set.Match(subject) if self._set is not None else None
        if matched is None:
            return self._mask_one_by_one(subject)
        found = 0
        for index in matched:
            found |= self._masks[index]
        return found

    def _mask_one_by_one(self, subject: bytes) -> int:
        if self._single is None:
            self._single = []
            for pattern, mask in self._patterns:
                try:
                    self._single.append((re2.compile(pattern, _options()), mask))
                except re2.error:  # parsed, but its program alone is over the limit
                    continue
        found = 0
        for regex, mask in self._single:
            if regex.search(subject) is not None:
                found |= mask
        return found


def build_matcher(
    service: Service,
    sources: Iterable[Source],
    *,
    delimiter: str,
    on_bad_regex: Callable[[str, str], None] | None = None,
) -> Matcher:
    """The matcher for a service: domain, netaddr, mailaddr and regex have patterns, all others are plain strings."""
    if service is Service.DOMAIN:
        return DomainMatcher(sources)
    if service is Service.NETADDR:
        return NetaddrMatcher(sources)
    if service is Service.MAILADDR:
        return MailaddrMatcher(sources, delimiter=delimiter)
    if service is Service.REGEX:
        return RegexMatcher(sources, on_error=on_bad_regex)
    return StringMatcher(sources)


def regex_fault(pattern: str) -> str:
    """Why a regular expression never matches: RE2 does not know it, or it is too large; "" where it is fine."""
    return _reason(_encode(pattern))


def _add(masks: dict[str, int] | dict[int, int], key: str | int, mask: int) -> None:
    target: dict[str | int, int] = masks  # type: ignore[assignment]
    old = target.get(key)
    # One shared integer for all entries of a table, unless tables overlap.
    target[key] = mask if old is None else old | mask


def _mask_networks(family: int, address: str, networks: list[tuple[int, dict[int, int]]]) -> int:
    try:
        number = int.from_bytes(socket.inet_pton(family, address), "big")
    except (OSError, ValueError):
        return 0
    found = 0
    for shift, table in networks:
        found |= table.get(number >> shift, 0)
    return found


def _inner_address(key: str) -> str:
    inner = key.strip("[]")
    if inner[:5].lower() == "ipv6:":
        inner = inner[5:]
    return inner.partition("%")[0]


def _encode(text: str) -> bytes:
    """Bytes for RE2. A key may hold surrogates (bytes of a client that were no UTF-8): they must not raise."""
    return text.encode("utf-8", "surrogateescape")


def _options() -> re2.Options:
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = SET_MEMORY
    return options


def _reason(pattern: bytes) -> str:
    """Why RE2 refuses a pattern; a set does not say."""
    try:
        re2.compile(pattern, _options())
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        return (reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) or "not a pattern"
    return ""
