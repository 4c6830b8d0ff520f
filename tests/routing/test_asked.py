"""Rules whose tables are not in memory: what these are asked, in which order, and how often."""

import asyncio

import pytest

from pillarbox.conf.model import Criterion, Table, TableKind
from pillarbox.errors import TempFail
from pillarbox.routing.ruleset import Ruleset, Subject
from pillarbox.tables.services import Service
from pillarbox.tables.table import MemoryTable
from tests.routing.support import configuration, criterion, match, table


class Asked:
    """A table that is asked: holds `keys`, notes the questions in a list that several may share."""

    def __init__(self, name, *keys, asked):
        self.name = name
        self.keys = keys
        self.asked = asked

    async def match(self, service, key):
        self.asked.append((self.name, service, key))
        await asyncio.sleep(0)
        if key == "broken":
            raise TempFail(f"{self.name} does not answer")
        return key in self.keys

    async def lookup(self, service, key):
        raise AssertionError("a rule looks no value up")

    async def fetch(self, service):
        raise AssertionError("a rule fetches nothing")

    async def update(self):
        raise AssertionError("a rule updates nothing")

    def open(self):
        raise AssertionError("opened by who made it")

    async def close(self):
        raise AssertionError("closed by who made it")


def decide(*rules, asked=(), tables=(), **fields):
    """(action of the rule, questions) about a subject; `asked`: name → keys."""
    questions = []
    config = configuration(rules=rules, tables=[*tables, *(Table(name=n, kind=TableKind.PROC) for n in dict(asked))])
    opened = {
        name: Asked(name, *dict(asked)[name], asked=questions)
        if t.kind is TableKind.PROC
        else MemoryTable(name=name, entries=t.entries, delimiter="+", on_bad_regex=lambda p, w: None)
        for name, t in config.tables.items()
    }
    ruleset = Ruleset(
        config=config,
        tables=opened,
        local_addresses=lambda: frozenset({"127.0.0.1"}),
        on_bad_regex=lambda name, pattern, why: None,
    )
    who = {"sender": "s@client.example", "dest": "alice@Example.ORG", "address": "198.51.100.7", **fields}
    rule = asyncio.run(ruleset.decide(Subject(**who)))
    return rule and rule.action, questions


SOURCE, DEST = criterion("src", "net"), criterion("domain", "dom")


@pytest.mark.parametrize(
    ("rule", "fields", "question"),
    [
        (match("x", tag="t"), {"tag": "TAG1"}, (Service.STRING, "TAG1")),
        (match("x", source=criterion("src", "t")), {}, (Service.NETADDR, "198.51.100.7")),
        (match("x", source=criterion("src", "t")), {"address": "2001:db8::1"}, (Service.NETADDR, "[2001:db8::1]")),
        (match("x", source=criterion("src", "t")), {"internal": True}, (Service.NETADDR, "local")),
        (match("x", source=criterion("rdns", "t")), {"hostname": "a.example"}, (Service.NETADDR, "a.example")),
        (match("x", dest=criterion("domain", "t")), {}, (Service.DOMAIN, "example.org")),
        (match("x", dest=criterion("rcpt-to", "t")), {}, (Service.MAILADDR, "alice@Example.ORG")),
        (match("x", helo="t"), {"helo": "mx.example"}, (Service.DOMAIN, "mx.example")),
        (match("x", auth="t"), {"authenticated": True, "username": "bob"}, (Service.STRING, "bob")),
        (match("x", auth="t"), {"authenticated": True, "username": "b@c.example"}, (Service.MAILADDR, "b@c.example")),
        (match("x", mail_from="t"), {}, (Service.MAILADDR, "s@client.example")),
        (match("x", mail_from="t"), {"sender": ""}, (Service.MAILADDR, "@")),
        (match("x", rcpt_to="t"), {}, (Service.MAILADDR, "alice@Example.ORG")),
        (match("x", helo=criterion("helo", "t", regex=True)), {"helo": "mx"}, (Service.REGEX, "mx")),
        (match("x", source=criterion("src", "t", regex=True)), {}, (Service.REGEX, "198.51.100.7")),
        (
            match("x", auth=criterion("auth", "t", regex=True)),
            {"authenticated": True, "username": "b@c"},
            (Service.REGEX, "b@c"),
        ),
    ],
)
def test_each_criterion_asks_its_service(rule, fields, question):
    service, key = question
    assert decide(rule, asked={"t": [key]}, **fields) == ("x", [("t", service, key)])
    assert decide(rule, asked={"t": []}, **fields) == (None, [("t", service, key)])


