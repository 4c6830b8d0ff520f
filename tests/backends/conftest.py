"""Places for databases, which live as long as the tests of a module."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sandbox


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user may reach, with a short name: paths of unix sockets have room for 107 bytes."""
    base = sandbox.WORK if sandbox.WORK.exists() and os.geteuid() == 0 else None
    made = Path(tempfile.mkdtemp(prefix="pb-", dir=base))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)
