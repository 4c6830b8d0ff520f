"""Explain: what would become of one recipient, and why (`smtpctl explain`).

It has the real `Expander` expand the recipient, with everything that it is handed wrapped so that it is written down
(`routing/trace`); then the rules of each decision are tried one by one (`routing/criteria`), and each envelope's action
is looked at as those who deliver would (`Plans`, made by `daemon` of what `mta` and `mda` decide by). Nothing is
delivered or counted, and no list moves on to its next entry.
"""

import asyncio
from collections.abc import Callable, Set

import msgspec

from pillarbox.conf.format import format_rule
from pillarbox.conf.model import Config, Listener, Rule, TableKind
from pillarbox.errors import TempFail
from pillarbox.mail.envelope import Envelope
from pillarbox.roles.explain import (
    EnvelopePlan,
    Explanation,
    Member,
    Question,
    Refused,
    Rules,
    RuleTried,
    Session,
    TableAsked,
    UserAsked,
    one_line,
    visible,
)
from pillarbox.roles.lookup import Client, Lookup, Recipient
from pillarbox.routing.criteria import Criteria
from pillarbox.routing.expand import TEMPORARY, Expander, Refusal, refusal_text
from pillarbox.routing.planning import Planner, Plans
from pillarbox.routing.trace import (
    Decided,
    Trace,
    TracedFiles,
    TracedRuleset,
    TracedTable,
    notes_log,
    source_of,
)
from pillarbox.smtp import replies
from pillarbox.smtp.commands import BadSyntax, parse_path
from pillarbox.smtp.replies import Reply
from pillarbox.tables.services import parse_address
from pillarbox.tables.table import Table

SIZE_MAX = 3 << 20  # bytes of an explanation; what is beyond is counted
RULES_MAX = 5000  # rules that are told about in all
RULES_A_TURN = 20  # then others get the loop
ENVELOPES_MAX = 500
REVERSE_WAIT = 5.0  # seconds, as a session waits for the client's name

_encode = msgspec.msgpack.Encoder().encode


