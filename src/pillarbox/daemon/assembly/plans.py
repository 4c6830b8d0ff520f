"""What lookup needs of `mta` and `mda` to explain: how they would deliver. Implements `routing.planning.Plans`."""

from collections.abc import Callable

from pillarbox.conf.model import Config, Local, Relay
from pillarbox.mail.envelope import Envelope
from pillarbox.mda.preview import preview_local
from pillarbox.mta.plan import helo_name, smarthost_question
from pillarbox.mta.preview import preview_relay
from pillarbox.roles.explain import LocalPlan, RelayPlan
from pillarbox.roles.lookup import User


class Plans:
    """`libexec`: the folder of our programs; `now`: seconds since the epoch."""

    def __init__(self, *, libexec: str, now: Callable[[], float]) -> None:
        self._libexec = libexec
        self._now = now

    def smarthost_question(self, action: Relay, domain: str) -> tuple[str, str] | None:
        """See `mta.plan`."""
        return smarthost_question(action, domain)

    def helo_name(self, action: Relay, source: str, hostname: str) -> str | None:
        """See `mta.plan`."""
        return helo_name(action, source, hostname)

    def relay(self, config: Config, envelope: Envelope, action: Relay, smarthost: str) -> RelayPlan:
        """See `mta.preview`."""
        return preview_relay(config, envelope, action, smarthost, self._now())

    def local(self, config: Config, envelope: Envelope, action: Local, user: User, run_as: User) -> LocalPlan:
        """See `mda.preview`."""
        return preview_local(config, envelope, action, user, run_as=run_as, libexec=self._libexec)
