"""What a dispatcher is told of answers, in which order, and what it has not taken."""

import asyncio
import io
from collections.abc import Awaitable, Callable

import pytest

from pillarbox.errors import TempFail
from pillarbox.filters.tellers import FULL, Teller
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Decision, Output, Processor, Result, Said


class Stuck:
    """A dispatcher that takes nothing, and a source of answers."""

    def __init__(self) -> None:
        self.held = 0

    async def answered(self, *_: object) -> None:
        await asyncio.Event().wait()

    async def changed(self, *_: object) -> None:
        """Nothing."""

    def hold(self) -> None:
        self.held += 1

    def let_go(self) -> None:
        self.held = 0


@pytest.mark.parametrize(
    "answer",
    [
        Said(1, 0.0, "x" * (FULL // 4)),
        Result(1, 2, Decision.REJECT, "x" * (FULL // 4)),
        Output(1, 2, b"x" * (FULL // 4)),
    ],
)
def test_answers_of_every_kind_are_bounded(answer: Answer) -> None:
    async def body() -> None:
        stuck = Stuck()
        teller = Teller(name="dispatcher.0", filtered=stuck, log=Log(io.StringIO()))
        for _ in range(4):
            teller.answered(1, 1, answer, stuck)
        assert stuck.held
        teller.gone()
        assert not stuck.held

    asyncio.run(body())


class Dispatcher:
    """Takes what it is told, but nothing that the processors in `stuck` answer."""

    def __init__(self, *stuck: int) -> None:
        self.told: list[tuple[int, object]] = []
        self.stuck = {number: asyncio.Event() for number in stuck}
        self.held = 0
        self.fails = False

    async def answered(self, number: int, life: int, answers: list[Answer]) -> None:
        if self.fails:
            raise TempFail("dispatcher.0 did not answer filtered.answered")
        if number in self.stuck:
            await self.stuck[number].wait()
        self.told += [(number, answer) for answer in answers]

    async def changed(self, processors: list[Processor]) -> None:
        self.told += [(processor.number, processor.life) for processor in processors]

    def hold(self) -> None:
        self.held += 1

    def let_go(self) -> None:
        self.held = 0


def passing_on(body: Callable[[Teller, Dispatcher], Awaitable[None]], *stuck: int) -> None:
    async def main() -> None:
        dispatcher = Dispatcher(*stuck)
        teller = Teller(name="dispatcher.0", filtered=dispatcher, log=Log(io.StringIO()))
        running = asyncio.ensure_future(teller.run())
        async with asyncio.timeout(5):
            await body(teller, dispatcher)
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(main())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def result(token: int) -> Result:
    return Result(1, token, Decision.PROCEED)


def test_what_one_processor_has_to_say_waits_for_no_other() -> None:
    async def body(teller: Teller, dispatcher: Dispatcher) -> None:
        big = Output(1, 2, b"x" * (FULL // 2))
        for _ in range(4):
            teller.answered(1, 1, big, dispatcher)
        held = dispatcher.held
        assert held
        teller.changed([Processor(number=n, name="p", life=2) for n in (1, 2)])
        teller.answered(2, 2, result(7), dispatcher)
        await settle()
        assert dispatcher.told == [(2, 2), (2, result(7))]
        assert dispatcher.held == held, "one with little to say waits for who has much"
        dispatcher.stuck[1].set()
        await settle()
        assert not dispatcher.held
        assert [number for number, _ in dispatcher.told[2:]] == [1] * (len(dispatcher.told) - 2)
        assert dispatcher.told[-1] == (1, 2), "a change overtook answers"

    passing_on(body, 1)


def test_what_a_processor_says_stays_in_order() -> None:
    async def body(teller: Teller, dispatcher: Dispatcher) -> None:
        for token in range(5):
            teller.answered(1, 1, result(token), dispatcher)
        teller.changed([Processor(number=1, name="p", life=0)])
        teller.changed([Processor(number=1, name="p", life=2)])
        for token in range(5, 9):
            teller.answered(1, 2, result(token), dispatcher)
        await settle()
        said = [what.token if isinstance(what, Result) else f"life {what}" for _, what in dispatcher.told]
        assert said == [0, 1, 2, 3, 4, "life 2", 5, 6, 7, 8]

    passing_on(body)


def test_a_message_of_which_some_did_not_arrive_never_comes_to_its_end() -> None:
    async def body(teller: Teller, dispatcher: Dispatcher) -> None:
        def part(token: int, data: bytes, *, last: bool = False) -> Output:
            output = Output(1, token, data, last)
            teller.answered(1, 1, output, dispatcher)
            return output

        arrived = [part(7, b"one\r\n"), part(8, b"one\r\n")]
        await settle()
        dispatcher.fails = True
        part(7, b"two\r\n")
        part(9, b"all\r\n", last=True)
        await settle()
        dispatcher.fails = False
        part(7, b"three\r\n")
        part(7, b"four\r\n", last=True)
        arrived.append(part(8, b"two\r\n", last=True))
        arrived.append(part(9, b"of another\r\n", last=True))
        arrived.append(part(7, b"of another\r\n", last=True))
        await settle()
        assert [what for _, what in dispatcher.told] == arrived

    passing_on(body)


def test_nothing_is_left_of_a_processor_that_there_is_no_more() -> None:
    async def body(teller: Teller, dispatcher: Dispatcher) -> None:
        before = len(asyncio.all_tasks())
        for number in range(10):
            teller.answered(number, 1, result(number), dispatcher)
            await settle()
            teller.answered(number, 1, result(100), dispatcher)
            teller.forget(number)
        await settle()
        assert len(dispatcher.told) == 20
        assert len(asyncio.all_tasks()) == before

    passing_on(body)
