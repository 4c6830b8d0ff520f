"""One SMTP session in the bridge: when the milter is asked, what holds when it cannot be, what its verdicts mean here.

The mail server waits for every answer, so each comes within a time. A milter that fails is given up for the message it
fails in; the next message gets a new connection, which first hears who the client is.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pillarbox.milter import macros
from pillarbox.milter.client import Gone, Milter, MilterError
from pillarbox.milter.dialogue import ACCEPT, CONTINUE, DISCARD, Dialogue, Outcome, Verdict
from pillarbox.milter.envelope import EnvelopeChange, changed_envelope, describe, envelope_of
from pillarbox.milter.facts import Facts, Transaction
from pillarbox.milter.macros import Macros
from pillarbox.milter.message import JUNK, Message, Returned, TooBig

_log = logging.getLogger("pillarbox.milter")

TOO_BIG = Verdict(Outcome.REFUSE, "552 5.3.4 Message too big")
NO_ROOM = Verdict(Outcome.REFUSE, "451 4.3.1 Please try again later")
UNABLE = Verdict(Outcome.REFUSE, "451 4.3.5 System incorrectly configured, please try again later")
DROPPED = Verdict(Outcome.REFUSE, "550 5.7.1 Message refused")
_NAMED = 10  # changes of an envelope that the log names
# What is said when no answer can be had of the milter.
ON_ERROR = {
    "tempfail": Verdict(Outcome.REFUSE, "451 4.7.1 Service unavailable, please try again later"),
    "reject": Verdict(Outcome.REFUSE, "550 5.7.1 Service unavailable"),
    "accept": ACCEPT,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the postmaster chose. `answer`: seconds within which every question is answered; `largest`: bytes.

    `junk_discarded`: a message that is to vanish is delivered as junk, else it is refused; `ignore_envelope`: other
    senders and recipients than the client named are not wanted that much, else the message is refused for now.
    """

    on_error: Verdict = ON_ERROR["tempfail"]
    junk_discarded: bool = False
    ignore_envelope: bool = False
    answer: float = 50.0
    largest: int = 64 << 20


class Trouble:
    """Says once that a milter fails, and once that it answers again."""

    def __init__(self) -> None:
        self._failures = 0

    def failed(self, error: str) -> None:
        """No answer could be had."""
        if not self._failures:
            _log.warning("the milter fails: %s", error)
        self._failures += 1

    def answered(self) -> None:
        """One was."""
        if self._failures:
            _log.warning("the milter answers again; it failed %d times", self._failures)
            self._failures = 0


