"""The events of local deliveries (`mda`, ours): what became of each attempt, told once it is on disk.

Made in the queue role, which alone knows what is durable; whom they go to is decided by `filters/reports`.
"""

from collections.abc import Callable

from pillarbox.conf.model import Config, Local
from pillarbox.filters.reports import Reports
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result
from pillarbox.mda.jobs import method_of

_RESULTS = {Result.OK: "ok", Result.TEMPFAIL: "tempfail"}
_WORDS = {Result.OK: "Delivered", Result.LOOP: "Loop detected"}
_EXPIRED = "Envelope expired"


class DeliveryEvents:
    """Implements `roles.delivery.Witness`. `reports_for(generation, session)`: None where nobody listens."""

    def __init__(
        self, *, config: Config, reports_for: Callable[[int, int], Reports | None], now: Callable[[], float]
    ) -> None:
        self._config = config
        self._reports_for = reports_for
        self._now = now

    def configure(self, config: Config) -> None:
        """A new configuration."""
        self._config = config

    def ended(self, envelope: Envelope, outcome: Outcome) -> None:
        """See `Witness.ended`."""
        text = outcome.errorline or _WORDS.get(outcome.result, "")
        self._tell(envelope, outcome.session, _RESULTS.get(outcome.result, "permfail"), text)

    def expired(self, envelope: Envelope) -> None:
        """See `Witness.expired`."""
        self._tell(envelope, 0, "permfail", _EXPIRED)

    def _tell(self, envelope: Envelope, session: int, result: str, text: str) -> None:
        reports = self._reports_for(self._config.generation, session) if envelope.kind is Kind.MDA else None
        if reports is not None:
            reports.delivery(
                envelope.msgid,
                envelope.evpid,
                result=result,
                method=self._method(envelope),
                user=envelope.mda_user or envelope.dest_user,
                delay=max(0, int(self._now()) - envelope.ctime),
                text=text,
            )

    def _method(self, envelope: Envelope) -> str:
        """How it is delivered, "" where the action is not in the configuration any more."""
        action = self._config.actions.get(envelope.dispatcher)
        if not isinstance(action, Local):
            return ""
        return method_of(action, envelope.mda_exec, self._config.mda_wrappers.get(action.wrapper, ""))
