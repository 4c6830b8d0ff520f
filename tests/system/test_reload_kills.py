"""Roles that die in the middle of a reload: all go by the old configuration afterwards, or all by the new one."""

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.load import Sender, Tally
from tests.system.reloading import Dialogue, Site, site
from tests.system.server import Result, Wiring, kill, wait_for
from tests.system.test_crash import role

pytestmark = pytest.mark.usefixtures("machine")

ROLES = ("lookup", "queue", "control", "dispatcher")
OLD, NEW = "mail.bench.test", "new.bench.test"


@contextmanager
def two_sites(folder: Path) -> Iterator[Site]:
    """With several processes, and mail for old.example before, for new.example after the reload."""
    with site(folder, Wiring.MANY, domains=("bench.test", "old.example")) as it:
        yield it


def change(it: Site) -> None:
    it.name, it.box, it.domains = NEW, "B", ("bench.test", "new.example")


def until(it: Site, condition: Callable[[], object], seconds: float = 20.0) -> None:
    assert wait_for(condition, seconds, every=0.05), it.server.log()[-3000:]


def says(it: Site, text: str, since: int = 0) -> bool:
    return text in it.server.log()[since:]


def attempt(it: Site, subject: str, rcpt: str) -> tuple[str, str]:
    """(the name in the greeting, the last reply) of a new session that sends one message."""
    client = Dialogue(it.port)
    try:
        client.say("EHLO client")
        return client.greeting.split()[1], client.message(subject, rcpt)
    finally:
        client.close()


def uses(it: Site, name: str) -> None:
    """Every role goes by the configuration of this name: dispatchers greet, lookup expands, queue delivers."""
    known, unknown, box = ("new.example", "old.example", "B") if name == NEW else ("old.example", "new.example", "A")
    until(it, lambda: len(role(it.server, "dispatcher")) == it.dispatchers)
    until(it, lambda: it.server.ctl("show", "status").exit == 0)
    until(it, lambda: _try(lambda: attempt(it, "9.9", f"x@{known}")[1][:3]) == "250")  # whoever starts again is there
    for number in range(10):  # whichever dispatcher takes it
        subject = f"{int(name == NEW)}.{number}"
        assert attempt(it, subject, f"x@{known}")[0] == name
        assert attempt(it, subject, f"x@{unknown}") == (name, f"550 Invalid recipient: <x@{unknown}>")
        until(it, lambda s=subject: any(s in f.read_text() for f in it.mail.glob(f"{box}/new/*")))  # type: ignore[misc]


def _try(what: Callable[[], str]) -> str:
    try:
        return what()
    except (OSError, IndexError):
        return ""


class Frozen:
    """A reload that waits for one dispatcher, which is stopped: all others are prepared."""

    def __init__(self, it: Site, pool: ThreadPoolExecutor) -> None:
        self.it = it
        self.last = role(it.server, "dispatcher")[-1]
        kill(self.last, signal.SIGSTOP)
        change(it)
        it.write()
        self.answer: Future[Result] = pool.submit(it.server.ctl, "reload")
        until(it, lambda: it.server.log().count(": prepare 1\n") == 4)  # lookup, queue, control, a dispatcher

    def all_prepared(self) -> None:
        """All are, and the parent, stopped, does not know it yet."""
        assert self.it.server.process is not None
        self.it.server.process.send_signal(signal.SIGSTOP)
        kill(self.last, signal.SIGCONT)
        until(self.it, lambda: self.it.server.log().count(": prepare 1\n") == 5)

    def decide(self) -> None:
        """The parent goes on."""
        assert self.it.server.process is not None
        self.it.server.process.send_signal(signal.SIGCONT)

    def victim(self, name: str) -> int:
        """A process of a role, not the one that was stopped."""
        return next(pid for pid in role(self.it.server, name) if pid != self.last)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as it:
        yield it


@pytest.mark.parametrize("name", ROLES)
def test_a_role_that_dies_before_all_are_prepared_ends_the_reload_everywhere(
    folder: Path, pool: ThreadPoolExecutor, name: str
) -> None:
    with two_sites(folder) as it:
        frozen = Frozen(it, pool)
        kill(frozen.victim(name), signal.SIGKILL)
        until(it, lambda: says(it, "reload: nothing has changed, configuration 0 stays in use"))
        kill(frozen.last, signal.SIGCONT)
        if name != "control":  # which has the answer
            assert frozen.answer.result().exit == 1
        assert says(it, "killed by SIGKILL; starting it again")
        uses(it, OLD)
        until(it, lambda: it.reload().exit == 0)
        uses(it, NEW)


