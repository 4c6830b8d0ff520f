"""Processors as a dispatcher sees them: lives, restarts of the filter role, what is dropped, what waits."""

import asyncio
import io

import msgspec
import pytest

from pillarbox.conf.model import Config, EventReport, Filter, Listener, Proc, Relay
from pillarbox.errors import TempFail
from pillarbox.filters import processors as module
from pillarbox.filters.outbox import IN_FLIGHT, LINES_MOST, MOST, ROOM, Outbox, Unanswered
from pillarbox.filters.processors import Processors
from pillarbox.log import Log
from pillarbox.roles.filters import EVENTS, Decision, Processor, Question, Report, Result, Said

from .memory import Background, MemoryFilters, Played, make_processors


def configuration(*names: str, reports: tuple[str, ...] = (), generation: int = 0) -> Config:
    return Config(
        hostname="x",
        generation=generation,
        listeners=(Listener(id=1, filter=names[0] if names else ""),),
        procs={name: Proc(name=name, command=name) for name in (*names, *reports)},
        filters={name: Filter(name=name, kind="proc-exec", proc=name) for name in names},
        reports=tuple(EventReport(direction="smtp-in", proc=name) for name in reports),
    )


class Place:
    """A dispatcher's processors, with the filter role in memory."""

    def __init__(self, filters: MemoryFilters) -> None:
        self.filters = filters
        self.text = io.StringIO()
        self.background = Background()
        self.processors: Processors = make_processors(filters, Log(self.text), self.background)

    @property
    def log(self) -> str:
        return self.text.getvalue()

    async def settle(self) -> None:
        """Let everything that is under way happen."""
        for _ in range(20):
            await asyncio.sleep(0)

    def box(self, number: int = 1) -> Outbox:
        return self.processors._boxes[number]


def play(scenario, filters: MemoryFilters, *configs: Config) -> Place:
    async def inside() -> Place:
        place = Place(filters)
        for config in configs:
            place.processors.add(config)
        await place.settle()
        async with asyncio.timeout(10):
            await scenario(place)
        place.background.stop()
        return place

    return asyncio.run(inside())


def filtered(**more) -> tuple[MemoryFilters, Played]:
    filters = MemoryFilters()
    return filters, filters.add("f", phases="noop", events="link-connect tx-mail", **more)


def event(name: str = "tx-mail", text: str = "x") -> Report:
    return Report("smtp-in", name, 1, 0.0, text)


# --- one processor ----------------------------------------------------------------------------------------------------


def test_what_is_told_in_one_turn_is_one_call_and_keeps_its_order():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        before = filters.tells
        for number in range(10):
            place.box().report(event(text=str(number)))
        await place.box().ask("noop", 1, 2, "after")
        assert filters.tells == before + 1

    play(scenario, filters, configuration("f"))
    assert [e.split()[1] for e in played.events] == [str(n) for n in range(10)]
    assert isinstance(played.told[-1], Question)


def test_calls_under_way_are_few():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        played.reading.clear()
        for _ in range(10):
            place.box().report(event())
            place.box()._flush()
            await place.settle()
        assert filters.tells == IN_FLIGHT
        played.reading.set()
        await place.processors.told()
        assert len(played.events) == 10

    play(scenario, filters, configuration("f"))


def test_events_for_one_that_only_listens_and_does_not_read_are_dropped_and_counted():
    filters = MemoryFilters()
    played = filters.add("log", events="tx-mail")

    async def scenario(place: Place) -> None:
        played.reading.clear()
        sent = 0
        while "events for it are dropped" not in place.log:
            place.box().report(event(text="x" * 10_000))
            sent += 1
            await asyncio.sleep(0)
        assert ROOM <= place.box()._size <= ROOM + 20_000
        for _ in range(5):
            place.box().report(event())
        played.reading.set()
        await place.processors.told()
        assert "processor log: 6 events were dropped because it does not read" in place.log
        assert len(played.events) == sent - 1

    play(scenario, filters, configuration(reports=("log",)))


