"""Addresses out of header fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.cli.addresses import BadAddress, parse_addresses


@pytest.mark.parametrize(
    ("field", "addresses"),
    [
        ("a@x", ["a@x"]),
        (" a@x , b@y;c", ["a@x", "b@y", "c"]),
        ("Ann <a@x>, Bob\r\n <b@y>\n", ["a@x", "b@y"]),
        ('"Doe, <Jane>" <j@x>', ["j@x"]),
        ('"odd @ local"@x', ['"odd @ local"@x']),
        ("a@x (a comment, (nested) \\) ), b@y", ["a@x", "b@y"]),
        ("list: a@x, b@y;, c@z", ["a@x", "b@y", "c@z"]),
        ("undisclosed-recipients:;", []),
        ("<>", []),
        ("", []),
        ("a\\,b@x", ["a\\,b@x"]),
        ("<a@[IPv6:::1]>", ["a@[IPv6:::1]"]),
    ],
)
def test_addresses_are_found(field: str, addresses: list[str]) -> None:
    assert parse_addresses(field) == addresses


@pytest.mark.parametrize("field", ['"open', "(open", "a\\", "((x)"])
def test_what_never_ends_is_refused(field: str) -> None:
    with pytest.raises(BadAddress):
        parse_addresses(field)


@given(st.text(alphabet='ab@<>()",;:\\ \n', max_size=60))
def test_any_text_gives_addresses_without_white_space_outside_quotes_or_is_refused(field: str) -> None:
    try:
        found = parse_addresses(field)
    except BadAddress:
        return
    assert all(address and "\n" not in address.partition('"')[0].partition("\\")[0] for address in found)
