"""A filter with handlers of every kind, for `test_sdk_filter.py`."""

import asyncio
import logging
from collections.abc import Iterable
from types import SimpleNamespace

from pillarbox.sdk.filter import (
    Decision,
    Filter,
    FilterReport,
    Headers,
    Message,
    Session,
    TxCommit,
    TxMail,
    disconnect,
    junk,
    reject,
    report,
    rewrite,
)

Known = Session[SimpleNamespace]

filter = Filter()


@filter.on.connect
def connect(session: Known, address: str) -> Decision:
    return report(f"connected from {address}")  # OpenSMTPD 6.8 would end for such a decision


@filter.on.mail_from
async def mail_from(session: Known, address: str) -> Decision | None:
    await asyncio.sleep(0.01)
    return {
        "no@example.net": reject("550 5.7.1 Not | you"),
        "old@example.net": rewrite("new@example.net"),
        "spam@example.net": junk(),
        "bye@example.net": disconnect("421 4.3.2 Bye"),
    }.get(address)


@filter.on.rcpt_to
def rcpt_to(session: Known, address: str) -> None:
    if address.startswith("bug"):
        raise ValueError("a bug")


@filter.on.data_line
def data_line(session: Known, line: str) -> str | Iterable[str]:
    if line.startswith("X-Gone:"):
        return ()
    return ["the dog", ".dotted"] if line == "the fox" else line


@filter.on.headers
def headers(session: Known, headers: Headers) -> None:
    seen = [session.address, session.helo, session.sender, *session.rcpts, session.msgid]
    headers.add("X-Seen", " ".join(seen), first=True)
    headers.replace("Subject", "Grüße")


@filter.on.message
def message(session: Known, message: Message) -> Decision | None:
    return reject("554 5.7.1 A virus") if b"virus" in message.body else None


@filter.on.tx_mail
def told(session: Known, event: TxMail) -> None:
    logging.info("told: %s %s %s", event.result, event.address, session.fcrdns)
    session.report("a sender")


@filter.on.filter_report
def reported(session: Known, event: FilterReport) -> None:
    logging.info("reported: %s %s", event.kind, event.message)


@filter.on.tx_commit
def committed(session: Known, event: TxCommit) -> None:
    logging.info("committed: %s %d", event.msgid, event.size)


filter.run()