def test_events_of_a_filter_are_kept_longer_because_sessions_wait():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        played.reading.clear()
        for _ in range(200):
            place.box().report(event(text="x" * 10_000))
        assert place.box().full and "dropped" not in place.log
        for _ in range(1700):
            place.box().report(event(text="x" * 10_000))
        assert place.box()._size <= MOST + 20_000 and "dropped" in place.log
        assert LINES_MOST > MOST > ROOM
        played.reading.set()
        await place.processors.told()

    play(scenario, filters, configuration("f"))


def test_a_question_waits_for_room_no_longer_than_for_its_answer():
    filters, played = filtered(timeout=0.05)

    async def scenario(place: Place) -> None:
        played.reading.clear()
        for _ in range(200):
            place.box().report(event(text="x" * 10_000))
        with pytest.raises(Unanswered, match=r"no answer within 0\.05 s"):
            await place.box().ask("noop", 1, 2, "")

    play(scenario, filters, configuration("f"))


def test_the_end_of_a_life_fails_what_waits_at_once():
    filters, played = filtered()
    played.answer = lambda _: []

    async def scenario(place: Place) -> None:
        asked = asyncio.ensure_future(place.box().ask("noop", 1, 2, ""))
        await place.settle()
        await filters.set(played, life=0, why="it was killed")
        with pytest.raises(Unanswered, match="it was killed"):
            await asked
        with pytest.raises(Unanswered, match="it does not run: it was killed"):
            await place.box().ask("noop", 1, 2, "")

    play(scenario, filters, configuration("f"))


def test_a_call_that_fails_fails_its_questions():
    filters, _ = filtered()

    async def scenario(place: Place) -> None:
        filters.down = True
        with pytest.raises(Unanswered, match="that life is over"):
            await place.box().ask("noop", 1, 2, "")

    play(scenario, filters, configuration("f"))


def test_an_answer_of_another_life_or_processor_is_nobodys():
    filters, played = filtered()
    played.answer = lambda _: []

    async def scenario(place: Place) -> None:
        asked = asyncio.ensure_future(place.box().ask("noop", 1, 2, ""))
        await place.settle()
        answer = Result(1, 2, Decision.REJECT, "550 no")
        await place.processors.answered(1, 99, [answer])
        await place.processors.answered(7, 1, [answer])
        await place.processors.answered(1, 1, [Result(1, 3, Decision.REJECT, "550 no"), Result(8, 2, Decision.JUNK)])
        assert not asked.done()
        await filters.say(played, Result(1, 2, Decision.PROCEED))
        assert (await asked).decision is Decision.PROCEED

    play(scenario, filters, configuration("f"))


# --- lives, generations, and the filter role -------------------------------------------------------------------------


def test_sessions_introduce_themselves_to_the_next_life_as_they_were():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        reports = place.processors.reports(0, "smtp-in", "f", 1)
        assert reports is not None
        reports.link_connect("a.example", "pass", "192.0.2.1:1", "192.0.2.2:25")
        reports.link_greeting("mail.example")  # which it has not registered
        reports.tx_mail(1, "ok", "a@b")
        await place.processors.told()
        played.told.clear()
        await filters.set(played, life=0)
        reports.tx_mail(2, "ok", "lost@b")
        await filters.set(played, life=2)
        reports.tx_mail(3, "ok", "c@d")
        await place.processors.told()
        assert played.events == [
            "link-connect a.example|pass|192.0.2.1:1|192.0.2.2:25",
            "tx-mail 00000003|ok|c@d",
        ]
        assert "processor f: 1 events were dropped while it did not run" in place.log
        reports.link_disconnect()
        await place.processors.told()
        played.told.clear()
        await filters.set(played, life=3)
        await place.processors.told()
        assert not played.told  # a session that is over is nobody

    play(scenario, filters, configuration("f"))


def test_what_a_new_life_registers_counts_for_sessions_that_are_there():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        path = place.processors.path(0, "f")
        assert path.steps("noop") and not path.steps("quit")
        await filters.set(played, life=2, phases=frozenset(("quit",)), events=frozenset(("smtp-in tx-rcpt",)))
        assert path.steps("quit") and not path.steps("noop")
        assert set(path.listeners("smtp-in")) == {"tx-rcpt", "link-disconnect"}

    play(scenario, filters, configuration("f"))