class Explainer:
    """Explains by one configuration, whose running tables and expander it is handed.

    `served`: there is a server, whose programs answer for their tables. Otherwise what depends on one is unknown.
    """

    def __init__(
        self,
        *,
        config: Config,
        tables: dict[str, Table],
        expander: Expander,
        lookup: Lookup,
        plans: Plans,
        local_addresses: Callable[[], Set[str]],
        served: bool,
    ) -> None:
        programs = {name for name, table in config.tables.items() if table.kind is TableKind.PROC}
        self.unserved = programs if not served else set()
        self.rules = config.rules
        self.planner = Planner(config=config, tables=tables, lookup=lookup, plans=plans)
        self._config = config
        self._tables = tables
        self._expander = expander
        self._lookup = lookup
        self._local_addresses = local_addresses

    async def explain(self, question: Question) -> Explanation:
        """The answer to a question. Raises TempFail where it names no address or listener that there is."""
        listener = self._listener(question)
        name = listener.hostname or self._config.hostname
        sender, rcpt = question.sender, "postmaster" if question.rcpt is None else question.rcpt
        refusal: Reply | None = None
        try:
            sender = _address(sender, name, null=True)
        except BadSyntax:
            refusal = replies.BAD_SENDER
        try:
            rcpt = _address(rcpt, name)
        except BadSyntax:
            refusal = refusal or replies.BAD_RECIPIENT
        session = await self._session(question, sender, rcpt, name)
        if refusal is not None:
            return _answer(refusal, session, (), ())
        recipient = Recipient(
            generation=self._config.generation,
            client=_client(session, listener),
            msgid=0,
            sender=sender,
            rcpt=rcpt,
        )
        return await _Run(self, recipient, session).run()

    def _listener(self, question: Question) -> Listener:
        """A listener with the tag; without one, the first that such a client could have come to."""
        at_socket = question.address == "local"
        suitable = [x for x in self._config.listeners if x.socket is at_socket]
        if question.tag:
            suitable = [x for x in self._config.listeners if x.tag == question.tag]
        if not suitable and question.tag:
            raise TempFail(f'no listener has the tag "{question.tag}"')
        return suitable[0] if suitable else Listener(id=0, socket=at_socket)

    async def _session(self, question: Question, sender: str, rcpt: str, name: str) -> Session:
        address = question.address
        if address != "local":
            found = parse_address(address)
            if found is None:
                raise TempFail(f"not an address: {address}")
            address = found
        local = address == "local" or address in self._local_addresses()
        helo = question.helo
        if helo is None:
            helo = "localhost" if local else ""
        return Session(
            sender=sender,
            rcpt=rcpt,
            address=address,
            local=local,
            hostname=await self._hostname(question.hostname, address),
            helo=helo,
            username=question.username,
            authenticated=bool(question.username) or address == "local",
            tls=question.tls,
            tag=question.tag,
            listener=name,
        )

    async def _hostname(self, given: str | None, address: str) -> str:
        """The client's name, asked for where a rule looks at it."""
        if given is not None:
            return given
        if address == "local":
            return self._config.hostname
        if not any(rule.source.kind == "rdns" for rule in self._config.rules):
            return ""
        try:
            async with asyncio.timeout(REVERSE_WAIT):
                return await self._lookup.reverse_name(address)
        except (TempFail, TimeoutError):
            return ""

    def traced(self, trace: Trace) -> Expander:
        """The expander, with all that it asks written down."""
        real, declared = self._expander, self._config.tables
        files = TracedFiles(
            trace=trace,
            tables=declared,
            find_user=real.find_user,
            read_forward=real.read_forward,
            read_include=real.read_include,
        )
        tables: dict[str, Table] = {
            name: TracedTable(table, source_of(declared.get(name)), trace) for name, table in self._tables.items()
        }
        return Expander(
            config=self._config,
            ruleset=TracedRuleset(real.ruleset, trace),
            tables=tables,
            find_user=files.find_user,
            read_forward=files.read_forward,
            read_include=files.read_include,
            log=notes_log(trace),
            now=real.now,
            libexec=real.libexec,
            alias_user=real.alias_user,
        )

    def text_of(self, rule: Rule) -> str:
        """The rule in canonical words."""
        return one_line(format_rule(self._config, rule))

    def criteria(self) -> Criteria:
        """To try rules by."""
        return Criteria(config=self._config, tables=self._tables, local_addresses=self._local_addresses)


