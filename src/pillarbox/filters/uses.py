"""What a configuration wants of its processors: which there are, where each is used, and what it hears unasked."""

from dataclasses import dataclass

import msgspec

from pillarbox.conf.model import Config, Proc, Relay
from pillarbox.filters.protocol import every_event
from pillarbox.roles.filters import MDA, SMTP_IN, SMTP_OUT


@dataclass(frozen=True, slots=True)
class Use:
    """A processor as a configuration has it. Two that are equal are one process.

    `reports`: the subsystems of its `report` statements. `max_size`: bytes of the largest message.
    """

    proc: Proc
    subsystems: tuple[str, ...]
    reports: tuple[str, ...]
    filters: bool  # some filter is made of it, so it has to register
    admd: str
    max_size: int

    @property
    def unasked(self) -> frozenset[str]:
        """The events that it gets if it registers none."""
        return frozenset[str]().union(*(every_event(subsystem) for subsystem in self.reports))


def processors_of(config: Config) -> list[Use]:
    """Every processor: also one that nothing uses is started, as the reference does."""
    inbound = _procs(config, [listener.filter for listener in config.listeners])
    outbound = _procs(config, [a.filter for a in config.actions.values() if isinstance(a, Relay)])
    made = {declared.proc for declared in config.filters.values() if declared.proc}
    uses: list[Use] = []
    for name, proc in config.procs.items():
        reports = tuple(
            s for s in (SMTP_IN, SMTP_OUT, MDA) if any((r.direction, r.proc) == (s, name) for r in config.reports)
        )
        used = {SMTP_IN: name in inbound, SMTP_OUT: name in outbound, MDA: False}
        uses.append(
            Use(
                proc=msgspec.structs.replace(proc, line=0, file=""),
                subsystems=tuple(s for s, by_filter in used.items() if by_filter or s in reports),
                reports=reports,
                filters=name in made,
                admd=config.admd or config.hostname,
                max_size=config.smtp.max_message_size,
            )
        )
    return uses


def _procs(config: Config, filters: list[str]) -> set[str]:
    """The processors of these filters, and of the members of chains."""
    found: set[str] = set()
    for name in filter(None, filters):
        declared = config.filters[name]
        found |= {config.filters[member].proc for member in declared.chain} | {declared.proc}
    return found - {""}
