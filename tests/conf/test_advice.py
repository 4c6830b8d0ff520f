"""Warnings: what is legal and surely not meant; and what looks like it and is meant."""

import dataclasses
from collections.abc import Sequence

import pytest

from pillarbox.conf.build import load_config
from pillarbox.conf.model import Listener, Pki

START = """\
listen on eth0
action "local" mbox
action "out" relay
match for local action "local"
match auth from any for any action "out"
"""


@dataclasses.dataclass
class Machine:
    """A machine on which everything is as it should be, but for what a test says."""

    open_files: tuple[str, ...] = ()
    bad_values: tuple[str, ...] = ()

    def local_addresses(self) -> Sequence[str]:
        return ("192.0.2.1",)

    def listener(self, listener: Listener) -> str:
        return ""

    def service_port(self, name: str) -> int:
        return 0

    def table_program(self, backend: str) -> bool:
        return True

    def table_database(self, path: str) -> str:
        return ""

    def pki(self, pki: Pki) -> tuple[str, str]:
        return "", ""

    def ca(self, path: str) -> str:
        return ""

    def endpoints(self, listener: Listener) -> list[str]:
        return [f"192.0.2.1 port {listener.port or 25}"]

    def everybody_reads(self, path: str) -> bool:
        return path in self.open_files

    def value(self, what: str, text: str) -> str:
        return f"bad {what}" if text in self.bad_values else ""


def warnings(text: str, machine: Machine | None = None) -> list[str]:
    """The first lines of all warnings, without the file's name."""
    files = {"smtpd.conf": text, "/creds": "label user:password\n", "/list": "a\n"}
    config = load_config(
        file="smtpd.conf", read=files.__getitem__, macros={}, hostname="mx.example.org", checker=machine
    )
    return [warning.partition("\n")[0].removeprefix("smtpd.conf:") for warning in config.warnings]


def rules(text: str) -> list[str]:
    """What is said about these rules, from line 1."""
    names = 'listen on eth0\ntable d { "a.example", "b.example", "c.example" }\ntable l file:/list\n'
    actions = 'action "x" mbox\naction "y" mbox\n'
    uses = 'match for domain <d> tag regex "^$" action "x"\nmatch for domain <l> tag regex "^$" action "y"\n'
    first = names.count("\n") + actions.count("\n") + uses.count("\n")
    found = warnings(names + actions + uses + text)
    numbered = (warning.partition(":") for warning in found)
    return [f"{int(line) - first}:{message}" for line, _, message in numbered]


def test_a_good_configuration_has_no_warnings() -> None:
    assert warnings(START) == []


def test_a_warning_has_the_line_and_a_caret() -> None:
    text = START + 'table nobody { "x" }\n'
    config = load_config(file="c", read=lambda _: text, macros={}, hostname="h", checker=None)
    assert config.warnings == ('c:6: warning: nothing reads table "nobody"\n    table nobody { "x" }\n    ^',)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ('for any action "x"', "for local reject"),
        ('for any action "x"', 'for domain "a.example" reject'),
        ('from any for any action "x"', "auth from any for any reject"),
        ('for domain "A.example" action "x"', 'for domain "a.EXAMPLE" reject'),
        ('for domain { "a.example", "b.example" } action "x"', 'for domain "b.example" reject'),
        ('for domain <d> action "x"', 'for domain { "c.example" "a.example" } helo h reject'),
        ('for domain <l> action "x"', "for domain <l> reject"),
        ('from local for any action "x"', "from socket for any reject"),
        ('auth from any for any action "x"', "auth alice from any for any reject"),
        ('from rdns for any action "x"', 'from rdns "mx.example" for any reject'),
        ('!from local for any action "x"', "!from local for any tls reject"),
        ('for rcpt-to regex "a" action "x"', 'for rcpt-to regex { "a" } reject'),
    ],
)
def test_a_rule_that_an_earlier_one_covers_is_never_reached(earlier: str, later: str) -> None:
    found = rules(f"match {earlier}\nmatch {later}\n")
    assert [w for w in found if "never reached" in w] == [
        f"2: warning: this match is never reached: the one in line {7 + 1} covers it"
    ]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ('for local action "x"', "for any reject"),
        ('for domain "a.example" action "x"', 'for domain { "a.example", "b.example" } reject'),
        ('for domain "*.example" action "x"', 'for domain "a.b.example" reject'),
        ('for domain <l> action "x"', 'for domain "a" reject'),  # a file may change
        ('from socket for any action "x"', "from local for any reject"),
        ('auth alice from any for any action "x"', "auth from any for any reject"),
        ('!from rdns for any action "x"', '!from rdns "mx.example" for any reject'),
        ('!for domain "a.example" action "x"', '!for domain { "a.example", "b.example" } reject'),
        ('for rcpt-to regex "\\S" action "x"', 'for rcpt-to regex "\\s" reject'),
        ('for rcpt-to regex "a" action "x"', 'for rcpt-to "a" reject'),
        ('mail-from "a" for any action "x"', 'rcpt-to "a" for any reject'),
        ('from any tls for local action "x"', "from any for local reject"),
        ('!for any action "x"', "for any reject"),
    ],
)
def test_a_rule_that_may_be_reached_is_not_called_unreachable(earlier: str, later: str) -> None:
    assert not [w for w in rules(f"match {earlier}\nmatch {later}\n") if "never reached" in w]


