"""The protocol core under what nobody meant: recorded dialogues in the wrong place, arbitrary bytes, mutations."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

SECONDS = 4  # of atheris, each target
_TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_recorded_dialogues_keep_every_promise(name: str) -> None:
    found = seeds()
    assert len(found) > 200
    for seed in found:
        if len(seed) < 3000:
            TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from(seeds()).map(lambda seed: seed[:300]), max_size=6))
def test_any_bytes_keep_every_promise(name: str, pieces: list[bytes]) -> None:
    TARGETS[name](b"".join(pieces))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="there is no wheel of atheris for this machine")
@pytest.mark.parametrize("name", TARGETS)
def test_mutations_that_reach_new_code_keep_every_promise(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.fuzz", name, str(SECONDS), str(tmp_path)]
    done = subprocess.run(argv, cwd=_TOP, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
