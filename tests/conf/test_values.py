"""Times, sizes, names."""

import pytest

from pillarbox.conf.values import is_host_name, parse_delay, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("2m", 120), ("3h", 10800), ("24855d", 24855 * 86400), ("+5s", 5)]
)
def test_delays(text: str, seconds: int) -> None:
    assert parse_delay(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "0s", "-1s", "24856d", "1w", "1 s", "1S", "1.5h", "9" * 5000 + "s", "\u0661s"]
)
def test_what_is_no_delay(text: str) -> None:
    with pytest.raises(ValueError):
        parse_delay(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("10K", 10240), ("1.5k", 1536), ("10B", 10), ("7E", 7 << 60), (".5M", 1 << 19), ("", 0)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["huge", "-1", "-1K", "10KB", "8E", "1.5.5K", "9" * 5000, "1X"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(
    ("name", "good"), [("mx1.example.org", True), ("a_b.c", True), ("-a", False), ("a b", False), ("é", False)]
)
def test_host_names(name: str, good: bool) -> None:
    assert is_host_name(name) is good
