"""How an envelope would be relayed, for `smtpctl explain`: what `plan` and `policy` decide, as values for a person."""

import io

from pillarbox.conf.model import Config, Relay
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope
from pillarbox.mta.plan import plan_relay, sender_for
from pillarbox.roles.explain import RelayPlan, visible


def preview_relay(config: Config, envelope: Envelope, action: Relay, smarthost: str, now: float) -> RelayPlan:
    """The relay of an envelope; `smarthost` "" = by MX. What keeps it from being sent is in `problem`."""
    sender = visible(sender_for(action, config.srs, envelope, now))
    try:
        plan = plan_relay(action, config.generation, envelope, smarthost, Log(io.StringIO()))
    except TempFail as error:
        return RelayPlan(
            relay="",
            domain=visible(envelope.dest_domain),
            url=visible(smarthost),
            sender=sender,
            tls="",
            verify=False,
            helo="",
            problem=visible(str(error)),
        )
    return RelayPlan(
        relay=visible(str(plan)),
        domain=visible(plan.domain),
        url=visible(smarthost),
        sender=sender,
        tls=plan.policy.tls,
        verify=plan.policy.verify,
        helo="",
        credentials=plan.url.label if plan.url is not None else "",
        backup=plan.backup_name,
    )
