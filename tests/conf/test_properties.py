"""No input makes the parser raise anything but its own error, and none costs more than linear time."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.conf.build import load_config
from pillarbox.conf.lexer import KEYWORDS
from pillarbox.conf.model import Config
from pillarbox.errors import ConfigError

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


HUGE = {
    "entries": "table t {\n" + "".join(f"host{n}.example.org,\n" for n in range(20_000)) + "x }\nmatch reject\n",
    "rules": 'action "a" mbox\n' + 'match from src 10.0.0.0/8 for domain d.example action "a"\n' * 2_000,
    "macros": 'x = "a b"\ntable t { ' + "$x " * 20_000 + "}\nmatch reject\n",
    "long comment": "#" + "x\\\n" * 100_000 + "\nmatch reject\n",
    "one word": "a" * 500_000,
    "open quote": '"' + 'a\\" ' * 100_000,
    "open braces": "{" * 100_000,
    "unclosed block": "table t {\n" + "a\n" * 20_000,
    "errors in a block": "table t { a = b c\n" * 3_000,
    "errors on every line": "$x\n" * 50_000,
    "errors in one line": "match " + "tls " * 20_000 + "reject\n",
    "undeclared names": "match for domain <a> reject\n" * 5_000,
    "digits": "smtp limit max-rcpt " + "9" * 500_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_large_inputs_are_read_in_seconds(name: str) -> None:
    start = time.monotonic()
    load(HUGE[name])
    assert time.monotonic() - start < 10


def test_macros_cannot_make_a_small_file_huge() -> None:
    start = time.monotonic()
    assert load('x = "' + "a" * 8_000 + '"\ntable t { ' + "$x " * 1_000 + "}\nmatch reject\n") is None
    assert time.monotonic() - start < 10
