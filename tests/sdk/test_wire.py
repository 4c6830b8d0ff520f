"""The lines of smtpd-tables(7), protocol 0.1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.sdk.wire import (
    Lines,
    Operation,
    ProtocolError,
    Request,
    TableError,
    encode,
    failed,
    found,
    join_value,
    parse_request,
)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("table|0.1|1713795082.354255|t|lookup|alias|b72508d|op", Request(Operation.LOOKUP, "b72508d", "alias", "op")),
        ("table|0.1|1.2|t|check|netaddr|e586|192.168.0.7", Request(Operation.CHECK, "e586", "netaddr", "192.168.0.7")),
        ("table|0.1|1.2|devs|check|auth|1|bob:a|b|", Request(Operation.CHECK, "1", "auth", "bob:a|b|")),
        ("table|0.1|1.2|devs|lookup|alias|1|", Request(Operation.LOOKUP, "1", "alias", "")),
        ("table|0.1|1.2|devs|fetch|source|189bd3ee", Request(Operation.FETCH, "189bd3ee", "source")),
        ("table|0.1|1.2|devs|update|478ff0d2", Request(Operation.UPDATE, "478ff0d2")),
        ("table|0.1|1.2|devs|lookup|newer|1|k", Request(Operation.LOOKUP, "1", "newer", "k")),
    ],
)  # fmt: skip
def test_each_operation_is_read(line: str, request_: Request) -> None:
    assert parse_request(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        "", "table", "report|0.1|1|t|update|1", "table|0.2|1|t|update|1", "table|0.1|1|t|update",
        "table|0.1|1|t|burn|1", "table|0.1|1|t|lookup|alias|1", "table|0.1|1|t|fetch|source",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        parse_request(line)


@pytest.mark.parametrize(
    ("service", "value", "text"),
    [
        ("alias", "alice, bob", "alice, bob"),
        ("alias", ["alice", "|/bin/cat -u"], "alice, |/bin/cat -u"),
        ("mailaddrmap", ["a@example.org", "@example.net"], "a@example.org, @example.net"),
        ("userinfo", (1000, 1000, "/home/op"), "1000:1000:/home/op"),
        ("userinfo", (1000, 1000, ""), "1000:1000:"),
        ("credentials", ("alice", "$6$a:b$c"), "alice:$6$a:b$c"),
        ("domain", ["example.org"], "example.org"),
    ],
)
def test_the_parts_of_a_value_are_joined_as_the_service_wants(service: str, value: str, text: str) -> None:
    assert join_value(service, value) == text


@pytest.mark.parametrize(
    ("service", "value"),
    [
        ("alias", ""), ("alias", "a\nb"), ("alias", "a\0b"), ("alias", ["a\r", "b"]), ("userinfo", (1, 2)),
        ("userinfo", ("1:2", 3, "/")), ("credentials", ("", "hash")), ("domain", ["a", "b"]),
    ],
)  # fmt: skip
def test_a_value_that_the_server_could_not_read_is_an_error(service: str, value: str) -> None:
    with pytest.raises(TableError):
        join_value(service, value)


def test_an_error_is_one_short_line() -> None:
    request = Request(Operation.LOOKUP, "1", "alias", "k")
    assert failed(request, "first\nsecond\r\n") == "lookup-result|1|error|first second"
    assert failed(request, "") == "lookup-result|1|error|unknown"
    assert len(failed(request, "x" * 10_000)) < 600


def test_a_line_over_the_limit_keeps_its_start_and_the_next_one_is_whole() -> None:
    assert list(Lines(10).feed(b"0123456789abc\nshort\n0123456789\n")) == [
        ("0123456789", True),
        ("short", False),
        ("0123456789", False),
    ]


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=5), st.integers(1, 7))
def test_lines_survive_any_way_they_are_cut_and_any_bytes(lines: list[bytes], size: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    reader = Lines()
    got = [line for n in range(0, len(data), size) for line, _ in reader.feed(data[n : n + size])]
    assert encode(got) == data


@given(st.text())
def test_no_line_makes_the_parser_raise_anything_but_its_own_error(text: str) -> None:
    for line in (text, f"table|0.1|1|t|{text}"):
        try:
            request = parse_request(line)
        except ProtocolError:
            continue
        assert found(request).startswith(f"{request.operation}-result|")