class Session:
    """The questions of the mail server about one client, in their order. Raises nothing.

    `facts` are to be told first what a question is about.
    """

    def __init__(
        self,
        *,
        milter: Milter,
        names: Macros,
        facts: Facts,
        policy: Policy,
        trouble: Trouble,
        now: Callable[[], datetime],
    ) -> None:
        self.facts = facts
        self._milter = milter
        self._names = names
        self._policy = policy
        self._trouble = trouble
        self._now = now
        self._dialogue: Dialogue | None = None
        self._session: Verdict | None = None  # what was decided about the session
        self._verdict: Verdict | None = None  # … and about this message
        self._refused_rcpt = False  # was the last recipient refused by the milter?
        self._receiving = False
        self._message: Message | None = None  # None while receiving: its lines pass
        self._returned: Returned | None = None  # what was kept of it, when that turns out to be too much
        self._junk = False

    async def connect(self) -> Verdict:
        """Who is there. A milter that fails here is tried again with the first message."""
        return await self._asked(self._open()) or CONTINUE

    async def helo(self) -> Verdict:
        """HELO or EHLO."""
        if self._session or not (self._dialogue and await self._dialogue.usable()):
            return self._session or CONTINUE  # it hears of it with the next message
        verdict = await self._asked(self._dialogue.helo())
        return CONTINUE if verdict is None else self._of_the_session(verdict)

    async def mail(self, sender: str) -> Verdict:
        """A message begins."""
        if self._session:
            return self._session
        self.reset()
        self.facts.transaction = Transaction(sender, self.facts.parameters())
        return self._keep(await self._asked(self._mail(self.facts.transaction)))

    async def rcpt(self, address: str) -> Verdict:
        """A recipient, which the server may still refuse."""
        self._refused_rcpt = False
        if not (dialogue := self._listening()):
            return self._settled()
        verdict = await self._asked(dialogue.rcpt(address, self.facts.parameters()))
        if verdict is not None and verdict.outcome is Outcome.REFUSE:
            self._refused_rcpt = True
            return verdict  # of this one; others may be welcome
        return self._keep(verdict)

    async def refused(self, address: str, permanent: bool) -> None:
        """The server, or another filter, refused a recipient."""
        dialogue = self._listening()
        if dialogue and dialogue.wants_refused and not self._refused_rcpt:
            values = macros.refused("5.0.0" if permanent else "4.0.0", "recipient refused")
            if await self._asked(dialogue.rcpt(address, self.facts.parameters(), values)) is None:
                self._keep(None)

    async def data(self) -> Verdict:
        """DATA."""
        if not (dialogue := self._listening()):
            return self._settled()
        return self._keep(await self._asked(dialogue.data()))

    def line(self, line: bytes) -> Iterable[bytes]:
        """A line of the message without its end; the lines that can go on their way."""
        if not self._receiving:
            self._receiving = True
            if self._listening():
                self._message = Message(limit=self._policy.largest)
            elif self._junk:
                return (JUNK, line)
        if self._returned is not None:
            return self._returned.follow(line)
        if self._message is None:
            return (line,)
        try:
            self._message.append(line)
        except TooBig as error:
            _log.warning("%s: message refused: %s", self._msgid, error)
            self._verdict = TOO_BIG
        except OSError as error:
            _log.error("%s: message refused: it cannot be kept: %s", self._msgid, error.strerror or error)
            self._verdict = NO_ROOM
        else:
            return ()
        # Nothing is left out, although it is refused in the end: the server counts on getting what it gave.
        self._returned = Returned(self._read(self._message, self._message.as_received()))
        return ()

    async def end(self) -> Iterable[bytes]:
        """The message is whole: the lines that it has become."""
        self._receiving = False
        if self._message is None and self._listening():
            self._message = Message(limit=self._policy.largest)  # without a line
        if (message := self._message) is None:
            return ()
        if self._returned is not None:
            return self._returned.rest()
        verdict = await self._asked(self._content(message))
        self._verdict = kept = self._keep(verdict)
        message.junk = message.junk or self._junk
        return self._given(message, changed=verdict is not None and kept.outcome in (Outcome.CONTINUE, Outcome.ACCEPT))

    def commit(self) -> Verdict:
        """May the message be accepted? Not one about which nothing was decided, as we did not see all of it."""
        return self._settled()

    def reset(self) -> None:
        """The message is over, however it ended."""
        self.facts.transaction = None
        self._verdict = None
        self._junk = self._receiving = False
        self._returned = None
        if self._message:
            self._message.close()
            self._message = None
        if self._dialogue:
            self._dialogue.abort()

    def disconnect(self) -> None:
        """The client is gone."""
        self.reset()
        if self._dialogue:
            self._dialogue.quit()
            self._dialogue = None

    def _listening(self) -> Dialogue | None:
        """The milter, where it wants to hear more of this message."""
        return None if self._session or self._verdict else self._dialogue

    def _settled(self) -> Verdict:
        """What holds where the milter is not asked."""
        return self._session or self._verdict or self._keep(None)

    async def _asked(self, question: Coroutine[Any, Any, Verdict]) -> Verdict | None:
        """The milter's verdict; None: it failed."""
        try:
            async with asyncio.timeout(self._policy.answer):
                verdict = await question
        except MilterError as error:
            self._failed(str(error))
        except TimeoutError:
            self._failed(f"no answer within {self._policy.answer:g} s")
        else:
            self._trouble.answered()
            if self._dialogue:
                self._dialogue.rest()
            return verdict
        return None

    def _failed(self, error: str) -> None:
        self._trouble.failed(error)
        self._close()

    def _close(self) -> None:
        if self._dialogue:
            self._dialogue.close()
            self._dialogue = None

    async def _open(self) -> Verdict:
        """A connection, on which the milter knows who the client is."""
        if not self.facts.known:  # said to be of this machine, it could be signed or let through
            raise MilterError("it is not known who the client is: it was there before this filter was started")
        connection, options = await self._milter.connect()
        self._dialogue = Dialogue(
            connection=connection,
            options=options,
            names=self._names,
            facts=self.facts,
            deadlines=self._milter.deadlines,
            now=self._now,
        )
        verdict = await self._dialogue.connect()
        if verdict.outcome is Outcome.CONTINUE and self.facts.helo:
            verdict = await self._dialogue.helo()
        return self._of_the_session(verdict)

    def _of_the_session(self, verdict: Verdict) -> Verdict:
        if verdict.outcome is not Outcome.CONTINUE:
            self._session = verdict
            if self._dialogue:
                self._dialogue.quit()
                self._dialogue = None
        return verdict

    async def _mail(self, tx: Transaction) -> Verdict:
        if self._dialogue and await self._dialogue.usable():
            try:
                return await self._dialogue.mail(tx.sender, tx.parameters)
            except Gone:
                pass  # it was started again since
        self._close()
        verdict = await self._open()
        if verdict.outcome is Outcome.CONTINUE and self._dialogue:
            return await self._dialogue.mail(tx.sender, tx.parameters)
        return verdict

    def _keep(self, verdict: Verdict | None) -> Verdict:
        """What a verdict about a message means here, remembered until the message is over. None: the milter failed."""
        verdict = verdict or self._policy.on_error
        if verdict.outcome is Outcome.DISCONNECT:
            return self._of_the_session(verdict)
        if verdict.outcome is Outcome.DISCARD:
            # No filter can take a message away that the client was told is accepted.
            self._junk = self._policy.junk_discarded
            verdict = ACCEPT if self._junk else DROPPED
        if verdict.outcome is not Outcome.CONTINUE:
            self._verdict = verdict
        return verdict

    async def _content(self, message: Message) -> Verdict:
        """Show a message to the milter, and have it change it."""
        assert self._dialogue
        try:
            message.parse(self._msgid)
            if self.facts.transaction:
                message_id = message.header.first(b"message-id") or b""
                self.facts.transaction.message_id = message_id.decode(errors="replace")
            verdict = await self._dialogue.message(message)
        except TooBig as error:
            _log.warning("%s: message refused: %s", self._msgid, error)
            self._close()
            return TOO_BIG
        except OSError as error:
            _log.error("%s: message refused: %s", self._msgid, error.strerror or error)
            self._close()
            return NO_ROOM
        if verdict.outcome in (Outcome.CONTINUE, Outcome.ACCEPT):
            return self._envelope(self._dialogue.changes) or verdict
        return verdict

    def _envelope(self, changes: list[EnvelopeChange]) -> Verdict | None:
        """What another envelope means, now that the server has the one that the client named."""
        tx = self.facts.transaction
        if not changes or tx is None:
            return None
        envelope = changed_envelope(tx, changes)
        if not envelope.recipients:
            return DISCARD
        if envelope == envelope_of(tx):
            return None
        wanted = ", ".join(map(describe, changes[:_NAMED])) + (" and more" if len(changes) > _NAMED else "")
        if self._policy.ignore_envelope:
            _log.warning("%s: not done, as a filter cannot do it: %s", self._msgid, wanted)
            return None
        _log.error("%s: message refused, as a filter cannot do this: %s", self._msgid, wanted)
        return UNABLE

    def _given(self, message: Message, *, changed: bool) -> Iterator[bytes]:
        """The lines of a message, which is given up with the last of them."""
        self._message = None
        return self._read(message, message.lines() if changed else message.as_received())

    def _read(self, message: Message, lines: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from lines
        except OSError as error:
            _log.error("%s: message refused: %s", self._msgid, error.strerror or error)
            self._verdict = NO_ROOM
        finally:
            message.close()

    @property
    def _msgid(self) -> str:
        return self.facts.transaction.msgid if self.facts.transaction else "?"
