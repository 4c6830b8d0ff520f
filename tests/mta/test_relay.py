"""Relays: where attempts go, how many at a time, and what becomes of them when there is no way."""

import asyncio
import itertools

import pytest

from pillarbox.conf.model import Config, MtaLimits, Relay
from pillarbox.errors import PermFail, TempFail
from pillarbox.mta import relay
from pillarbox.mta.state import RECIPIENTS_MAX
from pillarbox.roles.delivery import InFlight, SessionEvent
from pillarbox.roles.lookup import MxHost
from tests.mta.support import AT_ONCE, Mail, Peer, Running, play


def to(peer, **options):
    return Relay(name="out", host=f"smtp://127.0.0.1:{peer.port}", **options)


class Orders:
    """A dispatcher that only notes its orders."""

    def __init__(self, failure=None):
        self.orders = []
        self.failure = failure
        self.held = InFlight()

    async def open_session(self, order):
        if self.failure is not None:
            raise self.failure
        self.orders.append(order)

    async def in_flight(self):
        return self.held


class Ordering:
    """A mail whose sessions are ordered from `Orders`."""

    def __init__(self, *actions, dispatchers=1, **limits):
        self.mail = Mail(*actions, **limits)
        self.relays = self.mail.relays
        self.relays.remove_dispatcher(self.mail.sessions)
        self.dispatchers = [Orders() for _ in range(dispatchers)]
        for dispatcher in self.dispatchers:
            self.relays.add_dispatcher(dispatcher)

    @property
    def orders(self):
        return [order for dispatcher in self.dispatchers for order in dispatcher.orders]

    async def ordered(self, count):
        async with asyncio.timeout(8):
            while len(self.orders) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return self.orders


SMART = Relay(name="out", host="smtp://127.0.0.1:2525")


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (PermFail("Domain does not exist"), ("permfail", "Domain does not exist")),
        (TempFail("No MX found for domain"), ("tempfail", "No MX found for domain")),
        (TempFail("lookup is not there"), ("tempfail", "Temporary failure in MX lookup")),
    ],
)
def test_domain_that_cannot_be_resolved(failure, result):
    async def go():
        async with Running(Mail(Relay(name="out"))) as mail:
            mail.lookup.failure = failure
            mail.send("bob@far.example")
            assert await mail.settled() == [result]
            assert f"smtp-out: Failed to resolve MX for [relay:far.example,smtp]: {result[1]}" in mail.lines
            assert 'source="-" relay="far.example"' in mail.lines[-1]

    play(go)


