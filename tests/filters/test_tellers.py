"""What a dispatcher has not taken of answers, whatever they are."""

import asyncio
import io

import pytest

from pillarbox.filters.tellers import FULL, Teller
from pillarbox.log import Log
from pillarbox.roles.filters import Answer, Decision, Output, Result, Said


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
