"""What a server asked its filters in a session, made again from the session's events. Does no I/O.

A question comes behind the event of the command it is about, and before everything that came of it. Where filters
answered at the time (`filter-response`), what was asked is known; else it was asked of every command whose reply is not
the refusal of its form: filters never hear of those.
"""

from dataclasses import dataclass, field, replace

from pillarbox.eventlog.lines import fields
from pillarbox.roles.filters import SMTP_IN, Phase, Report

HELD = 1000  # events of a command whose reply does not come

_PHASES = {
    "HELO": Phase.HELO,
    "EHLO": Phase.EHLO,
    "STARTTLS": Phase.STARTTLS,
    "AUTH": Phase.AUTH,
    "MAIL": Phase.MAIL_FROM,
    "RCPT": Phase.RCPT_TO,
    "DATA": Phase.DATA,
    "RSET": Phase.RSET,
    "QUIT": Phase.QUIT,
    "NOOP": Phase.NOOP,
    ".": Phase.COMMIT,
}  # nobody is asked about HELP and WIZ, though they may be registered
_RESPONSES = {"connected": Phase.CONNECT, "tls": Phase.STARTTLS}  # phases that filter-response calls otherwise
# Said of commands that are no good as they stand, or not now, before a filter hears of them.
_FORMAL = ("500", "501", "502", "503", "504", "530", "538", "553", "555")


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. `then`: what was answered at the time ("reject|550 no"), None: that is not in the log.

    `message`: the id of the transaction that is under way.
    """

    phase: Phase
    param: str
    time: float
    message: str = ""
    then: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """The client's message, which filters see line by line; and what is known of the session then."""

    time: float
    known: "Known"


Step = Report | Ask | Message


@dataclass(slots=True)
class Known:
    """What is known of a session so far, for the message that is made up for it, and for its end."""

    rdns: str = ""
    address: str = ""
    helo: str = ""
    sender: str = ""
    rcpts: list[str] = field(default_factory=list)
    message: str = ""  # the id of the transaction that is under way


class Story:
    """One session. Events go in, out come the same events and between them what was asked."""

    def __init__(self) -> None:
        self.known = Known()
        self._held: list[Report] = []  # the command's event, and what came since
        self._asks: list[Ask] = []  # what is asked of it, if anything is
        self._filtered: bool | None = None  # are there answers of filters in this log?
        self._chunks = False  # of a message have begun (BDAT)

    def feed(self, report: Report) -> list[Step]:
        """The next steps that are certain."""
        self._learn(report)
        if report.subsystem != SMTP_IN:
            return [report]
        if report.event in ("link-connect", "protocol-client"):
            return self._begin(report)
        if report.event == "filter-response":
            return self._answered(report)
        self._held.append(report)
        if report.event == "protocol-server":
            return self._replied(report)
        if not self._asks or report.event == "link-disconnect" or len(self._held) > HELD:
            return self.end()
        return []

    def end(self) -> list[Step]:
        """What is held, without a question."""
        self._asks = []
        held, self._held = self._held, []
        return [*held]

    def _begin(self, report: Report) -> list[Step]:
        before = self.end()
        self._held = [report]
        self._asks = self._questions(report)
        return before if self._asks else [*before, *self.end()]

    def _questions(self, report: Report) -> list[Ask]:
        if report.event == "link-connect":
            return [self._question(Phase.CONNECT, f"{self.known.rdns}|{self.known.address}", report)]
        verb, _, argument = report.text.partition(" ")
        if verb.upper() == "BDAT":
            return [self._question(phase, "", report) for phase in self._chunk(argument)]
        phase = _PHASES.get(verb.upper())
        return [] if phase is None else [self._question(phase, _param(phase, argument), report)]

    def _question(self, phase: Phase, param: str, report: Report) -> Ask:
        return Ask(phase, param, report.time, self.known.message)

    def _chunk(self, argument: str) -> list[Phase]:
        """Of a message that comes in chunks the first is like DATA, the last like the final dot."""
        first, self._chunks = not self._chunks, True
        last = argument.upper().endswith(" LAST")
        return [*([Phase.DATA] if first else []), *([Phase.COMMIT] if last else [])]

    def _answered(self, report: Report) -> list[Step]:
        """Filters answered: it was asked, whatever we thought."""
        self._filtered = True
        word, _, then = report.text.partition("|")
        try:
            phase = _RESPONSES.get(word) or Phase(word)
        except ValueError:
            return [*self.end(), report]
        ask = next((ask for ask in self._asks if ask.phase is phase), None) or self._question(phase, "", report)
        self._asks = [other for other in self._asks if other.phase is not phase]
        held, self._held = self._held, []
        return [*self._asked(held, [replace(ask, then=then)]), report]

    def _replied(self, report: Report) -> list[Step]:
        """The reply is here and no filter's answer: is there none in this log, or was nothing asked?"""
        asks, self._asks = self._asks, []
        held, self._held = self._held, []
        if asks and self._filtered is None:
            self._filtered = False
        if self._filtered or report.text.startswith(_FORMAL):
            return [*held]
        return self._asked(held, asks)

    def _asked(self, held: list[Report], asks: list[Ask]) -> list[Step]:
        """The command's event, the questions, what came of it. The lines of a message come before its final dot."""
        steps: list[Step] = [*held[:1]]
        dot = bool(held) and held[0].text == "."
        for ask in asks:
            if ask.phase is Phase.COMMIT:
                message = Message(ask.time, replace(self.known, rcpts=[*self.known.rcpts]))
                steps.insert(0 if dot else len(steps), message)
            steps.append(ask)
        return [*steps, *held[1:]]

    def _learn(self, report: Report) -> None:
        known, event = self.known, report.event
        values = fields(report)
        if event == "link-connect":
            known.rdns, known.address = values.get("rdns", ""), _address(values.get("src", ""))
        elif event == "link-identify":
            known.helo = values.get("identity", "")
        elif event == "tx-begin":
            known.message, known.sender, known.rcpts = values.get("message", ""), "", []
        elif event == "tx-mail":
            known.sender = values.get("address", "")
        elif event == "tx-rcpt" and values.get("result") == "ok":
            known.rcpts.append(values.get("address", ""))
        elif event in ("tx-reset", "link-disconnect"):
            known.message, self._chunks = "", False


def _param(phase: Phase, argument: str) -> str:
    """The argument of a command as filters get it (smtpd-filters(7), and as recorded)."""
    if phase in (Phase.MAIL_FROM, Phase.RCPT_TO):
        path = argument.partition(":")[2].lstrip()
        return path[1:].partition(">")[0] if path.startswith("<") else path.partition(" ")[0]
    return argument if phase in (Phase.HELO, Phase.EHLO, Phase.AUTH) else ""


def _address(source: str) -> str:
    """Of `address:port`, as the connect request has it: `local` for a socket of the machine."""
    return "local" if source.startswith("unix:") else source.rpartition(":")[0] or source
