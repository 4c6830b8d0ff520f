"""What one life of a processor was told and asked, and by whom: where its answers go, and which it still owes.

A session is known from the first that is told of it until its link-disconnect, and is that of who told this: nobody
else may tell of it, or fill the place that the sessions of others have. What is said about others is ignored,
as the reference does: sessions end while a processor thinks. Of a session that is known, only what was asked may be
answered; a token serves again once it was answered.
"""

from collections.abc import Iterator

from pillarbox.errors import TempFail
from pillarbox.filters.protocol import Violation
from pillarbox.roles.filters import SMTP_IN, WHOLE_MESSAGE, Decision, Lines, Output, Phase, Question, Result

MAX_SESSIONS = 50_000  # of a teller, known at a time; the oldest is forgotten, and what is said about it ignored
MAX_TOKENS = 1000  # of a session, answered ones included
MAX_REPORTS = 100  # about a session, that one who hears reports may make before it is told something else
REPORTS_EACH = 10  # more of them for each thing that it is told
_SLACK = 1 << 20  # bytes by which a message may grow in any case


class _Ask:
    """A question, or a message that is filtered. `since`: when an answer, or more of it, began to be due; None: not.

    `done`: it is answered, or nobody waits for it any more. `ended`: all of the message was told; `begun`: when.
    """

    __slots__ = ("begun", "done", "ended", "made", "phase", "since", "told")

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.since: float | None = None
        self.begun = 0.0
        self.done = self.ended = False
        self.told = 0  # bytes of a message
        self.made = 0


class _Session:
    """A session. `complete`: all tokens that were used are here, so that another one was never asked.

    `reports`: how many it may make of its own before it is told something else.
    """

    __slots__ = ("asked", "complete", "reports", "subsystem", "teller")

    def __init__(self, teller: str, subsystem: str) -> None:
        self.teller = teller
        self.subsystem = subsystem
        self.asked: dict[int, _Ask] = {}
        self.complete = True
        self.reports = MAX_REPORTS

    def allow(self, reports: int = REPORTS_EACH) -> None:
        self.reports = min(MAX_REPORTS, self.reports + reports)


