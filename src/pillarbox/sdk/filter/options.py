"""How a filter does its work, beside what its handlers do."""

from dataclasses import dataclass

from pillarbox.sdk.filter.decisions import Decision, Verb, reject

ON_ERROR = reject("451 4.3.0 Temporary failure in a filter, try again later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Raises ValueError where `on_error` cannot be said everywhere.

    `on_error`: the answer when a handler raises, or is not done after `deadline` seconds (Pillarbox waits 60); when it
    was about a message, it is said at commit. `threads`: so many for plain functions; 0: they are called in the loop.
    `remember=False`: register nothing for the sake of `session`, which then knows little. `max_sessions`: of more, the
    one that was silent for longest is forgotten. `memory`: bytes of all messages that handlers want whole.
    """

    on_error: Decision = ON_ERROR
    deadline: float = 50.0
    threads: int = 0
    remember: bool = True
    max_sessions: int = 50_000
    memory: int = 256 << 20

    def __post_init__(self) -> None:
        if self.on_error.verb not in (Verb.REJECT, Verb.DISCONNECT, Verb.PROCEED):
            raise ValueError(f"on_error cannot be {self.on_error.verb}: only reject, disconnect or proceed")
