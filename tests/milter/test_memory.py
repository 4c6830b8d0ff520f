"""What a large message takes of memory."""

from pathlib import Path

import pytest

from tests.milter.driver import MESSAGE, PROCEED, Bridge
from tests.milter.scripted import CONTINUE, Answer, ScriptedMilter, body, packet

BIG = [*MESSAGE, *(f"{number:08}" * 15 for number in range(100_000))]  # 12 MB
NEW = b"".join((b"%08d" % number) * 20 + b"\r\n" for number in range(100_000))  # 16 MB


def peak(bridge: Bridge) -> int:
    """Bytes of memory that the program had at most."""
    status = Path(f"/proc/{bridge.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (CONTINUE, PROCEED),
        (packet(b"h", b"X-New", b"yes") + CONTINUE, PROCEED),
        (packet(b"r"), "reject|550 5.7.1 Command rejected"),
        (body(NEW) + CONTINUE, PROCEED),
        (b"".join(body(NEW[at : at + 65535]) for at in range(0, len(NEW), 65535)) + CONTINUE, PROCEED),
    ],
    ids=["unchanged", "a header", "refused", "another body at once", "another body"],
)
def test_a_large_message_is_never_in_memory_as_a_whole(tmp_path: Path, answer: Answer, decision: str) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        before = peak(bridge)
        milter.answers["E"] = answer
        lines, said = client.deliver(BIG)
        assert said == decision
        assert len(lines) > 100_000
        assert peak(bridge) - before < 8 << 20


def test_one_that_is_too_large_goes_back_little_by_little(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address, "--max-size", "20M") as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        before = peak(bridge)
        larger = BIG + BIG  # 24 MB
        assert client.deliver(larger) == (larger, "reject|552 5.3.4 Message too big")
        assert peak(bridge) - before < 48 << 20  # of which 16 are for a server that does not read
        assert client.deliver() == (list(MESSAGE), PROCEED)