class Asked:
    """`max_growth`: bytes by which a message may be longer when it comes back. Times are of any one clock.

    What is told of a session that is another teller's is a TempFail.
    """

    def __init__(self, *, max_growth: int) -> None:
        self._max_growth = max_growth + _SLACK
        self._sessions: dict[int, _Session] = {}
        self._of: dict[str, dict[int, None]] = {}  # the sessions of each teller, the oldest first
        self._due: dict[tuple[int, int], _Ask] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._due)

    def oldest(self) -> float | None:
        """Since when the first answer is due."""
        return next((ask.since for ask in self._due.values()), None)

    # -- what it is told

    def hears_of(self, session: int, teller: str, *, subsystem: str = SMTP_IN, echo: bool = False) -> None:
        """Something is told of this session. `echo`: a report that a filter made of its own."""
        known = self._session(session, teller, subsystem)
        if not echo:
            known.allow()

    def question(self, question: Question, teller: str, now: float) -> None:
        """It is asked this."""
        session = self._session(question.session, teller)
        session.allow()
        ask = self._new(session, question.token, question.phase)
        ask.since = now
        self._due[question.session, question.token] = ask

    def lines(self, lines: Lines, teller: str, now: float) -> None:
        """It gets some of a message: what it makes of that is due when it has all of it."""
        session = self._session(lines.session, teller)
        session.allow(REPORTS_EACH + lines.data.count(b"\n"))
        ask = session.asked.get(lines.token)
        if ask is None or (ask.ended and ask.done):
            ask = self._new(session, lines.token, Phase.DATA_LINE)
        ask.told += len(lines.data)
        ask.ended = lines.last
        if lines.last and not ask.done:
            ask.since = ask.begun = now
            self._due[lines.session, lines.token] = ask

    def ends(self, session: int) -> None:
        """The session is over."""
        known = self._sessions.pop(session, None)
        if known is None:
            return
        self._of[known.teller].pop(session)
        for token in known.asked:
            self._due.pop((session, token), None)

    def sessions_of(self, teller: str) -> list[tuple[int, str]]:
        """Those that are known, with their subsystems."""
        return [(session, self._sessions[session].subsystem) for session in self._of.get(teller, ())]

    def teller_is_gone(self, teller: str) -> None:
        """And all its sessions."""
        for session in list(self._of.get(teller, ())):
            self.ends(session)
        self._of.pop(teller, None)

    def give_up(self, before: float) -> Iterator[tuple[int, str]]:
        """Those due since before that time are not waited for any more: session and phase of each."""
        for (session, token), ask in list(self._due.items()):
            if ask.since is not None and ask.since > before:
                return
            del self._due[session, token]
            ask.done = True
            yield session, ask.phase

    def _session(self, number: int, teller: str, subsystem: str = SMTP_IN) -> _Session:
        known = self._sessions.get(number)
        if known is None:
            own = self._of.setdefault(teller, {})
            if len(own) >= MAX_SESSIONS:
                self.ends(next(iter(own)))
            own[number] = None
            known = self._sessions[number] = _Session(teller, subsystem)
        elif known.teller != teller:
            raise TempFail(f"session {number:016x} is not one of {teller}")
        return known

    def _new(self, session: _Session, token: int, phase: str) -> _Ask:
        if len(session.asked) >= MAX_TOKENS:
            session.asked = {t: ask for t, ask in session.asked.items() if not ask.done}
            session.complete = False
        ask = session.asked[token] = _Ask(phase)
        return ask

    # -- what it says

    def teller_of(self, session: int) -> str | None:
        """Who told of a session; None: it is not known."""
        known = self._sessions.get(session)
        return None if known is None else known.teller

    def may_report(self, session: int) -> bool:
        """May one who hears what filters report say more about this session? Two of them could go on for ever."""
        known = self._sessions.get(session)
        if known is None or not known.reports:
            return False
        known.reports -= 1
        return True

    def result(self, result: Result) -> str | None:
        """Who waits for this answer; None: nobody (any more). Raises Violation."""
        found = self._find(result.session, result.token)
        if found is None:
            return None
        session, ask = found
        if ask.phase == Phase.DATA_LINE:
            raise Violation("answered lines of a message with a decision")
        if ask.phase == Phase.COMMIT and result.decision is Decision.JUNK:
            raise Violation("decided junk at commit, when the message is complete")
        return session.teller if self._settle(result.session, result.token, ask) else None

    def output(self, output: Output, now: float) -> str | None:
        """Likewise for some of a message. As long as some comes, more of it is due anew, but not for ever."""
        found = self._find(output.session, output.token)
        if found is None:
            return None
        session, ask = found
        if ask.phase != Phase.DATA_LINE:
            raise Violation(f"answered {ask.phase} with lines of a message")
        ask.made += len(output.data)
        if ask.made > ask.told + self._max_growth:
            raise Violation("makes a message longer than any may be")
        if ask.done:
            return None
        if output.last:
            self._settle(output.session, output.token, ask)
        elif ask.since is not None and now < ask.begun + WHOLE_MESSAGE:
            ask.since = now
            self._due[output.session, output.token] = self._due.pop((output.session, output.token))
        return session.teller

    def _settle(self, session: int, token: int, ask: _Ask) -> bool:
        """It is answered; False: it was before, or was given up."""
        if ask.done:
            return False
        ask.done = True
        self._due.pop((session, token), None)
        return True

    def _find(self, number: int, token: int) -> tuple[_Session, _Ask] | None:
        session = self._sessions.get(number)
        if session is None:
            return None
        ask = session.asked.get(token)
        if ask is None and session.complete:
            raise Violation(f"answered what session {number:016x} did not ask (a wrong token)")
        return None if ask is None else (session, ask)
