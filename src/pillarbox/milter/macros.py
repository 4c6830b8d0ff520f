"""The macros that milters ask for: their values, and which are sent when a milter does not choose. Pure.

The names are sendmail's (Sendmail Installation and Operation Guide, §5.2; Postfix's MILTER_README).
"""

from collections.abc import Mapping
from datetime import datetime
from email.utils import format_datetime

from pillarbox.milter.facts import Facts
from pillarbox.milter.wire import Stage

_CONNECT = (
    "j _ v {daemon_name} {daemon_addr} {daemon_port} {if_name} {if_addr} "
    "{client_addr} {client_name} {client_port} {client_ptr} {client_resolve}"
)
_MAIL = (
    "i b d t r s {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer} "
    "{tls_version} {cipher} {cipher_bits}"
)
# What goes out at a stage for a milter that does not choose. What was sent earlier is still known to it.
DEFAULT: Mapping[Stage, tuple[str, ...]] = {
    Stage.CONNECT: tuple(_CONNECT.split()),
    Stage.HELO: ("j", "s", "r", "{tls_version}", "{cipher}", "{cipher_bits}"),
    Stage.MAIL: tuple(_MAIL.split()),
    Stage.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    Stage.DATA: ("i", "{nrcpts}"),
    Stage.END_OF_HEADERS: ("i", "{msg_id}"),
    Stage.END_OF_MESSAGE: ("i", "{msg_id}", "{nrcpts}"),
}


class Macros:
    """`fixed`: values of the postmaster's, which replace ours."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self._fixed = dict(fixed)
        sent = {_bare(name) for names in DEFAULT.values() for name in names}
        others = tuple(name for name in self._fixed if _bare(name) not in sent)
        self._default = {**DEFAULT, Stage.CONNECT: DEFAULT[Stage.CONNECT] + others}

    def default(self, stage: Stage) -> tuple[str, ...]:
        """The names for a milter that does not choose. What only the postmaster knows goes out at first."""
        return self._default[stage]

    def select(
        self, names: tuple[str, ...], facts: Facts, now: datetime, more: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Those of the names that have a value. `more`: values of this moment."""
        values = {**values_of(facts, now), **(more or {}), **self._fixed}
        return {name: value for name in names if (value := _find(values, name))}


def _bare(name: str) -> str:
    return name.strip("{}")


def _find(values: Mapping[str, str], name: str) -> str:
    """A macro of one letter may be written with and without braces."""
    if name in values:
        return values[name]
    other = name[1:-1] if len(name) == 3 and name.startswith("{") else f"{{{name}}}"
    return values.get(other, "")


def values_of(facts: Facts, now: datetime) -> dict[str, str]:
    """All that is known of a session, empty where it is not."""
    values = {
        "j": facts.hostname,
        "v": facts.version,
        "_": _peer(facts),
        "b": format_datetime(now),
        "d": now.ctime(),
        "t": f"{now:%Y%m%d%H%M}",
        "r": _protocol(facts),
        "s": facts.helo,
        "{daemon_name}": "smtpd",
        "{daemon_addr}": facts.server.address,
        "{daemon_port}": str(facts.server.port or ""),
        "{if_name}": facts.hostname,
        "{if_addr}": facts.server.address,
        "{client_name}": facts.client_name,
        "{client_addr}": facts.client.address,
        "{client_port}": str(facts.client.port),
        "{client_ptr}": facts.rdns or "unknown",
        "{client_resolve}": _resolved(facts),
        # Milters take a client for one that logged in when there is one; who is not told which is told the usual one.
        "{auth_type}": (facts.mechanism or "PLAIN") if facts.user else "",
        "{auth_authen}": facts.user,
    }
    if facts.tls:
        values |= dict(zip(("{tls_version}", "{cipher}", "{cipher_bits}"), facts.tls, strict=True))
    return values | _transaction(facts)


def _transaction(facts: Facts) -> dict[str, str]:
    tx = facts.transaction
    if tx is None:
        return {}
    author = next((text[5:] for text in tx.parameters if text.upper().startswith("AUTH=")), "")
    return {
        "i": tx.msgid,
        "f": tx.sender,
        "{auth_author}": "" if author == "<>" else author,
        "{mail_addr}": tx.sender,
        "{mail_host}": _domain(tx.sender),
        "{mail_mailer}": "local" if facts.client.family == "L" else "esmtp",
        "{nrcpts}": str(len(tx.recipients)),
        "{msg_id}": tx.message_id,
    }


def recipient(address: str) -> dict[str, str]:
    """Macros of one recipient. Where it will go is only known when the server has taken it."""
    return {"{rcpt_addr}": address, "{rcpt_host}": _domain(address), "{rcpt_mailer}": "esmtp"}


def refused(code: str, text: str) -> dict[str, str]:
    """Macros of a recipient that the server refused, as libmilter has them (SMFIP_RCPT_REJ)."""
    return {"{rcpt_addr}": text, "{rcpt_host}": code, "{rcpt_mailer}": "error"}


def _peer(facts: Facts) -> str:
    if facts.client.family == "L":
        return "localhost"
    return f"{facts.client_name} [{facts.client.address}]" if facts.verified else facts.client_name


def _resolved(facts: Facts) -> str:
    if facts.verified:
        return "OK"
    return "FORGED" if facts.rdns else "FAIL"


def _protocol(facts: Facts) -> str:
    """RFC 3848."""
    if facts.method != "EHLO":
        return "SMTP"
    return "ESMTP" + "S" * bool(facts.tls) + "A" * bool(facts.user)


def _domain(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else ""
