"""An explanation as lines for a person. Pure: values in, text out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pillarbox.cli.display import duration
from pillarbox.roles.explain import (
    EnvelopeMade,
    EnvelopePlan,
    Explanation,
    ForwardRead,
    IncludeRead,
    LocalPlan,
    Member,
    MemberFound,
    Note,
    Refused,
    RelayPlan,
    Rules,
    RuleTried,
    Session,
    SrsDecoded,
    TableAsked,
    UserAsked,
)

_RED, _GREEN, _YELLOW, _BOLD, _DIM = "31", "32", "33", "1", "2"
_VERDICT_COLOURS = {"accepted": _GREEN, "refused": _RED}


@dataclass(frozen=True, slots=True)
class Style:
    """Colours, or none."""

    colour: bool = False

    def paint(self, text: str, code: str) -> str:
        """The text in a colour."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def explained_lines(explanation: Explanation, style: Style) -> Iterator[str]:
    """The whole of it: the session, each member with its steps, the envelopes, the answer."""
    yield from _session_lines(explanation.session, style)
    for member in explanation.members:
        yield ""
        yield from _member_lines(member, style)
    for envelope in explanation.envelopes:
        yield ""
        yield from _envelope_lines(envelope, style)
    yield ""
    for unknown in explanation.unknown:
        yield style.paint(f"Not seen: {unknown}", _YELLOW)
    if explanation.left_out:
        yield style.paint(f"Left out: {explanation.left_out} more steps or envelopes", _YELLOW)
    count = len(explanation.envelopes)
    made = f", {count} envelope{'s' if count != 1 else ''}" if explanation.envelopes else ""
    verdict = explanation.verdict.capitalize()
    yield style.paint(f"{verdict}{made}: {explanation.reply}", _VERDICT_COLOURS.get(explanation.verdict, _YELLOW))


def _session_lines(session: Session, style: Style) -> Iterator[str]:
    yield f"{style.paint('From', _BOLD)}    <{session.sender}>"
    yield f"{style.paint('To', _BOLD)}      <{session.rcpt}>"
    where = "the control socket" if session.address == "local" else session.address
    facts = [where + (f" ({session.hostname})" if session.hostname else "")]
    facts.append("of this host" if session.local else "not of this host")
    facts.append(f"HELO {session.helo}" if session.helo else "no HELO")
    if session.username:
        facts.append(f"authenticated as {session.username}")
    elif not session.authenticated:
        facts.append("not authenticated")
    facts.append("TLS" if session.tls else "no TLS")
    if session.tag:
        facts.append(f"tag {session.tag}")
    yield f"{style.paint('Client', _BOLD)}  {', '.join(facts)}"


def _member_lines(member: Member, style: Style) -> Iterator[str]:
    above = f"  (from {member.parent})" if member.parent else ""
    yield style.paint(f"{member.number}  {member.kind} {member.text}", _BOLD) + style.paint(above, _DIM)
    for step in member.steps:
        for line in _STEPS[type(step)](step, style):
            yield f"   {line}"


def _rules(step: Rules, style: Style) -> Iterator[str]:
    yield f"rules for {step.dest}" + (", as mail of our own" if step.internal else "")
    if step.untold:
        yield f"  ({step.untold} rules that did not match)"
    for rule in step.tried:
        yield from _rule(rule, style)
    if step.action:
        yield f"  => action {step.action}"
    else:
        matched = step.tried and step.tried[-1].matches
        yield f"  => {'the rule rejects' if matched else 'no rule matches: rejected'}"


def _rule(rule: RuleTried, style: Style) -> Iterator[str]:
    mark, colour = ("+", _GREEN) if rule.matches else ("-", _RED)
    yield "  " + style.paint(f"{mark} {_place(rule.file, rule.line)}{rule.text}".rstrip(": "), colour)
    for criterion in rule.criteria:
        entry = f", by its entry {criterion.entry}" if criterion.entry and criterion.entry != criterion.value else ""
        mark = "yes" if criterion.holds else "no "
        yield f"      {mark} {criterion.text}: {criterion.why}{entry}"


def _table(step: TableAsked, style: Style) -> Iterator[str]:
    key = f" {step.key}" if step.key else ""
    answer = f"-> {step.value}" if step.value is not None else "no such entry"
    if step.error:
        answer = style.paint(f"no answer: {step.error}", _YELLOW)
    yield f"table {_named(step.table, step.source)}: {step.service}{key} {answer}"


def _user(step: UserAsked, style: Style) -> Iterator[str]:
    if step.error:
        answer = style.paint(f"no answer: {step.error}", _YELLOW)
    elif step.uid is None:
        answer = "no such user"
    else:
        answer = f"uid {step.uid}, gid {step.gid}, home {step.home or '(none)'}"
    yield f"users {_named(step.table, step.source)}: {step.user}: {answer}"


