"""What an action says about one envelope: through which relay it goes, and with which sender. Pure decisions."""

from dataclasses import dataclass

from pillarbox.conf.model import Relay, Srs
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail import srs
from pillarbox.mail.envelope import Envelope
from pillarbox.mail.idn import ascii_address
from pillarbox.mta.policy import TlsPolicy, tls_policy
from pillarbox.mta.url import RelayUrl, parse_relay_url

REQUIRETLS_FAILED = "550 5.7.30 REQUIRETLS support required"
REQUIRETLS_POSTPONED = "450 4.7.30 REQUIRETLS support required"
REQUIRETLS_CODE = 730


@dataclass(frozen=True, slots=True)
class Plan:
    """A relay: envelopes of equal plans share connections. `url` None: the MXs of `domain`.

    `require_tls`: for messages with REQUIRETLS (RFC 8689).
    """

    generation: int
    action: Relay
    url: RelayUrl | None
    policy: TlsPolicy
    domain: str
    backup_name: str = ""
    require_tls: bool = False

    @property
    def key(self) -> tuple[int, str, str, int, str, str, str, bool]:
        """What distinguishes one relay from another."""
        port, label = (self.url.port, self.url.label) if self.url else (0, "")
        return (
            self.generation, self.action.name, self.policy.scheme, port, label, self.domain, self.backup_name,
            self.require_tls,
        )  # fmt: skip

    def __str__(self) -> str:
        """As in the log and `show relays`."""
        action, url = self.action, self.url
        parts = [f"relay:{self.domain}"]
        if url is not None:
            parts.append(f"port={url.port}")
        parts.append(self.policy.scheme)
        if url is not None and url.label:
            parts.append(f"auth={action.auth}:{url.label}")
        if action.pki:
            parts.append(f"pki_name={action.pki}")
        if url is not None:
            parts.append("mx")
        for name, value in (
            ("backup", self.backup_name),
            ("sourcetable", action.src),
            ("helotable", action.helo_src),
            ("heloname", action.helo),
            ("requiretls", "yes" if self.require_tls else ""),
        ):
            if value:
                parts.append(f"{name}={value}")
        return f"[{','.join(parts)}]"


def smarthost_question(action: Relay, domain: str) -> tuple[str, str] | None:
    """What is asked for the smarthost: the table, and the key ("": its next entry). None: the action itself says."""
    if action.domain:
        return action.domain, domain
    return (action.hosts, "") if action.hosts else None


def helo_name(action: Relay, source: str, hostname: str) -> str | None:
    """What a session from this source calls itself; None: the action's `helo-src` table has the name."""
    return None if action.helo_src and source else action.helo or hostname


def plan_relay(
    action: Relay, generation: int, envelope: Envelope, smarthost: str, log: Log, *, require_tls: bool = False
) -> Plan:
    """The relay of an envelope; `smarthost` "" = by MX.

    `require_tls`: the message has REQUIRETLS. RFC 8689 §5: a bounce, which has no sender, is better sent without than
    lost. Raises TempFail with the envelope's error line, PermFail where the configured way has no TLS for such a
    message.
    """
    require_tls = require_tls and bool(envelope.sender)
    url = parse_relay_url(smarthost) if smarthost else None
    if smarthost and url is None:
        log.warn(f"Failed to parse smarthost {smarthost}")
        raise TempFail("Cannot parse smarthost")
    if url is not None and url.label and not action.auth:
        log.warn(f'No auth table on action "{action.name}" for relay {smarthost}')
        raise TempFail("No auth table for relaying")
    policy = tls_policy(url, action, require_tls=require_tls)
    if policy is None and require_tls:
        raise PermFail(f"{REQUIRETLS_FAILED}: no TLS for this destination is configured")
    if policy is None:
        log.warn(f'TLS required for action "{action.name}"')
        raise TempFail("TLS required for relaying")
    backup = (action.backup_mx or envelope.smtpname) if action.backup and url is None else ""
    domain = url.host if url is not None else envelope.dest_domain
    return Plan(
        generation=generation,
        action=action,
        url=url,
        policy=policy,
        domain=domain.lower(),
        backup_name=backup.lower(),
        require_tls=require_tls,
    )


def sender_for(action: Relay, options: Srs, envelope: Envelope, now: float) -> str:
    """MAIL FROM: rewritten by `mail-from`, then by SRS where mail is forwarded. The null sender stays null."""
    sender = envelope.sender
    user, at, domain = sender.rpartition("@")
    if not at or not user:
        return sender
    if action.mail_from:
        new_user, at, new_domain = action.mail_from.rpartition("@")
        if not at:
            new_user, new_domain = action.mail_from, ""
        sender = f"{new_user or user}@{new_domain or domain}"
    forwarded = envelope.rcpt != envelope.dest and "@" in envelope.rcpt
    if action.srs and options.key and forwarded:
        # The domain becomes part of a local part, and those have no other form.
        return srs.encode(ascii_address(sender) or sender, envelope.rcpt.rpartition("@")[2], key=options.key, now=now)
    return sender
