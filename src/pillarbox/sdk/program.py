"""The life of a program that the server starts: logging, and how it ends."""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from pillarbox.sdk.stdio import ServerGone

_GRACE = 5.0  # seconds for threads that still do something


def run(
    conversation: Coroutine[Any, Any, None], *, log: logging.Logger, refusals: tuple[type[Exception], ...]
) -> NoReturn:
    """Hold the conversation, then exit: 0, or 1 with the reason logged.

    Of `refusals` the text is the reason; of other exceptions the traceback is logged too.
    """
    status = 1
    try:
        asyncio.run(_hold(conversation))
        status = 0
    except* ServerGone:
        status = 0  # it stopped, and does not wait for answers
    except* refusals as refused:
        for error in refused.exceptions:
            log.error("%s", error)
    except* KeyboardInterrupt:
        status = 130
    except* Exception as fault:  # whatever an author's `start` raised: an OSError is not the server's end
        log.error("the program failed", exc_info=fault)
    _leave(status, log)


class _Threads(ThreadPoolExecutor):
    """For `asyncio.to_thread`: the loop's own would be waited for, however long its threads take."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Whether a thread ends is seen to in `_leave`."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


async def _hold(conversation: Coroutine[Any, Any, None]) -> None:
    asyncio.get_running_loop().set_default_executor(_Threads(thread_name_prefix="asyncio"))
    await conversation


def _leave(status: int, log: logging.Logger) -> NoReturn:
    """Exit; threads that an author's function hangs in do not keep us."""
    end = time.monotonic() + _GRACE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0, end - time.monotonic()))
            if thread.is_alive():
                log.warning("thread %s does not end", thread.name)
                logging.shutdown()
                os._exit(status)
    sys.exit(status)


def log_to_server() -> None:
    """`logging` goes to standard error, which the server logs."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
