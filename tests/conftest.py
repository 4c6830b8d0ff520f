"""As root every worker of pytest moves into a sandbox (`tests/sandbox.py`) before it runs anything; otherwise the tests
that need one are skipped with the reason."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sandbox
from tests.system.server import Wiring

_refused = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Enter the sandbox, in the processes that run tests."""
    distributes = bool(getattr(config.option, "numprocesses", None)) and not os.environ.get("PYTEST_XDIST_WORKER")
    config.stash[_refused] = "needs root"
    if distributes or os.geteuid() != 0:
        return
    try:
        sandbox.enter()
        config.stash[_refused] = ""
    except sandbox.Refused as refused:
        config.stash[_refused] = str(refused)


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> None:
    """For tests that need the sandbox: skipped with the reason where there is none."""
    if reason := request.config.stash[_refused]:
        pytest.skip(reason)


@pytest.fixture(params=list(Wiring), ids=str)
def wiring(request: pytest.FixtureRequest) -> Wiring:
    """Both wirings; several processes only in the sandbox, where the users of the roles are."""
    chosen: Wiring = request.param
    if chosen is Wiring.MANY and (reason := request.config.stash[_refused]):
        pytest.skip(reason)
    return chosen


_numbers = itertools.count()


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder that every user may reach: pytest's own are closed to the roles' users."""
    if request.config.stash[_refused]:
        return tmp_path
    made = sandbox.WORK / f"test-{next(_numbers)}"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """For servers that live as long as the tests of a module: a folder that every user may reach.

    Its name is short: paths of unix sockets have room for 107 bytes.
    """
    base = sandbox.WORK if sandbox.WORK.exists() and os.geteuid() == 0 else None
    made = Path(tempfile.mkdtemp(prefix="pb-", dir=base))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def homes(machine: None) -> Iterator[None]:
    """Empty homes and system mailboxes, and empty again for the next: a `.forward` would lead its mail astray."""
    sandbox.clean_homes()
    yield
    sandbox.clean_homes()


@pytest.fixture(autouse=True)
def umask() -> None:
    """The usual umask, also after a test of code that sets its own: role users must reach what tests make."""
    os.umask(0o022)