@pytest.mark.parametrize("name", ROLES)
def test_a_role_that_dies_before_it_has_taken_over_comes_back_with_what_was_decided(
    folder: Path, pool: ThreadPoolExecutor, name: str
) -> None:
    with two_sites(folder) as it:
        frozen = Frozen(it, pool)
        frozen.all_prepared()
        victim = frozen.victim(name)
        kill(victim, signal.SIGSTOP)
        frozen.decide()
        until(it, lambda: it.server.log().count(": commit 1\n") == 4)
        kill(victim, signal.SIGKILL)
        if name != "control":
            assert frozen.answer.result().exit == 0
        uses(it, NEW)


@pytest.mark.parametrize("name", ROLES)
def test_a_role_that_dies_as_the_parent_decides_is_where_all_others_are(
    folder: Path, pool: ThreadPoolExecutor, name: str
) -> None:
    with two_sites(folder) as it:
        frozen = Frozen(it, pool)
        frozen.all_prepared()
        kill(frozen.victim(name), signal.SIGKILL)
        frozen.decide()
        until(it, lambda: says(it, "in use as configuration 1\n") or says(it, "configuration 0 stays in use"))
        uses(it, NEW if says(it, "in use as configuration 1\n") else OLD)


def test_a_role_that_does_not_take_over_is_started_again(folder: Path, pool: ThreadPoolExecutor) -> None:
    with two_sites(folder) as it:
        frozen = Frozen(it, pool)
        frozen.all_prepared()
        kill(frozen.victim("lookup"), signal.SIGSTOP)
        frozen.decide()
        assert frozen.answer.result().exit == 0
        assert says(it, "lookup did not take over configuration 1")
        uses(it, NEW)


def test_roles_that_start_again_know_the_rules_of_sessions_that_are_older(folder: Path) -> None:
    with two_sites(folder) as it:
        old = Dialogue(it.port)
        old.say("EHLO client")
        change(it)
        it.must_reload()
        for name in ("lookup", "queue"):
            (before,) = role(it.server, name)
            kill(before, signal.SIGKILL)
            until(it, lambda n=name, b=before: role(it.server, n) not in ([], [b]))  # type: ignore[misc]
            until(it, lambda: old.message("1.1", "x@old.example").startswith("250 "))
            assert old.message("1.2", "x@new.example").startswith("550 ")
        uses(it, NEW)
        old.close()
        until(it, lambda: says(it, "configuration 0 is forgotten"))


def test_nothing_is_lost_while_roles_are_killed_during_reloads(folder: Path) -> None:
    with two_sites(folder) as it:
        tally, stop = Tally(), asyncio.Event()

        def hurt() -> None:
            """Reload again and again; a random process dies at a random moment of each."""
            end = time.monotonic() + 20
            while time.monotonic() < end:
                with ThreadPoolExecutor(1) as pool:
                    it.box = "B" if it.box == "A" else "A"
                    it.doors = not it.doors
                    it.write()
                    answer = pool.submit(it.server.ctl, "reload")
                    time.sleep(random.uniform(0, 0.5))
                    kill(random.choice(it.server.pids()[1:]), signal.SIGKILL)
                    answer.result()

        async def load() -> None:
            senders = [Sender(tally, n, it.port, ("local@bench.test",), again=True) for n in range(5)]
            tasks = [asyncio.create_task(sender.run(stop)) for sender in senders]
            await asyncio.to_thread(hurt)
            stop.set()
            await asyncio.gather(*tasks)

        asyncio.run(load())
        change(it)
        until(it, lambda: it.reload().exit == 0, 60)
        assert len(tally.acknowledged) > 20
        uses(it, NEW)
        # What died in several hands is left alone for minutes, unless the server starts anew.
        it.server.stop()
        it.server.start()
        until(it, lambda: it.server.ctl("schedule", "all") and tally.acknowledged <= it.delivered().keys(), 60)