class _Run:
    """One explanation."""

    def __init__(self, explainer: Explainer, recipient: Recipient, session: Session) -> None:
        self._explainer = explainer
        self._recipient = recipient
        self._session = session
        self._trace = Trace()
        self._criteria = explainer.criteria()
        self._room = SIZE_MAX
        self._rules = RULES_MAX
        self._left_out = 0

    async def run(self) -> Explanation:
        outcome = await self._expand()
        reply = replies.RECIPIENT_OK
        envelopes: tuple[EnvelopePlan, ...] = ()
        if isinstance(outcome, tuple):
            code, words = outcome
            text = refusal_text(self._recipient.rcpt, words)
            self._trace.add(Refused(code=code, text=visible(text)))
            reply = replies.expansion_refused(code, text)
        else:
            envelopes = await self._envelopes(outcome)
        members = await self._members()
        unseen = sorted(_asked_tables(members, envelopes) & self._explainer.unserved)
        self._trace.unknown += [f"table {name}: only a server can ask its program" for name in unseen]
        unknown = tuple(dict.fromkeys(self._trace.unknown))
        left_out = self._left_out + self._trace.left_out
        return _answer(reply, self._session, members, envelopes, unknown=unknown, left_out=left_out)

    async def _expand(self) -> list[Envelope] | Refusal:
        try:
            return await self._explainer.traced(self._trace).expand(self._recipient, self._trace)
        except TempFail as error:
            self._trace.note(str(error))
            return TEMPORARY

    async def _envelopes(self, outcome: list[Envelope]) -> tuple[EnvelopePlan, ...]:
        plans = []
        for number, envelope in enumerate(outcome[:ENVELOPES_MAX], 1):
            plan = await self._explainer.planner.plan(number, self._trace.submitter[number - 1], envelope)
            if self._fits(plan):
                plans.append(plan)
        self._left_out += len(outcome) - min(len(outcome), ENVELOPES_MAX)
        return tuple(plans)

    async def _members(self) -> tuple[Member, ...]:
        members = []
        for traced in self._trace.members:
            steps = [step if not isinstance(step, Decided) else await self._tried(step) for step in traced.steps]
            member = Member(
                number=traced.number,
                parent=traced.parent,
                depth=traced.depth,
                kind=traced.kind,
                text=traced.text,
                steps=tuple(steps),
            )
            if self._fits(member):
                members.append(member)
        return tuple(members)

    def _fits(self, part: msgspec.Struct) -> bool:
        """Is there room for it? If not it is counted as left out."""
        self._room -= len(_encode(part))
        if self._room < 0:
            self._left_out += 1
        return self._room >= 0

    async def _tried(self, decided: Decided) -> Rules:
        """The rules of a decision, each with its criteria, up to the one that matches."""
        subject, tried, untold = decided.subject, [], 0
        for rule in self._explainer.rules:
            self._rules -= 1
            if self._rules % RULES_A_TURN == 0:
                await asyncio.sleep(0)
            if self._rules < 0 and rule is not decided.rule:
                untold += 1
                continue
            criteria = tuple([c async for c in self._criteria.tried(rule, subject)])
            matches = all(criterion.holds for criterion in criteria)
            text = self._explainer.text_of(rule)
            tried.append(RuleTried(file=rule.file, line=rule.line, text=text, matches=matches, criteria=criteria))
            if rule is decided.rule or (decided.error and not matches and criteria[-1].why == decided.error):
                break
        return Rules(
            dest=visible(subject.dest),
            internal=subject.internal,
            tried=tuple(tried),
            action=decided.rule.action if decided.rule is not None else "",
            untold=untold,
        )


def _asked_tables(members: tuple[Member, ...], envelopes: tuple[EnvelopePlan, ...]) -> set[str]:
    """The names of all tables that were asked."""
    steps = [step for member in members for step in member.steps]
    rules = [rule for step in steps if isinstance(step, Rules) for rule in step.tried]
    found = {criterion.table for rule in rules for criterion in rule.criteria}
    asked = [*steps, *(step for envelope in envelopes for step in envelope.asked)]
    return found | {step.table for step in asked if isinstance(step, TableAsked | UserAsked)}


def _answer(
    reply: Reply,
    session: Session,
    members: tuple[Member, ...],
    envelopes: tuple[EnvelopePlan, ...],
    *,
    unknown: tuple[str, ...] = (),
    left_out: int = 0,
) -> Explanation:
    verdict = "accepted" if reply.positive else "temporary" if reply.code < 500 else "refused"
    return Explanation(
        verdict="unknown" if unknown else verdict,
        reply=reply.text,
        session=session,
        members=members,
        envelopes=envelopes,
        unknown=unknown,
        left_out=left_out,
    )


def _address(text: str, default_domain: str, *, null: bool = False) -> str:
    """An address as MAIL and RCPT read it, with or without its brackets; raises BadSyntax."""
    path = text if text.startswith("<") else f"<{text}>"
    address, rest = parse_path(path, default_domain=default_domain, null=null)
    if rest:
        raise BadSyntax(path)
    return address


def _client(session: Session, listener: Listener) -> Client:
    return Client(
        listener=listener.id,
        smtpname=session.listener,
        address=session.address,
        local=session.local,
        hostname=session.hostname,
        tag=session.tag,
        helo=session.helo,
        tls=session.tls,
        username=session.username,
    )
