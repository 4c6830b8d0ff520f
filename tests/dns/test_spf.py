"""Walks over SPF records: every mechanism, and records that want to walk for ever."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.dns import spf
from pillarbox.dns.resolver import Refused
from pillarbox.dns.spf import SpfWalk
from pillarbox.errors import PermFail, TempFail

HOSTS = {
    ("example.org", "A"): ("192.0.2.1",),
    ("example.org", "AAAA"): ("2001:db8::1",),
    ("example.org", "MX"): ("mx1.example.org", "mx2.example.org"),
    ("mx1.example.org", "A"): ("192.0.2.11",),
    ("mx2.example.org", "A"): ("192.0.2.12",),
    ("mx2.example.org", "AAAA"): ("2001:db8::12",),
    ("other.example", "A"): ("198.51.100.1", "198.51.100.2"),
    ("slow.example", "TXT"): TempFail("no answer in time"),
    ("refused.example", "TXT"): Refused("x"),
    ("bad..example", "TXT"): PermFail("Invalid domain name"),
}


class Zone:
    """Answers from a dictionary, and counts."""

    def __init__(self, records):
        self.answers = HOSTS | {(name, "TXT"): texts for name, texts in records.items()}
        self.asked = []

    async def records(self, name, record_type):
        self.asked.append((name, record_type))
        answer = self.answers.get((name, record_type), ())
        if isinstance(answer, Exception):
            raise answer
        return answer


def walk(*domains, families=(4, 6), zone=None, **records):
    zone = zone or Zone({name.replace("_", "."): (text,) for name, text in records.items()})
    said = []

    async def go():
        walking = SpfWalk(questions=zone, warn=said.append, families=families)
        found = [network for domain in domains for network in await walking.walk(domain)]
        return found, said, walking.complete

    return asyncio.run(go())


def allowed(text, **more):
    found, said, complete = walk("example.org", example_org="v=spf1 " + text, **more)
    assert (said, complete) == ([], True)
    return found


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("ip4:192.0.2.0/24 ip6:2001:DB8::/32 -all", ["192.0.2.0/24", "2001:DB8::/32"]),
        ("+ip4:192.0.2.1 ?ip4:192.0.2.2 ~ip4:192.0.2.3 -ip4:192.0.2.4", ["192.0.2.1", "192.0.2.2"]),
        ("IP4:192.0.2.1. ip4:2001:db8::1 ip6:192.0.2.1 ip4:x ip4:", ["192.0.2.1"]),
        ("ip6:fe80::1%x ip6:fe80::1%x\nblock:all ip4:192.0.2.0/255.255.255.0 ip6:2001:db8::1\n", []),
        ("a", ["192.0.2.1", "2001:db8::1"]),
        ("a:other.example", ["198.51.100.1", "198.51.100.2"]),
        ("a/24//64", ["192.0.2.1/24", "2001:db8::1/64"]),
        ("a:example.org//64", ["192.0.2.1", "2001:db8::1/64"]),
        ("a:example.org/33", []),
        ("mx", ["192.0.2.11", "192.0.2.12", "2001:db8::12"]),
        ("mx:example.org/28", ["192.0.2.11/28", "192.0.2.12/28", "2001:db8::12"]),
        ("mx/28", ["192.0.2.11/28", "192.0.2.12/28", "2001:db8::12"]),
        ("ptr ptr:x.example all exp=x.example unknown:x  a: include: redirect=", []),
        ("ip4:192.0.2.1 ip4:192.0.2.1", ["192.0.2.1"]),
    ],
)
def test_mechanisms(text, networks):
    assert allowed(text) == networks


def test_records_of_others_are_followed_once():
    found = allowed(
        "include:b.example redirect=c.example",
        b_example="v=spf1 ip4:192.0.2.2 include:c.example -all",
        c_example="v=spf1 ip4:192.0.2.3 include:b.example include:example.org",
    )
    assert sorted(found) == ["192.0.2.2", "192.0.2.3"]


def test_a_bare_mechanism_is_about_the_domain_whose_record_it_is():
    found, _, _ = walk("example.org", "other.example", example_org="v=spf1 a", other_example="v=spf1 a")
    assert found == ["192.0.2.1", "2001:db8::1", "198.51.100.1", "198.51.100.2"]


def test_other_texts_are_not_spf():
    zone = Zone({"example.org": ("v=spf10 a", "spf1 a", "v=spf1", "V=SPF1 ip4:192.0.2.1")})
    assert walk("example.org", zone=zone) == (["192.0.2.1"], [], True)


@pytest.mark.parametrize(("families", "network"), [((4,), "192.0.2.0/24"), ((6,), "2001:db8::/32")])
def test_one_family_alone(families, network):
    found, _, _ = walk("example.org", families=families, example_org="v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 mx a")
    assert found[0] == network
    assert all((":" in address) == (families == (6,)) for address in found)


def test_what_depends_on_the_message_is_told():
    text = "v=spf1 exists:%{i}.x.example include:%{d}\x07.example a:%{i}.example exists:all.example ip4:192.0.2.1"
    found, said, complete = walk("example.org", example_org=text)
    assert (found, complete) == (["192.0.2.1"], True)
    assert said == [
        "lookup_record: %{i}.x.example contains macros and can't be resolved",
        "lookup_record: %{d}?.example contains macros and can't be resolved",
        "lookup_record: %{i}.example contains macros and can't be resolved",
        "all.example: exists allows whatever address asks and can't be listed",
    ]


def test_a_list_that_lacks_something_is_not_complete():
    found, said, complete = walk("example.org", example_org="v=spf1 include:slow.example ip4:192.0.2.1")
    assert (found, said, complete) == (["192.0.2.1"], ["slow.example: no answer in time"], False)
    assert walk("bad..example")[1:] == (["bad..example: Invalid domain name"], False)
    assert walk("refused.example", "no.example") == ([], [], True)


def test_records_that_lead_on_and_on_are_left():
    class Endless(Zone):
        async def records(self, name, record_type):
            self.asked.append((name, record_type))
            return (f"v=spf1 include:x.{name}",)

    zone = Endless({})
    _, said, complete = walk("example.org", zone=zone)
    assert (len(zone.asked), complete) == (spf.DEPTH_MAX + 1, False)
    assert said[0].endswith("records lead to it")


def test_records_that_branch_and_branch_are_left():
    class Tree(Zone):
        async def records(self, name, record_type):
            self.asked.append((name, record_type))
            return (f"v=spf1 include:a.{name} include:b.{name} mx:{name}",)

    zone = Tree({})
    _, said, complete = walk("example.org", zone=zone)
    assert (len(zone.asked), complete) == (spf.QUESTIONS_MAX, False)
    assert sum("questions" in line for line in said) == 1


@given(st.text(max_size=200))
def test_any_record_is_walked(text):
    found, _, _ = walk("example.org", example_org="v=spf1 " + text)
    assert all("\n" not in network for network in found)


@pytest.mark.parametrize("text", ["exists:a\nblock", "include:slow\n\x1b[2J.example", "exists:%{i}\r\n"])
def test_warnings_are_one_line_whatever_a_record_holds(text):
    zone = Zone({"example.org": (f"v=spf1 {text}",)})
    zone.answers["slow\n\x1b[2J.example", "TXT"] = TempFail("no answer\nin time")
    found, said, _ = walk("example.org", zone=zone)
    assert found == []
    assert len(said) == 1 and said[0].isprintable()
