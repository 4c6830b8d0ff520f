"""What tests of filtered sessions share: configurations with processors that the test plays."""

import asyncio
from collections.abc import Awaitable, Callable

from pillarbox.conf.model import Config, Criterion, EventReport, Filter, Listener, Proc, SmtpOptions
from tests.filters.memory import MemoryFilters

from .memory import World, world

EVERY_EVENT = (
    "link-connect link-greeting link-identify link-tls link-auth link-disconnect tx-reset tx-begin tx-mail tx-rcpt"
    " tx-envelope tx-data tx-commit tx-rollback protocol-client protocol-server filter-report filter-response timeout"
)
TRY_AGAIN = "451 4.7.1 Message filtering is not available now, try again later"


def with_filters(
    *names: str,
    builtins: tuple[Filter, ...] = (),
    reports: tuple[str, ...] = (),
    listener: Listener | None = None,
    **smtp,
) -> Config:
    """A listener whose chain are builtin filters, and then processors of these names."""
    chain = tuple(one.name for one in builtins) + names
    filters = {name: Filter(name=name, kind="proc-exec", proc=name) for name in names}
    filters |= {one.name: one for one in builtins}
    filters["chain"] = Filter(name="chain", kind="chain", chain=chain)
    used = listener or Listener(id=1, hostname="mail.example.org", filter="chain" if chain else "")
    return Config(
        hostname="host.example.org",
        listeners=(used,),
        procs={name: Proc(name=name, command=name) for name in (*names, *reports)},
        filters=filters,
        reports=tuple(EventReport(direction="smtp-in", proc=name) for name in reports),
        smtp=SmtpOptions(**smtp),
    )


def builtin(phase: str, kind: str, decision: str, argument: str = "", *, name: str = "b", **criterion) -> Filter:
    """`filter b phase PHASE match KIND DECISION`."""
    return Filter(
        name=name,
        kind="builtin",
        phase=phase,
        conditions=(Criterion(kind=kind, **criterion),),
        decision=decision,
        argument=argument,
    )


def run(
    scenario: Callable[[World], Awaitable[None]], config: Config, filters: MemoryFilters | None = None, **arguments
) -> None:
    """Play a scenario against a server of this configuration. `filters` may be made outside the loop."""

    async def inside() -> None:
        async with world(config=config, filters=filters, **arguments) as w:
            await scenario(w)

    asyncio.run(inside())
