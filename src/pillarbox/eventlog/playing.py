"""A session while it is replayed, and what the replay adds up to. Does no I/O."""

from collections import deque
from dataclasses import dataclass, field

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.story import Ask, Message, Step, Story
from pillarbox.eventlog.verdict import Decided, Verdict
from pillarbox.roles.filters import SMTP_IN, Phase, Report

_WORDS = {Phase.CONNECT: "connected", Phase.STARTTLS: "tls"}  # phases that filter-response calls otherwise


class Over(PillarboxError):
    """The filter cannot go on, or is not let; the text says why."""


@dataclass(slots=True)
class Totals:
    """Of the whole replay. `over`: why it ended early."""

    sessions: int = 0
    left_out: int = 0  # sessions whose beginning is not in the log
    events: int = 0  # that the filter was told
    questions: int = 0
    longest: float = 0.0  # seconds for an answer
    faults: int = 0  # lines that break the protocol, answers that cannot be carried out or did not come
    differences: int = 0
    ignored: int = 0  # answers that nobody waited for
    over: str = ""


@dataclass(slots=True)
class Session:
    """One that is under way. `waiting`: what is not answered, with its token, since when.

    `over`: the filter ended it, and the rest of what was recorded did not happen. `told`: its verdict is out.
    """

    verdict: Verdict
    story: Story = field(default_factory=Story)
    steps: deque[Step] = field(default_factory=deque)
    waiting: Ask | Message | None = None
    token: int = 0
    since: float = 0.0
    over: bool = False
    told: bool = False
    _responses: dict[str, str] = field(default_factory=dict)  # what filter-response is to say, by phase

    def expect(self, step: Ask | Message, token: int, now: float) -> None:
        """It is asked: everything else waits for the answer."""
        self.waiting, self.token, self.since = step, token, now

    def decide(self, ask: Ask, answer: str) -> None:
        """An answer that counts, for the filter-response that was recorded."""
        word = _WORDS.get(ask.phase, ask.phase)
        self._responses[word] = f"{word}|{answer}"

    def settle(self, answer: str, now: float) -> Decided | None:
        """The question is answered ("": not so that it counts), or, None, the message."""
        waiting, self.waiting = self.waiting, None
        if not isinstance(waiting, Ask):
            return None
        decided = Decided(waiting, answer, now - self.since)
        self.verdict.decided.append(decided)
        return decided

    def response(self, text: str) -> str:
        """What filter-response says now, `text` being what it said then."""
        return self._responses.pop(text.partition("|")[0], text)

    def send_away(self, ask: Ask, reply: str) -> list[Step]:
        """The server says this and hangs up: what happens instead of what was recorded."""
        self.over = True
        self.steps.clear()
        events = [("filter-response", self.response(_WORDS.get(ask.phase, ask.phase))), ("protocol-server", reply)]
        if ask.message:
            events += [("tx-rollback", ask.message), ("tx-reset", ask.message)]
        events.append(("link-disconnect", ""))
        return [Report(SMTP_IN, event, self.verdict.session, ask.time, text) for event, text in events]
