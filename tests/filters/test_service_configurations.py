"""The filter role through changes of the configuration: who runs on, who is ended, and who waits for what."""

import asyncio
from pathlib import Path

import pytest

from pillarbox.conf.model import Proc
from pillarbox.errors import TempFail
from pillarbox.filters import service
from tests.filters.rig import Rig, command, configuration, play


def test_processors_that_two_configurations_define_alike_run_on(folder: Path) -> None:
    same = Proc(name="same", command=command(folder, "good"), line=3)
    old = Proc(name="other", command=command(folder, "polite"))
    new = Proc(name="other", command=command(folder, "good"))
    first = configuration(same, old)
    moved = Proc(name="same", command=same.command, line=7)
    second = configuration(moved, new, generation=2)

    async def body(rig: Rig) -> None:
        kept, ended = await rig.filters.serve("dispatcher.0").join(1)
        before = {status.pid for status in await rig.filters.show()}
        await rig.filters.add_config(second)
        rig.filters.use_config(2)
        shared, started = await rig.filters.serve("dispatcher.0").join(2)
        assert shared == kept
        assert started.number not in (kept.number, ended.number) and started.life
        await rig.ask(ended)  # sessions of the old configuration go on with it
        await rig.filters.drop_config(1)
        assert len(before & {status.pid for status in await rig.filters.show()}) == 1
        await rig.says("other: end of input")
        with pytest.raises(TempFail, match="no such filter"):
            await rig.tell(ended, rig.question())
        await rig.ask(shared, session=2)

    play(body, first, second)


def test_a_configuration_that_is_not_used_after_all_leaves_nothing(folder: Path) -> None:
    first = configuration(Proc(name="f", command=command(folder, "good")))
    second = configuration(Proc(name="g", command=command(folder, "good")), generation=2)

    async def body(rig: Rig) -> None:
        await rig.filters.add_config(second)
        await rig.filters.drop_config(2)
        assert [status.name for status in await rig.filters.show()] == ["f"]

    play(body, first, second)


def test_a_reload_tries_again_what_is_down(folder: Path) -> None:
    proc = Proc(name="f", command=command(folder, *["dies_at_once"] * 5, "good"))
    first, second = configuration(proc), configuration(proc, generation=2)

    async def body(rig: Rig) -> None:
        await rig.says("left down")
        await rig.filters.add_config(second)
        rig.filters.use_config(2)
        processor = await rig.join(2)
        await rig.dispatcher.until(lambda: rig.now(processor).life > 0)

    play(body, first, second)


def test_joining_waits_for_a_configuration_but_not_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_PREPARED", 0.2)
    second = configuration(Proc(name="g", command=command(folder, "good")), generation=2)

    async def body(rig: Rig) -> None:
        with pytest.raises(TempFail, match="configuration 3"):
            await rig.filters.serve("dispatcher.0").join(3)
        joining = asyncio.ensure_future(rig.filters.serve("dispatcher.0").join(2))
        await asyncio.sleep(0)
        await rig.filters.add_config(second)
        assert [processor.name for processor in await joining] == ["g"]

    play(body, configuration(Proc(name="f", command=command(folder, "good"))), second)