def test_refused_attempts_are_settled():
    async def go():
        async with Running(Mail(Relay(name="out", host="gopher://x"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Cannot parse smarthost")]

    play(go)


def test_domain_table():
    async def go():
        async with Peer() as peer, Running(Mail(Relay(name="out", domain="d"))) as mail:
            mail.lookup.tables["d"] = {"here.example": f"smtp://127.0.0.1:{peer.port}"}
            mail.send("a@here.example", "b@here.example", "x@elsewhere.example")
            assert sorted(await mail.settled(3)) == [("ok", ""), ("ok", ""), ("tempfail", "Cannot retrieve smarthost")]
            assert len(peer.messages) == 1
            assert "warn: Failed to retrieve smarthost for envelope 0000000100000003" in mail.lines

    play(go)


def test_each_envelope_takes_the_next_host_of_a_table():
    async def go():
        async with Peer() as one, Peer() as two, Running(Mail(Relay(name="out", hosts="h"))) as mail:
            turns = itertools.cycle([f"smtp://127.0.0.1:{one.port}", f"smtp://127.0.0.1:{two.port}"])

            async def relay_url(generation, table, domain):
                assert (table, domain) == ("h", "")
                return next(turns)

            mail.lookup.relay_url = relay_url
            for _ in range(2):
                mail.send("a@here.example", "b@elsewhere.example")
            assert await mail.settled(4) == [("ok", "")] * 4
            assert [sum(m.count(b"Subject") for m in peer.messages) for peer in (one, two)] == [2, 2]

    play(go)


def test_next_source_is_taken_when_one_does_not_get_through():
    async def go():
        action = Relay(name="out", host="smtp://127.0.0.1:2525", src="s", helo_src="names")
        it = Ordering(action)
        async with Running(it.mail):
            it.mail.lookup.sources = ["127.0.0.3", "127.0.0.4"]
            it.mail.lookup.tables["names"] = {"127.0.0.3": "three.example", "127.0.0.4": "four.example"}
            it.mail.send("bob@far.example")
            first = (await it.ordered(1))[0]
            assert (first.source, first.helo) == ("127.0.0.3", "three.example")
            await it.relays.session_event(SessionEvent(session=first.session, state="failed", network=True))
            second = (await it.ordered(2))[1]
            assert (second.source, second.helo) == ("127.0.0.4", "four.example")
            await it.relays.session_event(
                SessionEvent(session=second.session, state="failed", blame="source", error="Cannot assign")
            )
            assert await it.mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert "smtp-out: Error on 127.0.0.4 <-> 127.0.0.1 (localhost): Cannot assign" in it.mail.lines

    play(go)


def test_no_source_address():
    async def go():
        async with Running(Mail(Relay(name="out", src="s"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Could not retrieve source address")]

    play(go)


def test_backup_relays_to_better_exchangers_only():
    async def go():
        it = Ordering(Relay(name="out", backup=True, backup_mx="us.example"))
        it.mail.lookup.mx = [
            MxHost(preference=10, name="main.example", address="127.0.0.5"),
            MxHost(preference=20, name="US.example", address="127.0.0.6"),
            MxHost(preference=30, name="worse.example", address="127.0.0.7"),
        ]
        async with Running(it.mail):
            it.mail.send("bob@far.example")
            order = (await it.ordered(1))[0]
            assert (order.host, order.address, order.port) == ("main.example", "127.0.0.5", 25)
            await it.relays.session_event(SessionEvent(session=order.session, state="failed", network=True))
            assert await it.mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert len(it.orders) == 1

    play(go)


def test_second_connection_waits_until_the_first_is_greeted():
    async def go():
        it = Ordering(SMART, dispatchers=2)
        async with Running(it.mail):
            for _ in range(5):
                it.mail.send("bob@far.example")
            first = (await it.ordered(1))[0]
            await asyncio.sleep(0.05)
            assert len(it.orders) == 1
            await it.relays.session_event(SessionEvent(session=first.session, state="ready"))
            await it.ordered(3)
            await asyncio.sleep(0.05)
            assert [len(d.orders) for d in it.dispatchers] in ([1, 2], [2, 1])
            show = it.relays.show_relays()
            assert show[0].startswith("[relay:127.0.0.1,port=2525,smtp,mx] refcount=")
            assert " ntask=5 nconn=3 " in show[0]
            assert show[1].startswith("  connector [] refcount=0 nconn=3 lastconn=0s ")

    play(go)


def test_room_shrinks_with_pending_tasks_and_the_scheduler_is_called_back_at_lowat():
    async def go():
        it = Ordering(SMART, task_hiwat=4, task_lowat=2)
        async with Running(it.mail):
            for _ in range(4):
                assert it.relays.room("far.example") > 0
                it.mail.send("bob@far.example")
            assert it.relays.room("far.example") == 0
            session = (await it.ordered(1))[0].session
            await it.relays.next_task(session, 0)
            assert it.mail.ready == []
            await it.relays.next_task(session, 0)
            assert it.mail.ready == ["far.example"]

    play(go)


def test_a_transaction_has_a_bounded_number_of_recipients():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.mail.send(*(f"u{i}@far.example" for i in range(2 * RECIPIENTS_MAX + 1)))
            session = (await it.ordered(1))[0].session
            tasks = [await it.relays.next_task(session, 0) for _ in range(4)]
            assert [len(t.envelopes) if t else 0 for t in tasks] == [RECIPIENTS_MAX, RECIPIENTS_MAX, 1, 0]
            assert len({e.evpid for t in tasks if t for e in t.envelopes}) == 2 * RECIPIENTS_MAX + 1

    play(go)


def test_waiting_session_gets_the_next_task_at_once():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            session = (await it.ordered(1))[0].session
            await it.relays.next_task(session, 5)
            waiting = asyncio.create_task(it.relays.next_task(session, 5))
            await asyncio.sleep(0)
            it.mail.send("b@far.example")
            async with asyncio.timeout(1):
                task = await waiting
            assert task.envelopes[0].dest == "b@far.example"
            assert await it.relays.next_task(4711, 5) is None

    play(go)


def test_task_that_a_lost_session_did_not_begin_goes_to_another():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            session = (await it.ordered(1))[0].session
            task = await it.relays.next_task(session, 5)
            await it.relays.session_event(SessionEvent(session=session, state="closed", unused=True))
            again = await it.relays.next_task((await it.ordered(2))[1].session, 0)
            assert again == task
            assert it.mail.queue.outcomes == []

    play(go)


def test_attempts_of_a_dispatcher_that_died_are_lost_without_blame():
    async def go():
        it = Ordering(SMART, dispatchers=2)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            it.relays.adopt(it.dispatchers[0], InFlight(running=((77, 3),)))
            session = (await it.ordered(1))[0].session
            dead = next(d for d in it.dispatchers if d.orders)
            await it.relays.next_task(session, 0)
            it.relays.remove_dispatcher(dead)
            expected = [(1 << 32 | 1, 1)] + ([(77, 3)] if dead is it.dispatchers[0] else [])
            assert sorted(it.mail.lost) == sorted(expected)
            it.relays.remove_dispatcher(dead)
            assert len(it.mail.lost) == len(expected)
            assert it.mail.queue.outcomes == []

    play(go)


def test_task_that_never_reached_its_session_is_due_again(monkeypatch):
    monkeypatch.setattr(relay, "_MISSING", 0.01)

    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            session = (await it.ordered(1))[0].session
            await it.relays.next_task(session, 0)
            it.dispatchers[0].held = InFlight(running=((1 << 32 | 1, 1),))
            await it.relays.session_event(SessionEvent(session=session, state="closed"))
            await asyncio.sleep(0.05)
            assert it.mail.lost == [], "its dispatcher still has it"
            it.mail.send("b@far.example")
            session = (await it.ordered(2))[1].session
            await it.relays.next_task(session, 0)
            await it.relays.session_event(SessionEvent(session=session, state="closed"))
            await asyncio.sleep(0.05)
            assert it.mail.lost == [(2 << 32 | 1, 1)]

    play(go)


def test_order_that_cannot_be_given_is_repeated_without_blame():
    async def go():
        it = Ordering(SMART)
        it.dispatchers[0].failure = TempFail("dispatcher is not there")
        async with Running(it.mail):
            it.mail.send("a@far.example")
            await it.mail.logged("no session on [] <-> 127.0.0.1 (localhost): dispatcher is not there")
            it.dispatchers[0].failure = None
            await it.ordered(1)
            assert " penalty=0 " in it.relays.show_routes()[0]

    play(go)


def test_paused_and_resumed_routes():
    async def go():
        it = Ordering(Relay(name="out", host="smtp://127.0.0.1:2525", src="s"))
        it.mail.lookup.sources = ["127.0.0.3"]
        async with Running(it.mail):
            it.relays.pause_route("127.0.0.3", "127.0.0.1", True)
            assert it.relays.show_paused() == ["127.0.0.3 -> 127.0.0.1"]
            it.mail.send("a@far.example")
            assert await it.mail.settled() == [("tempfail", "All routes to destination blocked")]
            it.relays.pause_route("127.0.0.3", "127.0.0.1", False)
            it.mail.send("a@far.example")
            order = (await it.ordered(1))[0]
            await it.relays.session_event(SessionEvent(session=order.session, state="failed", network=True))
            it.relays.resume_route(0)
            assert it.relays.show_routes()[0].startswith("1. 127.0.0.3 <-> 127.0.0.1 (localhost) N--- ")
            await it.ordered(2)

    play(go)


def test_deferred_envelopes_are_tried_again_when_the_destination_is_back():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("a@far.example")
            await mail.settled(1)
            assert mail.relays.show_hoststats()[0].split("|")[::2] == ["far.example", "250 taken"]
            peer.greeting = "421 busy"
            mail.send("b@far.example")
            assert (await mail.settled(2))[1] == ("tempfail", "Network error on destination MXs")
            peer.greeting = "220 peer"
            mail.relays.resume_route(0)
            mail.send("c@far.example")
            await mail.settled(3)
            assert mail.scheduled == [2 << 32 | 1]

    play(go)


def test_new_configuration_applies_to_what_comes_next():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.relays.reconfigure(
                Config(
                    hostname="new.example", generation=2, mta=MtaLimits(**AT_ONCE),
                    actions={"out": Relay(name="out", host="smtp+notls://127.0.0.1:26")},
                )
            )  # fmt: skip
            it.mail.send("a@far.example")
            order = (await it.ordered(1))[0]
            assert (order.generation, order.port, order.helo, order.tls) == (2, 26, "new.example", "none")

    play(go)


def reconfigured(relays, *actions, generation=2):
    relays.reconfigure(
        Config(
            hostname="new.example",
            generation=generation,
            mta=MtaLimits(**AT_ONCE),
            actions={a.name: a for a in actions},
        )
    )


def test_tasks_that_no_session_has_begun_follow_a_changed_action():
    async def go():
        it = Ordering(SMART, max_conn_per_host=1)
        async with Running(it.mail):
            for _ in range(3):
                it.mail.send("a@far.example")
            (old,) = await it.ordered(1)
            begun = await it.relays.next_task(old.session, 0)
            reconfigured(it.relays, Relay(name="out", host="smtp+notls://127.0.0.1:26"))
            new = (await it.ordered(2))[1]
            assert (new.generation, new.port) == (2, 26)
            assert it.relays.generations() == {0, 2}
            assert await it.relays.next_task(old.session, 60) is None, "nothing comes its way any more"
            await it.relays.session_event(SessionEvent(session=old.session, state="closed", delivered=1))
            assert it.relays.generations() == {2}
            rest = [await it.relays.next_task(new.session, 0), await it.relays.next_task(new.session, 0)]
            assert sorted(task.msgid for task in [begun, *rest]) == [1, 2, 3]

    play(go)


def test_session_that_waits_for_a_task_ends_with_its_configuration():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_keepalive=60)) as mail:
            mail.send("a@far.example")
            await mail.settled(1)
            assert await mail.sessions.in_flight() == InFlight()
            assert mail.sessions.generations() == {0}
            reconfigured(mail.relays, to(peer))
            async with asyncio.timeout(5):
                while mail.sessions.generations() or mail.relays.generations():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert peer.sessions[0][-1] == "QUIT"

    play(go)


def test_task_of_a_session_that_failed_goes_by_the_new_configuration():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            (old,) = await it.ordered(1)
            await it.relays.next_task(old.session, 0)
            reconfigured(it.relays, Relay(name="out", host="smtp+notls://127.0.0.1:26"))
            await it.relays.session_event(SessionEvent(session=old.session, state="closed", unused=True))
            assert (await it.ordered(2))[1].port == 26
            assert it.relays.generations() == {2}

    play(go)


def test_tasks_whose_action_is_gone_are_put_off():
    async def go():
        it = Ordering(SMART, max_conn_per_host=0)
        async with Running(it.mail):
            it.mail.send("a@far.example")
            reconfigured(it.relays)
            assert await it.mail.settled(1) == [("tempfail", 'No relay action "out"')]

    play(go)


def test_smarthost_that_was_asked_for_before_is_asked_for_again():
    async def go():
        it = Ordering(Relay(name="out", domain="d"))
        async with Running(it.mail):
            it.mail.lookup.tables["d"] = {"far.example": "smtp://127.0.0.1:2525"}
            it.mail.send("a@far.example")
            reconfigured(it.relays, Relay(name="out", host="smtp+notls://127.0.0.1:26"))
            assert [order.port for order in await it.ordered(1)] == [26]
            assert it.relays.generations() == {2}

    play(go)


def test_route_that_is_paused_stays_so():
    async def go():
        it = Ordering(SMART)
        async with Running(it.mail):
            it.relays.pause_route("", "127.0.0.1", True)
            reconfigured(it.relays, SMART)
            assert it.relays.show_paused() == [" -> 127.0.0.1"]
            it.mail.send("a@far.example")
            assert (await it.mail.settled(1))[0][0] == "tempfail"

    play(go)


def test_what_smtpctl_shows():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_keepalive=5)) as mail:
            assert mail.relays.stats() == {"mta.source": 0}
            mail.send("a@far.example")
            await mail.settled()
            assert mail.relays.show_hosts() == ["127.0.0.1 localhost refcount=2 nconn=1 lastconn=0s"]
            assert mail.relays.show_routes() == [
                "1. [] <-> 127.0.0.1 (localhost) ---- nconn=1 nerror=0 penalty=0 timeout=-"
            ]
            assert mail.relays.stats()["mta.session"] == 1

    play(go)
