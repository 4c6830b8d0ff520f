"""The lines of smtpd-tables(7): what is asked, and what answers may look like."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.errors import TempFail
from pillarbox.tables.protocol import MAX_KEY, MAX_LINE, MAX_REGISTRATIONS, Answer, Nonsense, Op, TableProtocol
from pillarbox.tables.services import Service

NOW = 1713795082.354255


def registered(*services):
    protocol = TableProtocol(table="devs")
    lines = [f"register|{s}" for s in services or ["alias"]] + ["register|ready"]
    assert list(protocol.receive("".join(f"{line}\n" for line in lines).encode())) == []
    return protocol


def ask(protocol, op=Op.LOOKUP, service=Service.ALIAS, key="op", id_="0b72508d"):
    return protocol.request(op, service, key, id_=id_, now=NOW)


def answers(protocol, *lines):
    return list(protocol.receive("".join(f"{line}\n" for line in lines).encode()))


def test_the_handshake_says_who_asks_and_for_which_table():
    assert TableProtocol(table="devs").handshake() == (
        b"config|smtpd-version|7.8.0\nconfig|protocol|0.1\nconfig|tablename|devs\nconfig|ready\n"
    )


def test_services_are_known_once_the_program_is_ready():
    protocol = TableProtocol(table="t")
    assert list(protocol.receive(b"register|alias\nregister|auth\nregister|re")) == []
    assert protocol.services is None
    assert list(protocol.receive(b"ady\n")) == []
    assert protocol.services == {Service.ALIAS, Service.AUTH}


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["register|ready"], "registers no service"),
        (["register|frob", "register|ready"], 'registers an unknown service: "frob"'),
        (["register|none"], 'registers an unknown service: "none"'),
        (["hello"], "registers with a line that is none: a line of 5 bytes that begins with no word of the protocol"),
        ([""], "registers with a line that is none"),
        (["register"], "registers with a line that is none"),
        (["register|alias"] * (MAX_REGISTRATIONS + 1), "does not come to an end"),
    ],
)
def test_handshakes_that_are_nonsense(lines, what):
    with pytest.raises(Nonsense, match=what):
        answers(TableProtocol(table="t"), *lines)


@pytest.mark.parametrize(
    ("op", "service", "key", "line"),
    [
        (Op.LOOKUP, Service.ALIAS, "op", "table|0.1|1713795082.354255|devs|lookup|alias|0b72508d|op"),
        (Op.CHECK, Service.AUTH, "a:b|c d", "table|0.1|1713795082.354255|devs|check|auth|0b72508d|a:b|c d"),
        (Op.CHECK, Service.STRING, "", "table|0.1|1713795082.354255|devs|check|string|0b72508d|"),
        (Op.FETCH, Service.SOURCE, None, "table|0.1|1713795082.354255|devs|fetch|source|0b72508d"),
        (Op.UPDATE, None, None, "table|0.1|1713795082.354255|devs|update|0b72508d"),
    ],
)
def test_requests(op, service, key, line):
    assert ask(registered(), op, service, key) == line.encode() + b"\n"


def test_bytes_that_are_no_utf_8_pass_both_ways():
    protocol = registered()
    assert ask(protocol, key="caf\udce9").endswith(b"|caf\xe9\n")
    assert list(protocol.receive(b"lookup-result|0b72508d|found|\xe9\n")) == [Answer("0b72508d", True, "\udce9")]


@pytest.mark.parametrize("key", ["two\nlines", "return\r", "nul\0", "x" * (MAX_KEY + 1), "é" * 512])
def test_a_key_that_fits_no_line_is_a_temporary_failure_and_is_not_shown(key):
    protocol = registered()
    with pytest.raises(TempFail) as failure:
        ask(protocol, key=key)
    assert key[:3] not in str(failure.value)
    with pytest.raises(Nonsense):  # it was not asked
        answers(protocol, "lookup-result|0b72508d|not-found")


@pytest.mark.parametrize(
    ("op", "line", "found", "text"),
    [
        (Op.LOOKUP, "lookup-result|0b72508d|found|a, b|c", True, "a, b|c"),
        (Op.LOOKUP, "lookup-result|0b72508d|not-found", False, ""),
        (Op.LOOKUP, "lookup-result|0b72508d|error", None, "the program reports an error"),
        (Op.LOOKUP, "lookup-result|0b72508d|error|no database|at all", None, "no database|at all"),
        (Op.LOOKUP, "lookup-result|0b72508d|found|", None, "the program found an empty value"),
        (Op.LOOKUP, "lookup-result|0b72508d|found|x\r", True, "x"),
        (Op.CHECK, "check-result|0b72508d|found", True, ""),
        (Op.CHECK, "check-result|0b72508d|not-found", False, ""),
        (Op.CHECK, "check-result|0b72508d|error|x", None, "x"),
        (Op.FETCH, "fetch-result|0b72508d|found|192.0.2.1", True, "192.0.2.1"),
        (Op.FETCH, "lookup-result|0b72508d|found|192.0.2.1", True, "192.0.2.1"),
        (Op.UPDATE, "update-result|0b72508d|ok", True, ""),
        (Op.UPDATE, "update-result|0b72508d|error|failed to connect", None, "failed to connect"),
    ],
)
def test_answers(op, line, found, text):
    protocol = registered()
    ask(protocol, op)
    assert answers(protocol, line) == [Answer("0b72508d", found, text)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "garbage",
        "lookup-result",
        "lookup-result|0b72508d",
        "lookup-result|00000000|found|x",
        "check-result|0b72508d|found",
        "fetch-result|0b72508d|found|x",
        "update-result|0b72508d|ok",
        "lookup-result|0b72508d|ok",
        "lookup-result|0b72508d|maybe",
        "register|alias",
    ],
)
def test_answers_that_are_nonsense(line):
    protocol = registered()
    ask(protocol)
    with pytest.raises(Nonsense):
        answers(protocol, line)


def test_an_answer_given_twice_is_nonsense():
    protocol = registered()
    ask(protocol)
    found = protocol.receive(b"lookup-result|0b72508d|not-found\n" * 2)
    assert next(found).found is False
    with pytest.raises(Nonsense, match="what was not asked"):
        next(found)


@pytest.mark.parametrize(
    "line",
    [
        "lookup-result|1|found|alice:secret",
        "lookup-result|0b72508d|alice:secret",
        "lookup-result|alice:secret",
        "alice:secret",
        "secret|0b72508d|found|x",
    ],
)
def test_no_value_is_shown_in_what_is_said_about_nonsense(line):
    protocol = registered()
    ask(protocol)
    with pytest.raises(Nonsense) as nonsense:
        answers(protocol, line)
    assert "secret" not in str(nonsense.value)
    assert ("lookup-result" in str(nonsense.value)) == line.startswith("lookup-result")


def test_answers_come_in_any_order():
    protocol = registered()
    for number in range(5):
        ask(protocol, id_=f"{number:08x}", key=f"k{number}")
    lines = [f"lookup-result|{number:08x}|found|v{number}" for number in (3, 0, 4, 1, 2)]
    assert [a.text for a in answers(protocol, *lines)] == ["v3", "v0", "v4", "v1", "v2"]


def test_a_line_without_end_is_nonsense_past_its_limit():
    protocol = registered()
    for _ in range(MAX_LINE // 65536):
        assert list(protocol.receive(b"x" * 65536)) == []
    with pytest.raises(Nonsense, match="a line of more than"):
        list(protocol.receive(b"x"))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_how_answers_are_cut_into_parts_makes_no_difference(sizes):
    protocol = registered()
    for number in range(8):
        ask(protocol, id_=f"{number:08x}")
    data = b"".join(b"lookup-result|%08x|found|value %d\n" % (n, n) for n in range(8))
    found, position = [], 0
    for size in sizes * (len(data) // sum(sizes) + 1):
        found += protocol.receive(data[position : position + size])
        position += size
    assert [a.text for a in found] == [f"value {n}" for n in range(8)]


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_nonsense(data):
    protocol = registered()
    ask(protocol)
    with contextlib.suppress(Nonsense):
        list(protocol.receive(data))