def test_a_filter_role_that_is_restarted_is_joined_again():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        reports = place.processors.reports(0, "smtp-in", "f", 1)
        assert reports is not None
        reports.link_connect("a.example", "pass", "192.0.2.1:1", "192.0.2.2:25")
        await place.processors.told()
        old = place.box()
        filters.down = True
        place.processors.lost()
        with pytest.raises(Unanswered, match="the filter role was restarted"):
            await old.ask("noop", 1, 2, "")
        assert not place.processors.path(0, "f").unknown()  # new sessions do not wait for it
        filters.down = False
        played.told.clear()
        place.processors.attached()
        await place.settle()
        await place.processors.told()
        assert played.events == ["link-connect a.example|pass|192.0.2.1:1|192.0.2.2:25"]
        assert (await place.box().ask("noop", 1, 2, "")).decision is Decision.PROCEED
        assert place.processors.path(0, "f").steps("noop")[0].box is place.box() is not old

    play(scenario, filters, configuration("f"))


def test_one_that_does_not_register_with_the_next_filter_role_is_not_left_out():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        path = place.processors.path(0, "f")
        place.processors.lost()
        played.processor = Processor(number=1, name="f", failed=True, why="it ended")
        place.processors.attached()
        await place.settle()
        (step,) = path.steps("noop")
        assert step.box is place.box()
        with pytest.raises(Unanswered, match="it ended"):
            await place.box().ask("noop", 1, 2, "")
        await filters.set(played, why="it is being started", failed=False)
        assert path.steps("noop") and path.events("smtp-in", "f") == {"link-connect", "tx-mail", "link-disconnect"}
        await filters.set(played, life=2, known=True, phases=frozenset(("rset",)), events=frozenset())
        assert path.steps("rset") and not path.steps("noop")

    play(scenario, filters, configuration("f"))


def test_who_cannot_join_tries_again(monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.001)
    filters, _ = filtered()
    filters.down = True

    async def scenario(place: Place) -> None:
        path = place.processors.path(0, "f")
        assert path.unknown() == ["f"]
        waiting = asyncio.ensure_future(place.processors.registered(path))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        filters.down = False
        assert await waiting and not path.unknown()

    play(scenario, filters, configuration("f"))


def test_a_change_that_overtakes_the_answer_to_join_counts():
    filters, played = filtered()
    filters.late = asyncio.Event()

    async def scenario(place: Place) -> None:
        assert filters.late is not None
        await filters.set(played, life=5)
        played.processor = Processor(number=1, name="f", life=4, known=True)
        filters.late.set()
        await place.settle()
        assert place.box().processor.life == 5

    play(scenario, filters, configuration("f"))


def test_configurations_share_the_processors_that_the_filter_role_shares():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        place.processors.add(configuration("f", generation=1))
        await place.settle()
        first, second = place.processors.path(0, "f"), place.processors.path(1, "f")
        assert first.steps("noop")[0].box is second.steps("noop")[0].box
        place.processors.forget(0)
        assert place.processors.reports(0, "smtp-in", "f", 1) is None
        assert (await place.box().ask("noop", 1, 2, "")).decision is Decision.PROCEED
        place.processors.forget(1)
        assert not place.processors._boxes

    play(scenario, filters, configuration("f"))
    assert played.questions


def test_a_configuration_without_processors_joins_nobody():
    filters = MemoryFilters()

    async def scenario(place: Place) -> None:
        assert place.processors.reports(0, "smtp-in", "", 1) is None

    play(scenario, filters, configuration())
    assert not filters.joined


def test_what_a_processor_reports_is_told_to_all_who_listen_to_that_session():
    filters, played = filtered()
    listener = filters.add("log", events="filter-report")

    async def scenario(place: Place) -> None:
        reports = place.processors.reports(0, "smtp-in", "f", 1)
        assert reports is not None
        await filters.say(played, Said(1, 0.0, "seen|this"), Said(2, 0.0, "of nobody"))
        await place.processors.told()

    play(scenario, filters, configuration("f", reports=("log",)))
    assert listener.events == ["filter-report proc|f|seen|this"]