def _forward(step: ForwardRead, style: Style) -> Iterator[str]:
    state = {"absent": "there is none", "read": "read"}.get(step.state, step.reason)
    yield f"{step.path}: " + (state if step.state in ("absent", "read") else style.paint(state, _YELLOW))
    yield from _content(step.content)


def _include(step: IncludeRead, style: Style) -> Iterator[str]:
    reason = style.paint(f"cannot be read: {step.reason}", _YELLOW)
    yield f":include: {step.path}: {reason if step.reason else 'read'}"
    yield from _content(step.content)


def _content(text: str) -> Iterator[str]:
    for line in text.rstrip("\n").split("\n") if text else ():
        yield f"  | {line}"


def _srs(step: SrsDecoded, style: Style) -> Iterator[str]:
    if step.decoded is None:
        yield style.paint(f"SRS: {step.given} is forged, broken or too old, and stays as it is", _YELLOW)
    else:
        yield f"SRS: {step.given} stands for {step.decoded}"


def _found(step: MemberFound, style: Style) -> Iterator[str]:
    what = f"{step.kind} {step.text}"
    yield f"-> {step.number} {what}" if step.number else f"-> {what}: is there already, dropped"


def _note(step: Note, style: Style) -> Iterator[str]:
    yield step.text


def _made(step: EnvelopeMade, style: Style) -> Iterator[str]:
    yield f"=> envelope {step.number}"


def _refused(step: Refused, style: Style) -> Iterator[str]:
    yield style.paint(f"=> refuses the recipient: {step.code} {step.text}", _RED)


_STEPS: dict[type, Callable[[Any, Style], Iterator[str]]] = {
    Rules: _rules,
    TableAsked: _table,
    UserAsked: _user,
    ForwardRead: _forward,
    IncludeRead: _include,
    SrsDecoded: _srs,
    MemberFound: _found,
    Note: _note,
    EnvelopeMade: _made,
    Refused: _refused,
}


def _envelope_lines(envelope: EnvelopePlan, style: Style) -> Iterator[str]:
    user = f", user {envelope.mda_user}" if envelope.mda_user else ""
    tag = f", sub-address {envelope.mda_subaddress}" if envelope.mda_subaddress else ""
    head = f"Envelope {envelope.number}  {envelope.type} to <{envelope.dest}>{user}{tag}"
    yield style.paint(head, _BOLD) + style.paint(f"  (from {envelope.member})", _DIM)
    place = _place(envelope.file, envelope.line)
    yield f"   {place}{envelope.text}"
    for step in envelope.asked:
        for line in _STEPS[type(step)](step, style):
            yield f"   {line}"
    plan = envelope.plan
    lines = _local(plan) if isinstance(plan, LocalPlan) else _relay(plan, envelope)
    for line in lines:
        yield f"   {line}"
    yield f"   kept for {duration(envelope.ttl)}"
    if plan.problem:
        yield "   " + style.paint(f"fails as things are: {plan.problem}", _YELLOW)


def _local(plan: LocalPlan) -> Iterator[str]:
    if plan.target:
        words = {"command": "runs", "lmtp": "speaks LMTP with"}.get(plan.method, f"writes {plan.method}")
        yield f"{words} {plan.target}"
    if plan.wrapper:
        yield f"within the wrapper: {plan.wrapper}"
    yield f"as {plan.run_as}" + (f", in {plan.home}" if plan.home else "")


def _relay(plan: RelayPlan, envelope: EnvelopePlan) -> Iterator[str]:
    if plan.in_turn:
        yield f"the next of {len(plan.in_turn)} hosts that take turns: {plan.url}"
    if plan.relay:
        yield f"relays to {plan.url}" if plan.url else f"relays to the MXs of {plan.domain}"
        verified = "verified" if plan.verify else "not verified"
        yield f"TLS {plan.tls}" + (f", certificate {verified}" if plan.tls != "none" else "") + f", HELO {plan.helo}"
    if plan.sources:
        yield f"from {', '.join(plan.sources)}"
    if plan.credentials:
        yield f"authenticates with the credentials of {plan.credentials}"
    if plan.backup:
        yield f"as a backup: only to MXs before {plan.backup}"
    rewritten = "" if plan.sender == envelope.sender else f", rewritten from <{envelope.sender}>"
    yield f"MAIL FROM <{plan.sender}>{rewritten}"
    if plan.relay:
        yield f"in the log {plan.relay}"


def _named(table: str, source: str) -> str:
    shown = table if table.startswith("<") else f"<{table}>"
    return f"{shown} ({source})" if source else shown


def _place(file: str, line: int) -> str:
    return f"{file}:{line}: " if line else ""
