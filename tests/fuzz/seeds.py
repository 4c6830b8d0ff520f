"""What fuzzing begins with: the recorded dialogues, both sides of them, and what recorded filters wrote."""

from tests.corpus.runner.cases import HERE, load
from tests.corpus.runner.client import raw


def seeds() -> list[bytes]:
    """One for each session: all that its client sends; one for all that its server answers, one for its filter."""
    found: dict[bytes, None] = {}
    for kind in ("dialog", "filter"):
        for case in load(HERE, kind):
            for session in case.data.get("sessions", ()):
                sent = b"".join(raw(step["send"]) for step in session if "send" in step)
                replies = [
                    line for step in session for reply in step.get("expect", ()) if reply != "TIMEOUT" for line in reply
                ]
                heard = "".join(f"{line}\r\n" for line in replies).encode("latin-1", "replace")
                found |= dict.fromkeys((sent, heard))
            written = [line[2:] for line in case.data.get("filter_log") or () if line.startswith("> ")]
            found["".join(f"{line}\n" for line in written).encode("latin-1", "replace")] = None
    return [seed for seed in found if 0 < len(seed) < 20_000]