def test_the_covering_rule_of_another_file_is_named_with_it() -> None:
    files = {"c": 'include "/i"\nmatch reject\n', "/i": "match for any reject\n"}
    config = load_config(file="c", read=files.__getitem__, macros={}, hostname="h", checker=None)
    assert config.warnings[0].startswith("c:2: warning: this match is never reached: the one in line 1 of /i covers it")


def test_a_negation_of_everything_never_applies() -> None:
    assert rules("match !from any reject\n") == ["1: warning: this match never applies: nobody is outside of any"]


def test_a_tag_that_no_listener_has_never_applies() -> None:
    text = "listen on eth0 tag OFFICE\nmatch tag OFICE reject\n"
    text += 'match tag office for any reject\nmatch !tag "x" for any reject\n'
    said = 'this match never applies: no listener has the tag "OFICE"; did you mean "OFFICE"?'
    assert warnings(text) == [f"2: warning: {said}"]


RELAY = 'action "out" relay\naction "local" mbox\n'


@pytest.mark.parametrize(
    "text",
    [
        "listen on eth0\nmatch from any for any",
        "listen on eth0\nmatch from any tls for any",
        "listen on eth0\nmatch !from local for any",
        "listen on eth0\nmatch from any !for local",
        "listen on eth0\nmatch !auth from any for any",
        "listen on eth0 tag T\nmatch from any for any tag T",
        'listen on eth0\nmatch from any for domain "ours.example" action "local"\nmatch from any for any',
        "listen on eth0\nmatch auth from any for any reject\nmatch from any for any",
    ],
)
def test_an_open_relay_is_named(text: str) -> None:
    found = [warning for warning in warnings(f'{RELAY}{text} action "out"\n') if "open relay" in warning]
    line = text.count("\n") + 3
    assert found == [
        f'{line}: warning: open relay: anybody may send anywhere through action "out"; add auth, or narrow from'
    ]


def test_what_a_client_claims_does_not_close_a_relay() -> None:
    text = f'{RELAY}listen on eth0\nmatch from any mail-from "@ours.example" for any action "out"\n'
    assert "open relay: anybody who gives such a mail-from may send" in "".join(warnings(text))


@pytest.mark.parametrize(
    "text",
    [
        "listen on eth0\nmatch for any",
        "listen on eth0\nmatch auth from any for any",
        'listen on eth0\nmatch from any for rcpt-to "a@b.example"',
        'listen on eth0\nmatch from any for domain "b.example"',
        'listen on eth0\nmatch from src "10.0.0.0/8" for any',
        "listen on lo\nmatch from any for any",
        "listen on 127.0.0.1\nmatch from any for any",
        'pki p cert "/c" key "/k"\nlisten on eth0 tls-require pki p auth\nmatch from any for any',
        "listen on eth0\nlisten on lo tag T\nmatch tag T from any for any",
        "listen on eth0\nmatch !auth from any for any reject\nmatch from any for any",
        'listen on eth0\nmatch !from src "10.0.0.0/8" for any reject\nmatch from any for any',
        'listen on eth0\nmatch from any !for domain "b.example" reject\nmatch from any for any',
        "filter f phase rcpt-to match !auth reject x\nlisten on eth0 filter f\nmatch from any for any",
    ],
)
def test_a_relay_that_is_not_open_is_not_called_so(text: str) -> None:
    assert "open relay" not in "".join(warnings(f'{RELAY}{text} action "out"\n'))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("table t { a }", 'nothing reads table "t"'),
        ("table t file:/list", 'nothing reads table "t"'),
        ('action "a" mbox', 'no match uses action "a"'),
        ('proc p "/bin/p"', 'no filter or report uses proc "p"'),
        ("filter f phase connect match fcrdns junk", 'no listener or relay uses filter "f"'),
        ('pki p.example cert "/c" key "/k"', 'no listener or relay uses pki "p.example"'),
        ('ca c cert "/c"', 'no listener or relay uses ca "c"'),
        ('mda wrapper w "/bin/w"', 'no action uses mda wrapper "w"'),
    ],
)
def test_what_nothing_uses_is_named(statement: str, said: str) -> None:
    assert warnings(f"{START}{statement}\n") == [f"6: warning: {said}"]


