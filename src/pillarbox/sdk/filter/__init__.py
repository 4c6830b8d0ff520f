"""Write a filter for the mail server: a program that hears what sessions do, and decides what becomes of them.

    from pillarbox.sdk.filter import Filter, reject

    filter = Filter()

    @filter.on.mail_from
    def mail_from(session, address):
        if address.endswith("@example.net"):
            return reject("550 5.7.1 Not from there")

    filter.run()

It speaks smtpd-filters(7), protocol 0.4 to 0.7, and so runs under OpenSMTPD 6.6 and newer too. docs/filters.md says
more; `pillarbox.sdk.filter.testing` drives a filter in a test.
"""

from pillarbox.sdk.filter.decisions import Decision, disconnect, junk, proceed, reject, report, rewrite
from pillarbox.sdk.filter.events import (
    Delivery,
    Event,
    FilterReport,
    FilterResponse,
    LinkAuth,
    LinkConnect,
    LinkDisconnect,
    LinkGreeting,
    LinkIdentify,
    LinkTLS,
    Other,
    ProtocolClient,
    ProtocolServer,
    Timeout,
    TxBegin,
    TxCommit,
    TxData,
    TxEnvelope,
    TxMail,
    TxRcpt,
    TxReset,
    TxRollback,
)
from pillarbox.sdk.filter.filter import Filter
from pillarbox.sdk.filter.message import Headers, Message
from pillarbox.sdk.filter.registry import FilterError
from pillarbox.sdk.filter.session import Session

__all__ = [
    "Decision",
    "Delivery",
    "Event",
    "Filter",
    "FilterError",
    "FilterReport",
    "FilterResponse",
    "Headers",
    "LinkAuth",
    "LinkConnect",
    "LinkDisconnect",
    "LinkGreeting",
    "LinkIdentify",
    "LinkTLS",
    "Message",
    "Other",
    "ProtocolClient",
    "ProtocolServer",
    "Session",
    "Timeout",
    "TxBegin",
    "TxCommit",
    "TxData",
    "TxEnvelope",
    "TxMail",
    "TxRcpt",
    "TxReset",
    "TxRollback",
    "disconnect",
    "junk",
    "proceed",
    "reject",
    "report",
    "rewrite",
]
