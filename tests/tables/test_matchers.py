"""Matchers: which tables hold a key, and in what forms entries are written (table(5))."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.tables.matchers import (
    DomainMatcher,
    MailaddrMatcher,
    NetaddrMatcher,
    RegexMatcher,
    StringMatcher,
    build_matcher,
)
from pillarbox.tables.patterns import domain_regex, parse_network
from pillarbox.tables.services import Service


def reference_match(name: str, pattern: str) -> bool:
    """A pattern by its definition: a star runs to the first occurrence of what follows, and is not tried again."""
    at = 0
    rest = pattern
    while rest and at < len(name):
        if rest[0] == "*":
            rest = rest.lstrip("*")
            while at < len(name) and (not rest or name[at] != rest[0]):
                at += 1
            continue
        if rest[0] != name[at]:
            return False
        rest, at = rest[1:], at + 1
    return not rest and at == len(name)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("example.org", "EXAMPLE.org", True),
        ("example.org", "sub.example.org", False),
        ("*.example.net", "a.example.net", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", "a.b.example.net", False),
        ("*x.example", "x.example", True),
        ("*x.example", "foox.example", True),
        ("*x.example", "x.examples", False),
        ("*x.example", "fooxx.example", False),
        ("mx*", "mx1.example.org", True),
        ("mx*", "mx", False),
        ("*", "anything.example", True),
        ("a.*.example", "a.b.example", True),
        ("*.*", "a.b", True),
        ("**.example", "a.example", True),
        (".example.net", "a.example.net", False),
    ],
)
def test_domain_patterns(pattern, name, matches):
    assert (DomainMatcher([([pattern], 1)]).mask(name) == 1) is matches
    assert reference_match(name.lower(), pattern) is matches


@given(
    st.text(alphabet="ab.*", min_size=1, max_size=8),
    st.text(alphabet="ab.", max_size=8),
)
def test_domain_matcher_agrees_with_the_definition(pattern, name):
    assert (DomainMatcher([([pattern], 1)]).mask(name) == 1) is reference_match(name, pattern)


def test_domain_regex_escapes_what_is_special():
    assert DomainMatcher([(["*+x"], 1)]).mask("aa+x") == 1
    assert DomainMatcher([(["a*)"], 1)]).mask("ab)") == 1
    assert domain_regex("*") == ".+"


def test_masks_of_tables_are_united():
    matcher = DomainMatcher([(["example.org", "*.example.org"], 1), (["example.org"], 2), (["*"], 4)])
    assert matcher.mask("example.org") == 1 | 2 | 4
    assert matcher.mask("a.example.org") == 1 | 4
    assert matcher.mask("") == 0


@pytest.mark.parametrize(
    ("entry", "address", "matches"),
    [
        ("alice@example.org", "ALICE@Example.org", True),
        ("alice@example.org", "alice+x@example.org", True),
        ("alice+x@example.org", "alice+x@example.org", True),
        ("alice+x@example.org", "alice+y@example.org", False),
        ("alice+x@example.org", "alice@example.org", False),
        ("@example.org", "any@example.org", True),
        ("@example.org", "any@sub.example.org", False),
        ("@*.example.org", "any@sub.example.org", True),
        ("alice@*.example.org", "alice+t@sub.example.org", True),
        ("alice@*.example.org", "alice@example.org", False),
        ("alice@mx*.org", "alice@mx1.org", True),
        ("alice@mx*.org", "bob@mx1.org", False),
        ("alice", "alice@anywhere.example", True),
        ("alice", "alice", True),
        ("alice", "alicex@anywhere.example", False),
        ("@", "any@where.example", True),
        ("@", "@", True),
        ("@example.org", "@", False),
        ("alice", "@", False),
    ],
)
def test_mail_addresses(entry, address, matches):
    assert (MailaddrMatcher([([entry], 1)], delimiter="+").mask(address) == 1) is matches


def test_sub_address_delimiter_is_the_configured_one():
    matcher = MailaddrMatcher([(["alice@example.org"], 1)], delimiter="-")
    assert matcher.mask("alice-x@example.org") == 1
    assert matcher.mask("alice+x@example.org") == 0


@pytest.mark.parametrize(
    ("entry", "address", "matches"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.0/24", "192.0.2.77", True),
        ("192.0.2.0/24", "192.0.3.77", False),
        ("127.0.0.0/31", "127.0.0.1", True),
        ("127.0.0.0/31", "127.0.0.2", False),
        ("0.0.0.0/0", "8.8.8.8", True),
        ("0.0.0.0/0", "[2001:db8::1]", False),
        ("10", "10.1.2.3", True),
        ("10/8", "10.1.2.3", True),
        ("172.16/12", "172.31.0.1", True),
        ("[2001:db8::1]", "2001:db8:0::1", True),
        ("[2001:db8::/32]", "[2001:db8:1::7]", True),
        ("2001:db8::/32", "[2001:db9::7]", False),
        ("[IPv6:2001:db8::1]", "[2001:db8::1]", True),
        ("::/0", "[::1]", True),
        ("local", "local", True),
        ("Host.example", "host.EXAMPLE", True),
        ("192.0.2.256", "192.0.2.256", True),
        ("192.0.2.0/33", "192.0.2.1", False),
    ],
)
def test_networks(entry, address, matches):
    assert (NetaddrMatcher([([entry], 1)]).mask(address) == 1) is matches


@given(st.text(max_size=20))
def test_no_text_makes_a_network_raise(text):
    parse_network(text)
    NetaddrMatcher([([text], 1)]).mask(text)


def test_regexes_are_searched_without_regard_to_case():
    matcher = RegexMatcher([(["^spam", r"example\.(org|net)$"], 1), (["(?i)HAM"], 2)])
    assert matcher.mask("SPAMMER@x") == 1
    assert matcher.mask("a@Example.NET") == 1
    assert matcher.mask("hamster@example.org") == 1 | 2
    assert matcher.mask("a@example.network") == 0


def test_bad_regex_never_matches_and_is_reported():
    told = []
    matcher = RegexMatcher([(["(unclosed", "ok", "a)b"], 1)], on_error=lambda pattern, why: told.append((pattern, why)))
    assert matcher.mask("(unclosed") == 0
    assert matcher.mask("it is ok") == 1
    assert [pattern for pattern, _ in told] == ["(unclosed", "a)b"]
    assert all("expected" in why or "missing" in why or "unexpected" in why for _, why in told)


def test_hostile_regex_ends_soon():
    matcher = RegexMatcher([(["(a*)*b", "(a|aa)+$", "^(a+)+$", "((a{1,30}){1,30})x"], 1)])
    begun = time.monotonic()
    for length in range(1, 60):
        matcher.mask("a" * length * 20 + "!")
    assert time.monotonic() - begun < 5


def test_regexes_too_large_for_one_automaton_still_match():
    patterns = [rf"u.*r{i}@.*host{i}\.(example|test){{1,50}}$" for i in range(400)]
    matcher = RegexMatcher([([p], 1 << i) for i, p in enumerate(patterns)])
    assert matcher.mask("user77@the-host77.example" + "x@y" * 50) == 0
    assert matcher.mask("user77@the-host77.example") == 1 << 77


def test_surrogates_do_not_raise():
    key = b"\xff\xfe@x".decode("utf-8", "surrogateescape")
    for service in Service:
        build_matcher(service, [([key, "x"], 1)], delimiter="+").mask(key)


@given(st.lists(st.text(max_size=12), max_size=5), st.text(max_size=12))
def test_no_entry_and_no_key_raises(entries, key):
    for service in Service:
        build_matcher(service, [(entries, 1)], delimiter="+").mask(key)


def test_strings_are_compared_without_regard_to_case():
    matcher = StringMatcher([(["ONE", "two"], 1)])
    assert matcher.mask("one") == matcher.mask("TWO") == 1
    assert matcher.mask("three") == 0


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "Bücher.example"),
        ("*.bücher.example", "mx.xn--bcher-kva.example"),
    ],
)
def test_a_domain_is_the_same_in_unicode_and_in_ascii(entry, key):
    assert DomainMatcher([([entry], 1)]).mask(key) == 1
    assert MailaddrMatcher([([f"jürgen@{entry}"], 1)], delimiter="+").mask(f"JÜRGEN@{key}") == 1
    assert MailaddrMatcher([([f"@{entry}"], 1)], delimiter="+").mask(f"a@{key}") == 1
