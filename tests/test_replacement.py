"""A file takes another's place whole and durably, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from pillarbox.replacement import Replacement


@pytest.fixture
def path(tmp_path: Path) -> Path:
    old = tmp_path / "file"
    old.write_bytes(b"old")
    return old


def replace(path: Path) -> None:
    with Replacement(str(path)) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"


def test_it_is_there_when_it_is_written_and_so_is_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    replace(path)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["file"]
    assert len(synced) == 2 and synced[1] == str(path.parent)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        replace(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_so_does_whatever_happens_while_it_is_written(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Replacement(str(path)) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]
