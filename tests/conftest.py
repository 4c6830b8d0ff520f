"""As root every worker of pytest moves into a sandbox (`tests/sandbox.py`) before it runs anything; otherwise the tests
that need one are skipped with the reason."""

import os

import pytest

from tests import sandbox

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