def test_what_something_uses_is_not_named() -> None:
    text = (
        'pki P.example cert "/c" key "/k"\npki "*" cert "/c" key "/k"\nca C cert "/c"\nproc p "/p"\nproc q "/q"\n'
        'filter f proc p\nfilter g chain { f }\nreport smtp on q\nmda wrapper w "/w"\ntable t { a = b }\n'
        'listen on eth0 tls pki p.example ca c filter g\naction "a" mbox wrapper w alias <t>\n'
        'match for local action "a"\n'
    )
    assert warnings(text) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("relay pki nope.example", 'no pki "nope.example" is declared'),
        ("relay ca nope", 'no ca "nope" is declared'),
        (
            "relay host smtps://mx.example auth { a = b }",
            "auth has no effect: smtps://mx.example names no label, as smtps://label@host does",
        ),
        (
            "relay host smtps://l@mx.example",
            "smtps://l@mx.example names a label, but there is no auth table to find it in",
        ),
        ("relay host smtp+notls://mx.example tls", "tls contradicts smtp+notls://mx.example"),
    ],
)
def test_relays_that_cannot_work_as_written(options: str, said: str) -> None:
    assert warnings(f'{START}action "a" {options}\nmatch for domain d.example action "a"\n') == [f"6: warning: {said}"]


def test_two_listeners_on_one_address_are_named() -> None:
    text = START.replace("eth0\n", "eth0\nlisten on eth0 inet4 tag X\n")
    assert warnings(text) == ["2: warning: the listener of line 1 listens on eth0 (inet4) port 25 already"]
    assert warnings(text, Machine()) == ["2: warning: the listener of line 1 listens on 192.0.2.1 port 25 already"]
    assert warnings(text.replace("tag X", "port 587")) == []


def test_passwords_that_everybody_reads_are_named() -> None:
    text = (
        START + 'table creds file:/creds\naction "a" relay host smtps://label@h auth <creds>\n'
        'match for domain d.example action "a"\n'
    )
    assert warnings(text, Machine()) == []
    said = "everybody may read the passwords in /creds: chmod o-r it"
    assert warnings(text, Machine(open_files=("/creds", "smtpd.conf"))) == [f"6: warning: {said}"]
    inline = text.replace("file:/creds", '{ label = "user:password" }')
    said = "everybody may read the passwords in this file: chmod o-r it"
    assert warnings(inline, Machine(open_files=("smtpd.conf",))) == [f"1: warning: {said}"]
    key = f'srs key "secret"\n{START}'
    assert warnings(key, Machine(open_files=("smtpd.conf",))) == [
        "1: warning: everybody may read the keys in this file: chmod o-r it"
    ]


def test_values_that_only_fail_later_are_named_where_they_stand() -> None:
    machine = Machine(bad_values=("(a", "10.0.0.0/99", "gopher://h", "(b"))
    text = (
        'table t { "(b", "c" }\n' + START + 'action "a" relay host gopher://h\n'
        'match from src { "10.0.0.0/99" } rcpt-to regex <t> for domain d.example action "a"\n'
        'match from any rcpt-to regex "(a" reject\n'
    )
    assert warnings(text, machine) == [
        "1: warning: bad regex: (b",
        "7: warning: bad relay-url: gopher://h",
        "8: warning: bad netaddr: 10.0.0.0/99",
        "9: warning: bad regex: (a",
    ]
