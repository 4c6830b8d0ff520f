"""No input makes the parser raise anything but its own error, and none costs more than linear time."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.conf.build import load_config
from pillarbox.conf.draft import words
from pillarbox.conf.format import format_config
from pillarbox.conf.lexer import KEYWORDS, Lexer
from pillarbox.conf.model import Config
from pillarbox.conf.parser import Parser
from pillarbox.conf.report import Report
from pillarbox.conf.uses import normal
from pillarbox.errors import ConfigError
from tests.conf.test_advice import Machine

PIECES = [
    *KEYWORDS,
    *(
        "{",
        "}",
        "<",
        ">",
        ",",
        "!",
        "=",
        "=>",
        "\n",
        "\\\n",
        '"',
        "'",
        "#",
        "$x",
        "$",
        "\\",
        "\t",
        "25",
        "-1",
        "1d",
        "a",
    ),
    *(
        '"a"',
        "<a>",
        "{ a, b }",
        "{ a = b }",
        "127.0.0.1",
        "/t",
        "file:/t",
        "smtp://h",
        "é",
        "\0",
        "\r",
        "99999999999999999999",
    ),
    *('include "smtpd.conf"', "x = ", 'action "a" mbox\n', 'match for local action "a"\n', "dns resolver"),
]
text = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
)
quick = settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def load(config: str, table: str = "a\n") -> Config | None:
    def read(path: str) -> str:
        if path == "smtpd.conf":
            return config
        if path == "/t":
            return table
        raise FileNotFoundError(2, "No such file or directory", path)

    try:
        return load_config(file="smtpd.conf", read=read, macros={"m": "x y"}, hostname="h", checker=None)
    except ConfigError as error:
        assert error.problems
        assert str(error)
        return None


@quick
@given(text)
def test_any_text_is_a_configuration_or_a_config_error(config: str) -> None:
    load(config)


@quick
@given(st.text())
def test_any_table_file_is_read_or_refused(table: str) -> None:
    load("table t file:/t\nmatch reject\n", table)


@quick
@given(st.data())
def test_a_good_configuration_with_a_piece_changed_is_no_surprise(data: st.DataObject) -> None:
    good = (Path(__file__).parent / "good.conf").read_text()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 40)))
    load(good[:start] + data.draw(st.sampled_from(PIECES)) + good[end:])


def test_the_good_configuration_is_good() -> None:
    good = (Path(__file__).parent / "good.conf").read_text()
    assert load(good) is not None


class Unskimmed(Lexer):
    """A lexer that hands out every element of a list as a token."""

    def skim(self, *, pairs: bool, separator: str) -> list[str]:
        return []


def read_by(lexer: Lexer) -> tuple[list[tuple[object, ...]], list[str]]:
    """What the parser makes of it: statements with their words, and problems."""
    report = Report()
    made = [
        (s.line, s.tree.data, [(part.data, words(part)) for part in s.tree.iter_subtrees_topdown()])
        for s in Parser(lexer=lexer, report=report).statements()
    ]
    return made, [str(problem) for problem in report.problems]


ELEMENTS = [
    "a",
    '"b c"',
    "x,",
    "y\n",
    "k = v",
    "k = v,",
    '"k" => "v"\n',
    ",",
    "\n",
    "any",
    "25",
    "4d,",
    "#c\n",
    "=",
    "\\",
    "}",
]


@quick
@given(st.lists(st.sampled_from(ELEMENTS), max_size=12).map(" ".join), st.lists(st.sampled_from(ELEMENTS), max_size=4))
def test_long_lists_are_skimmed_to_what_parsing_them_gives(block: str, tail: list[str]) -> None:
    text = f"table t {{ a, b, {block} }}\ntable u {{ a = b, {block}\n}}\nadmd x {''.join(tail)}\n" * 2
    skimmed = read_by(Lexer(name="c", text=text, macros={}))
    assert skimmed == read_by(Unskimmed(name="c", text=text, macros={}))


CORPUS = Path(__file__).parent.parent / "corpus"
CONFIGS = [
    re.sub("@PORT.@|@SINK.@", "2525", case["config"]).replace("@ROOT@", "/r")
    for kind in ("config", "expand", "relay", "filter")
    for case in json.loads((CORPUS / kind / "cases.json").read_text())
    if isinstance(case["config"], str)
]


def read_anything(text: str) -> Config | None:
    """As on a machine where every file is there."""

    def read(path: str) -> str:
        return text if path == "smtpd.conf" else "k v\n" if len(path) % 2 else "a\n"

    try:
        return load_config(file="smtpd.conf", read=read, macros={}, hostname="h", checker=Machine())
    except ConfigError as error:
        assert str(error)
        return None


@quick
@given(st.data())
def test_recorded_configurations_with_a_piece_changed_are_no_surprise(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(CONFIGS))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))) + text[end:]
    config = read_anything(text)
    if config is not None:
        again = read_anything(format_config(config))
        assert again is not None
        assert normal(again) == normal(config)


@quick
@given(st.binary(max_size=300), st.integers(0, 10))
def test_any_bytes_are_a_configuration_or_a_config_error(data: bytes, place: int) -> None:
    good = (Path(__file__).parent / "good.conf").read_text().split("\n")
    good.insert(place, data.decode("latin-1"))
    read_anything("\n".join(good))


HUGE = {
    "entries": lambda n: "table t {\n" + "".join(f"host{i}.example.org,\n" for i in range(n)) + "x }\nmatch reject\n",
    "pairs": lambda n: "table t {\n" + "".join(f'"u{i}" => "v{i}"\n' for i in range(n)) + "}\nmatch reject\n",
    "blanks": lambda n: "table t { " + "a " * n + "}\nmatch reject\n",
    "escapes": lambda n: "table t { " + '"a\\"b", ' * n + "x }\nmatch reject\n",
    "tables": lambda n: "".join(f"table t{i} {{ a, b }}\n" for i in range(n)) + "match reject\n",
    "macros": lambda n: 'x = "a b"\ntable t { ' + "$x " * n + "}\nmatch reject\n",
    "comment": lambda n: "#" + "x\\\n" * n + "\nmatch reject\n",
    "word": lambda n: "a" * n,
    "quote": lambda n: '"' + 'a\\" ' * n,
    "braces": lambda n: "{" * n,
    "block": lambda n: "table t {\n" + "a\n" * n,
    "block errors": lambda n: "table t { a = b c\n" * n,
    "unknown macros": lambda n: "$x\n" * n,
    "errors in a line": lambda n: "match " + "tls " * n + "reject\n",
    "undeclared": lambda n: "match for domain <a> reject\n" * n,
    "digits": lambda n: "smtp limit max-rcpt " + "9" * n,
    "zeros": lambda n: "smtp limit max-rcpt " + "0" * n + "1\nmatch reject\n",
    "rules": lambda n: "".join(
        f'match from src 10.{i >> 8 & 255}.{i & 255}.0/24 for domain {{ a{i}.example, b{i % 9}.example }} action "a"\n'
        for i in range(n)
    ),
    "one list in all rules": lambda n: 'match for domain { "x", "y" } helo { "h" "i" } tls action "a"\n' * n,
    "growing lists": lambda n: "".join(
        f"match for domain {{ {' '.join(f'd{k}' for k in range(i % 60 + 1))} }} action a\n" for i in range(n)
    ),
    "words of all criteria": lambda n: "".join(
        f'match tag "t{i % 3}" helo "h{i % 5}" auth "u{i % 7}" mail-from "f{i % 11}" rcpt-to "r{i}" '
        f'from src "s{i % 2}" for any action "a"\n'
        for i in range(n)
    ),
    "actions": lambda n: "".join(f'action "a{i}" relay host smtp://h{i}\nmatch action "a{i}"\n' for i in range(n)),
    "listeners": lambda n: "".join(f"listen on 192.0.2.1 port {i % 65000 + 1} tag t{i}\n" for i in range(n)),
    "filters": lambda n: "".join(f"filter f{i} phase connect match !rdns junk\n" for i in range(n)) + "match reject\n",
}
LARGE = {
    "entries": 100_000, "pairs": 100_000, "rules": 10_000, "actions": 4_000, "growing lists": 3_000, "tables": 10_000,
    "one list in all rules": 5_000, "words of all criteria": 4_000, "listeners": 5_000, "filters": 5_000,
    "block errors": 3_000, "errors in a line": 20_000, "undeclared": 5_000, "unknown macros": 50_000,
}  # fmt: skip


def cost(text: str) -> float:
    start = time.process_time()
    load(f'action "a" mbox\n{text}' if "action" in text else text)
    return time.process_time() - start


@pytest.mark.parametrize("name", HUGE)
def test_four_times_the_text_costs_about_four_times_as_much(name: str) -> None:
    make, count = HUGE[name], LARGE.get(name, 50_000)
    load("match reject\n")  # the grammar is built once
    small, large = cost(make(count // 4)), cost(make(count))
    assert large < 10
    assert large < 10 * small + 0.5, (small, large)


def test_five_megabytes_are_read_in_seconds() -> None:
    make = HUGE["entries"]
    text = make(230_000)
    assert len(text) > 5_000_000
    assert cost(text) < 10


def test_macros_cannot_make_a_small_file_huge() -> None:
    start = time.monotonic()
    assert load('x = "' + "a" * 8_000 + '"\ntable t { ' + "$x " * 1_000 + "}\nmatch reject\n") is None
    assert time.monotonic() - start < 10
