"""A session's way through its filters, phase by phase: who is asked, which answers end the chain, and what that means.

`Chain.decide` gives one `Verdict` for a phase; `server/filtering` obeys it. The semantics are those of
smtpd-filters(7) and of OpenSMTPD 7.8: `proceed` goes on to the next filter, and everything else that a processor says
ends the chain. Of what builtin filters say a `report` goes on, and a `bypass` skips the rest of the phase.
"""

import asyncio
from typing import Protocol

import msgspec

from pillarbox.filters.outbox import Outbox, Unanswered
from pillarbox.filters.path import Path, Step
from pillarbox.filters.reports import Reports, one_line
from pillarbox.filters.stream import MessageStream, Stage
from pillarbox.log import Log
from pillarbox.roles.filters import Decision, Phase
from pillarbox.roles.lookup import FilterCase, FilterOutcome

UNAVAILABLE = "451 4.7.1 Message filtering is not available now, try again later"
INTERNAL_ERROR = "421 Internal server error"  # the reference's for a refusal without a code
_GROWTH = 1024 * 1024  # bytes by which a message may grow in any case

_SHOWN = {Phase.CONNECT: "connected", Phase.STARTTLS: "tls"}  # in filter-response, as the reference writes them
_OF_TRANSACTION = (Phase.RCPT_TO, Phase.DATA, Phase.DATA_LINE, Phase.COMMIT)


