import time

import pytest

from pillarbox.conf.model import Local
from pillarbox.mail.envelope import Result
from pillarbox.mda.command import deliver_command, last_line
from pillarbox.mda.message import Failure, Message
from pillarbox.mda.wire import Job
from tests.mda.support import World, in_world, read_tree


def test_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    job = Job(
        index=0, method="command", sender="s@x", rcpt="a@b", dest="a@b", user="alice", directory="/", home="/",
        target=f"(sleep 1; echo late > {tmp_path}/late) | cat", size=6, body=b"A: b\r\n",
    )  # fmt: skip
    with pytest.raises(Failure) as caught:
        deliver_command(Message(job, lambda at: b""), time.monotonic() + 0.3)
    assert (caught.value.result, caught.value.text) == (Result.TEMPFAIL, "terminated; timeout")
    time.sleep(1)  # the other program's clock cannot be advanced
    assert not (tmp_path / "late").exists()


def test_large_message_flows_through_a_command():
    large = b"A: b\r\n\r\n" + b"0123456789abcdef\r\n" * 60000

    async def body(world: World) -> None:
        await world.agent.deliver([world.order(1, "a", body=large, stream=True)])
        (outcome,) = await world.outcomes(1)
        assert outcome.result is Result.OK
        assert read_tree(world.home)["out"].endswith(large.replace(b"\r\n", b"\n"))

    in_world(body, a=Local(name="a", method="mda", target="cat > out"))


def test_large_message_that_is_lost_never_looks_complete_to_a_command():
    async def body(world: World) -> None:
        order = world.order(1, "a", body=b"A: b\r\n\r\n" + b"x" * 400000, stream=True)
        world.queue.bodies[1] = world.queue.bodies[1][:300000]
        await world.agent.deliver([order])
        (outcome,) = await world.outcomes(1)
        assert (outcome.result, outcome.errorline) == (Result.TEMPFAIL, "Error reading body")
        assert "done" not in read_tree(world.home)

    in_world(body, a=Local(name="a", method="mda", target="cat > out && echo > done"))


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (b"", ""),
        (b"a\nb", '"b"'),
        (b"a\n\n", '""'),
        (b"a\\b\x1b\x7f\0\n", '"a\\\\b\\^[\\^?\\0"'),
        ("é\u2028".encode(), '"é?"'),
        (b"x" * 1000, '"' + "x" * 253 + '"'),
    ],
)
def test_last_line_is_shown_without_control_characters(output, line):
    assert last_line(output) == line
