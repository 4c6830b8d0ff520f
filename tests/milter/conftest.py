"""A milter that follows a script and a bridge to it, shared by the tests of a module; each has a client of its own."""

from collections.abc import Iterator

import pytest

from tests.milter.driver import Bridge, Client
from tests.milter.scripted import ScriptedMilter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedMilter, Bridge]]:
    """Both."""
    with ScriptedMilter(tmp_path_factory.mktemp("milter")) as milter, Bridge(milter.address) as bridge:
        yield milter, bridge


@pytest.fixture
def milter(shared: tuple[ScriptedMilter, Bridge]) -> ScriptedMilter:
    """Says "continue" to all, until the test changes its `answers`."""
    milter, _ = shared
    milter.forget()
    return milter


@pytest.fixture
def client(milter: ScriptedMilter, shared: tuple[ScriptedMilter, Bridge]) -> Iterator[Client]:
    """A client that is not connected yet."""
    _, bridge = shared
    before = bridge.log()
    made = bridge.session()
    yield made
    made.quit()
    assert bridge.log().startswith(before)
