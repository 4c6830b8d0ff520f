"""The mechanisms by name. A further one is an `Exchange` beside these and a line here."""

from collections.abc import Callable
from functools import partial

from pillarbox.smtp.sasl.bearer import oauthbearer, xoauth2
from pillarbox.smtp.sasl.exchange import Circumstances, Exchange
from pillarbox.smtp.sasl.password import Login, Plain
from pillarbox.smtp.sasl.scram import Scram

SCRAM, SCRAM_PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"

MECHANISMS: dict[str, Callable[[Circumstances], Exchange]] = {
    "PLAIN": Plain,
    "LOGIN": Login,
    SCRAM: partial(Scram, plus=False),
    SCRAM_PLUS: partial(Scram, plus=True),
    "XOAUTH2": xoauth2,
    "OAUTHBEARER": oauthbearer,
}