class Builtins(Protocol):
    """What is needed of lookup."""

    async def filter(self, case: FilterCase) -> FilterOutcome:
        """See `roles.lookup.Lookup`."""
        ...


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a phase. `param`: the reply of a refusal, or the new argument of a rewrite or report."""

    decision: Decision
    param: str = ""

    @property
    def refused(self) -> bool:
        """Is `param` the reply?"""
        return self.decision in (Decision.REJECT, Decision.DISCONNECT)


PROCEED = Verdict(Decision.PROCEED)
_TRY_AGAIN = Verdict(Decision.REJECT, UNAVAILABLE)


class Chain:
    """One session's. `reports`: where it is told what was decided.

    The session says what it knows: `rdns` ("<unknown>"), `fcrdns`, `src` as in `FilterCase`, and `username` once
    somebody has logged in.
    """

    def __init__(self, *, path: Path, session: int, reports: Reports | None, builtins: Builtins, log: Log) -> None:
        self.rdns = self.fcrdns = self.src = self.username = ""
        self._path = path
        self._session = session
        self._reports = reports
        self._builtins = builtins
        self._log = log
        self._helo = self._sender = self._rcpt = ""
        self._tokens: dict[int, int] = {}  # what serves in this session instead of a filter's usual token
        self._message: MessageStream | None = None  # the last one
        self._opened: set[tuple[Outbox, int]] = set()  # where there may be something of a message
        self._lives_at_mail: dict[Outbox, int] = {}  # of the processors
        self._lives: dict[Outbox, int] | None = None  # likewise, while there is a transaction

    def has(self, phase: Phase) -> bool:
        """Is anybody asked in this phase?"""
        return bool(self._path.steps(phase))

    @property
    def congested(self) -> bool:
        """Is there a processor that does not read what it is told? The session has to wait for `room`."""
        return any(box.full and box.processor.phases for box in self._path.boxes_asked())

    async def room(self) -> Verdict | None:
        """Wait until they have read enough; the refusal where one does not, in its time."""
        for box in self._path.boxes_asked():
            if box.full and box.processor.phases:
                try:
                    async with asyncio.timeout(box.patience):
                        await box.room()
                except TimeoutError:
                    why = f"it did not read for {box.processor.timeout:g} s"
                    verdict = self._without(box.processor.name, box, "any", why)
                    if verdict is not None:
                        return verdict
        return None

    def begin_transaction(self) -> None:
        """A processor that was started again since MAIL was asked about knows nothing of it."""
        self._lives = self._lives_at_mail

    def end_transaction(self) -> None:
        """It is over, however it ended."""
        self._lives = None

    def close(self) -> None:
        """The session is over."""
        for box, token in self._opened:
            box.forget_flow(self._session, token)

    # --- decisions --------------------------------------------------------------------------------------------------

    def proceed(self, phase: Phase, param: str = "") -> None:
        """A phase in which nobody is asked; one that comes later may be about it all the same."""
        self._note(phase, one_line(param))
        if self._reports is not None:
            self._respond(phase, PROCEED)

    async def decide(self, phase: Phase, param: str) -> Verdict:
        """Ask them in turn. Raises TempFail where a table of a builtin filter cannot be asked."""
        param = one_line(param)
        self._note(phase, param)
        verdict = await self._pass(phase, param)
        self._respond(phase, verdict)
        return verdict

    def _note(self, phase: Phase, param: str) -> None:
        """What builtin filters may ask from now on. COMPAT: the sender stays until there is another."""
        if phase in (Phase.HELO, Phase.EHLO):
            self._helo = param
        elif phase is Phase.MAIL_FROM:
            self._sender = param
            self._lives_at_mail = {box: box.processor.life for box in self._path.boxes_asked()}
        self._rcpt = param if phase is Phase.RCPT_TO else ""

    async def _pass(self, phase: Phase, param: str) -> Verdict:
        for step in self._path.steps(phase):
            if step.box is None:
                verdict = await self._ask_builtins(step, phase)
            else:
                verdict = await self._ask_processor(step, step.box, phase, param)
            if verdict is not None:
                return verdict
        return PROCEED

    async def _ask_builtins(self, step: Step, phase: Phase) -> Verdict | None:
        """None: the next one is asked."""
        outcome = await self._builtins.filter(
            FilterCase(
                generation=self._path.config.generation,
                filters=step.builtins,
                rdns=self.rdns,
                fcrdns=self.fcrdns,
                src=self.src,
                helo=self._helo,
                username=self.username,
                sender=self._sender,
                rcpt=self._rcpt,
            )
        )
        if self._reports is not None:
            for name, text in outcome.reports:
                self._reports.filter_report("builtin", name, text)
        if not outcome.decision:
            return None
        return PROCEED if outcome.decision == "bypass" else _verdict(Decision(outcome.decision), outcome.argument)

    async def _ask_processor(self, step: Step, box: Outbox, phase: Phase, param: str) -> Verdict | None:
        """None: the next one is asked."""
        try:
            self._require_same_life(box, phase)
            if phase is Phase.CONNECT:
                param = f"{self.rdns}|{param}"
            result = await box.ask(phase, self._session, self._token(step), param)
            if phase is Phase.COMMIT and result.decision is Decision.JUNK:
                raise Unanswered("it said junk at commit, when the message is complete")
        except Unanswered as error:
            self._replace_token(step.token)
            return self._without(step.name, box, phase, str(error))
        return None if result.decision is Decision.PROCEED else _verdict(result.decision, result.param)

    def _token(self, step: Step) -> int:
        return self._tokens.get(step.token, step.token)

    def _replace_token(self, usual: int) -> None:
        """An answer with the one used may still come: it must not be taken for another."""
        self._tokens[usual] = self._path.fresh_token()

    def _require_same_life(self, box: Outbox, phase: Phase) -> None:
        if phase in _OF_TRANSACTION and self._lives is not None and self._lives.get(box) != box.processor.life:
            raise Unanswered(box.processor.why or "it was started again within the transaction")

    def _without(self, name: str, box: Outbox, phase: str, why: str) -> Verdict | None:
        """A filter does not answer: the client is told to come back, or it goes on without (`fail open`: None)."""
        self._say_failed(name, phase, why, "proceed" if box.processor.fail_open else UNAVAILABLE)
        return None if box.processor.fail_open else _TRY_AGAIN

    def unregistered(self) -> Verdict:
        """Nobody knows yet what the processors want to be asked."""
        self._say_failed(",".join(self._path.missing()), Phase.CONNECT, "not registered", UNAVAILABLE)
        self._respond(Phase.CONNECT, _TRY_AGAIN)
        return _TRY_AGAIN

    def _say_failed(self, name: str, phase: str, why: str, answer: str) -> None:
        about = {"filter": name, "phase": str(phase), "reason": f'"{why}"', "result": f'"{answer}"'}
        self._log.event(self._session, "smtp filter-failed", **about)

    def _respond(self, phase: Phase, verdict: Verdict) -> None:
        if self._reports is not None:
            self._reports.filter_response(_SHOWN.get(phase, phase), verdict.decision, verdict.param)

    # --- the message ------------------------------------------------------------------------------------------------

    def open_message(self, prefix: bytes) -> "MessageStream | Verdict | None":
        """The way of a message through the filters that see it; None: there are none; or the refusal.

        `prefix`: what stands before the client's part.
        """
        for token in self._message.uncertain() if self._message is not None else ():
            self._replace_token(next((usual for usual, used in self._tokens.items() if used == token), token))
        stages: list[Stage] = []
        for step in self._path.steps(Phase.DATA_LINE):
            box = step.box
            assert box is not None  # the grammar has no builtin filters of lines
            try:
                self._require_same_life(box, Phase.DATA_LINE)
                box.require_life()
            except Unanswered as error:
                verdict = self._without(step.name, box, Phase.DATA_LINE, str(error))
                if verdict is not None:
                    self._respond(Phase.DATA_LINE, verdict)
                    return verdict
            else:
                stages.append(Stage(step.name, box, self._token(step)))
        if not stages:
            return None
        most = 2 * self._path.config.smtp.max_message_size + _GROWTH
        self._opened |= {(stage.box, stage.token) for stage in stages}
        self._message = MessageStream(session=self._session, stages=stages, prefix=prefix, most=most)
        return self._message

    def message_failed(self, stream: MessageStream) -> Verdict:
        """Lines went in, and no message came out: there is nothing that could proceed."""
        self._say_failed(stream.broken, Phase.DATA_LINE, stream.failed, UNAVAILABLE)
        self._respond(Phase.DATA_LINE, _TRY_AGAIN)
        return _TRY_AGAIN


def _verdict(decision: Decision, param: str) -> Verdict:
    """As it is obeyed: a refusal has a reply that is one, and who says 421 hangs up."""
    if decision not in (Decision.REJECT, Decision.DISCONNECT):
        return Verdict(decision, param)
    code = param[:3]
    if len(param) < 5 or param[0] not in "45" or not (code.isascii() and code.isdigit()) or param[3] != " ":
        param = INTERNAL_ERROR
    return Verdict(Decision.DISCONNECT if param.startswith("421") else decision, param)