@pytest.mark.parametrize("negated", [False, True])
def test_who_has_no_name_never_passes_rdns_and_nobody_is_asked(negated):
    source = Criterion(kind="rdns", table="t", negated=negated)
    assert decide(match("x", source=source), asked={"t": ["<unknown>"]}, hostname="<unknown>") == (None, [])


def test_without_a_login_auth_fails_unasked_and_its_negation_passes():
    assert decide(match("x", auth="t"), asked={"t": [""]}) == (None, [])
    assert decide(match("x", auth="!t"), asked={"t": [""]}) == ("x", [])


def test_negation_turns_the_answer_around():
    assert decide(match("x", helo="!t"), asked={"t": ["mx"]}, helo="mx")[0] is None
    assert decide(match("x", helo="!t"), asked={"t": []}, helo="mx")[0] == "x"


def test_criteria_are_asked_in_the_order_of_the_reference_and_the_first_no_ends_the_rule():
    rule = match("x", tag="tag", source=SOURCE, dest=DEST, helo="helo", mail_from="from", rcpt_to="to")
    keys = {"tag": ["T"], "net": ["198.51.100.7"], "dom": ["example.org"], "helo": ["mx"]}
    keys |= {"from": ["s@client.example"], "to": ["alice@Example.ORG"]}
    action, questions = decide(rule, asked=keys, tag="T", helo="mx")
    assert action == "x"
    assert [name for name, _, _ in questions] == ["tag", "net", "dom", "helo", "from", "to"]
    _, questions = decide(rule, asked={**keys, "dom": []}, tag="T", helo="mx")
    assert [name for name, _, _ in questions] == ["tag", "net", "dom"]


def test_for_rcpt_to_is_asked_last():
    rule = match("x", dest=criterion("rcpt-to", "to"), helo="helo")
    _, questions = decide(rule, asked={"to": ["alice@Example.ORG"], "helo": ["mx"]}, helo="mx")
    assert [name for name, _, _ in questions] == ["helo", "to"]


def test_what_is_in_memory_is_decided_first_and_nobody_is_asked_in_vain():
    ours = table("here", "elsewhere.example")
    rules = (match("one", helo="t", dest=criterion("domain", "here")), match("two"))
    assert decide(*rules, asked={"t": ["mx"]}, tables=[ours], helo="mx") == ("two", [])


def test_an_earlier_rule_in_memory_that_matches_leaves_later_tables_alone():
    assert decide(match("one"), match("two", helo="t"), asked={"t": ["mx"]}, helo="mx") == ("one", [])


def test_several_rules_ask_the_same_question_once():
    rules = (match("one", helo="t", mail_from="f"), match("two", helo="t"), match("three", rcpt_to="f"))
    action, questions = decide(*rules, asked={"t": ["mx"], "f": []}, helo="mx")
    assert action == "two"
    assert questions == [("t", Service.DOMAIN, "mx"), ("f", Service.MAILADDR, "s@client.example")]


def test_a_table_that_does_not_answer_is_a_temporary_failure_only_where_it_matters():
    rules = (match("one", dest=criterion("domain", "ours"), helo="t"), match("two"))
    with pytest.raises(TempFail, match="t does not answer"):
        decide(*rules, asked={"t": []}, helo="broken")
    assert decide(match("zero"), *rules, asked={"t": []}, helo="broken")[0] == "zero"
