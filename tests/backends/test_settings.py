"""The files of table programs, as the reference's programs read them."""

from pathlib import Path

import pytest

from pillarbox.backends.settings import Format, Settings, read_settings
from pillarbox.sdk.table import TableError

STRICT = Format(("host", "query_alias", "url", "number", "last"))
LENIENT = Format(STRICT.keys, lenient=True, last=("last",))


def read(tmp_path: Path, text: str, form: Format = STRICT) -> Settings:
    """The settings of a file with this text."""
    file = tmp_path / "conf"
    file.write_bytes(text.encode(errors="surrogateescape"))
    return read_settings(str(file), form)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("host db.example.com", "host", "db.example.com"),
        ("  host\t\t db.example.com \r", "host", "db.example.com"),
        ("url: ldap://x:389/", "url", "ldap://x:389/"),
        ("url:ldap://x", "url", "ldap://x"),
        ("url : ldap://x", "url", "ldap://x"),
        ("host :x", "host", ":x"),
        ("host unix:/path", "host", "unix:/path"),
        ("query_alias SELECT a WHERE k='a: b' # kept", "query_alias", "SELECT a WHERE k='a: b' # kept"),
        ("host caf\udce9", "host", "caf\udce9"),
    ],
)  # fmt: skip
def test_a_line_is_a_key_and_a_value(tmp_path: Path, line: str, key: str, value: str) -> None:
    assert read(tmp_path, f"# comment\n\n{line}\n").get(key) == value


@pytest.mark.parametrize("text", ["host\n", "host:\n", "host \n", "host a\nhost b\n"])
def test_a_key_without_a_value_or_given_twice_is_refused_or_warned_of(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TableError, match=r'conf:[12]: "host"'):
        read(tmp_path, text)
    assert read(tmp_path, text, LENIENT).get("host") in (None, "a")
    assert "conf:" in caplog.text


def test_of_some_keys_the_last_value_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "last 1\nlast 2\nnumber 1\nnumber 2\n", LENIENT).get("last") == "2"


def test_an_unknown_key_is_a_warning_with_the_nearest_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "query_alais x\nzzz x\n")
    assert 'conf:1: unknown key "query_alais"; did you mean "query_alias"?' in caplog.text
    assert 'conf:2: unknown key "zzz"\n' in caplog.text


def test_numbers_are_checked(tmp_path: Path) -> None:
    assert read(tmp_path, "number 0\n").number("number", 5) == 0
    assert read(tmp_path, "").number("number", 5) == 5
    for text in ("-1", "1x", "2147483648", "\u0661"):
        with pytest.raises(TableError, match="number must be a number from 0 to 2147483647"):
            read(tmp_path, f"number {text}\n").number("number", 5)
