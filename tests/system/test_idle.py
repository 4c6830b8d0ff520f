"""Many clients that are connected and say nothing."""

from pathlib import Path

import pytest

from bench.idle import TooFew, measure

CONNECTIONS, MEGABYTES = 10_000, 400


def test_ten_thousand_idle_connections_are_held_by_one_dispatcher_within_400_mb(folder: Path, machine: None) -> None:
    try:
        before, after = measure(folder, CONNECTIONS)
    except TooFew as too_few:
        pytest.skip(str(too_few))
    print(f"{before:.0f} MB, with {CONNECTIONS} connections {after:.0f} MB")
    assert after < MEGABYTES