def test_what_a_session_introduces_itself_with_does_not_grow():
    filters, played = filtered()
    played.processor = Processor(
        number=1, name="f", life=1, known=True, events=frozenset(f"smtp-in {e}" for e in EVENTS), phases=frozenset()
    )

    async def scenario(place: Place) -> None:
        reports = place.processors.reports(0, "smtp-in", "f", 1)
        assert reports is not None
        reports.link_connect("a.example", "pass", "192.0.2.1:1", "192.0.2.2:25")
        for number in range(1000):
            reports.link_identify("EHLO", f"{number}.example")
            reports.link_auth("fail", f"user{number}")
        played.told.clear()
        await filters.set(played, life=2)
        await place.processors.told()
        new = played.events[played.events.index("link-connect a.example|pass|192.0.2.1:1|192.0.2.2:25") :]
        assert new[1:] == ["link-identify EHLO|999.example", "link-auth fail|user999"]

    play(scenario, filters, configuration("f"))


def test_sessions_that_are_forgotten_leave_nothing():
    filters, _ = filtered()

    async def scenario(place: Place) -> None:
        for session in range(100):
            reports = place.processors.reports(0, "smtp-in", "f", session)
            assert reports is not None
            reports.link_connect("a.example", "pass", "192.0.2.1:1", "192.0.2.2:25")
            del reports
        assert not place.processors._reports and not len(place.processors._paths)

    play(scenario, filters, configuration("f"))


def test_failures_of_the_role_are_failures_of_a_moment():
    filters, played = filtered()

    async def scenario(place: Place) -> None:
        async def broken(*_: object) -> None:
            raise TempFail("the link is gone")

        tell, filters.tell = filters.tell, broken  # type: ignore[method-assign]
        with pytest.raises(Unanswered, match="the link is gone"):
            await place.box().ask("noop", 1, 2, "")
        filters.tell = tell  # type: ignore[method-assign]
        assert (await place.box().ask("noop", 1, 2, "")).decision is Decision.PROCEED

    play(scenario, filters, configuration("f"))
    assert played.questions


def test_nobody_waits_for_one_that_never_registered_and_may_be_left_out():
    filters = MemoryFilters()
    played = filters.add("f", fail_open=True)
    played.processor = Processor(number=1, name="f", fail_open=True, why="it ended")

    async def scenario(place: Place) -> None:
        path = place.processors.path(0, "f")
        assert await place.processors.registered(path) and not path.steps("connect")

    play(scenario, filters, configuration("f"))


# --- those who listen to what leaves ----------------------------------------------------------------------------------
OUT = Config(
    hostname="x",
    actions={"out": Relay(name="out", filter="f")},
    procs={name: Proc(name=name, command=name) for name in ("f", "r")},
    filters={"f": Filter(name="f", kind="proc-exec", proc="f")},
    reports=(EventReport(direction="mda", proc="r"),),
)


@pytest.mark.parametrize("last", [{"known": True, "life": 1}, {"failed": True}], ids=["registers", "fails"])
def test_mail_that_is_queued_waits_for_its_audience(last):
    filters = MemoryFilters()
    filters.add("f", events="tx-mail")
    late = filters.add("r")
    late.processor = Processor(number=2, name="r")

    async def scenario(place: Place) -> None:
        waiting = asyncio.ensure_future(place.processors.audience(OUT))
        await place.settle()
        assert not waiting.done()
        await filters.set(late, **last)
        await waiting

    play(scenario, filters, OUT)


def test_mail_does_not_wait_for_ever_and_not_for_those_who_do_not_listen_to_it(monkeypatch):
    monkeypatch.setattr(module, "AUDIENCE", 0.05)
    filters = MemoryFilters()
    filters.add("f").processor = Processor(number=1, name="f")

    async def scenario(place: Place) -> None:
        await place.processors.audience(configuration("f"))  # it is of a listener
        place.processors.add(elsewhere := msgspec.structs.replace(OUT, generation=1))
        waiting = asyncio.ensure_future(place.processors.audience(elsewhere))
        await place.settle()
        assert not waiting.done()
        await waiting

    play(scenario, filters, configuration("f"))
