"""A role that hangs without dying (stopped, or caught in an endless loop) is found by its silence and ended.

The parent asks each role now and then whether it is there; its event loop answers at once, whatever it waits for. One
that does not is killed, and so started again as any role that died.
"""

import asyncio

from pillarbox.daemon.processes.child import Child
from pillarbox.errors import TempFail
from pillarbox.log import Log

EVERY = 10.0  # seconds between an answer and the next question
PATIENCE = 30.0  # seconds for an answer, twice: the first time it may be the parent that was stopped


async def watch(child: Child, log: Log) -> None:
    """Ask until the process has ended; end it when it falls silent."""
    if not await child.ready_or_ended():
        return
    silent = 0
    while not child.ended.is_set():
        if not silent:
            await asyncio.sleep(EVERY)
        try:
            async with asyncio.timeout(PATIENCE):
                await child.ask("alive")
        except TimeoutError:
            silent += 1
        except TempFail:
            return
        else:
            silent = 0
        if silent == 2:
            log.warn(f"{child.name} has not answered for {silent * PATIENCE:.0f} seconds: it is ended")
            child.process.kill()
            return
