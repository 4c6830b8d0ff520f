"""Explain: what is asked about one recipient, and what lookup says would become of it (`smtpctl explain`).

The structure is what `smtpctl explain --json` prints, under these names (docs/explain.md): a field may be added, none
changes its meaning while `version` stays. Texts are for a person and may change.
"""

from typing import TypeAlias

import msgspec

VERSION = 1
STATEMENT_MAX = 300  # characters of a rule or an action
TEXT_MAX = 2000  # characters of a value or a file


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One RCPT TO in one session. What is None is as a session from there would have it."""

    sender: str = ""
    rcpt: str | None = None  # None: the postmaster of this host
    address: str = "127.0.0.1"  # "local": the control socket, as `sendmail` uses it
    hostname: str | None = None  # the reverse name; None: asked for, where a rule looks at it
    helo: str | None = None
    username: str = ""
    tls: bool = False
    tag: str = ""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules were asked about: the question with its defaults filled in."""

    sender: str
    rcpt: str
    address: str
    local: bool  # an address of this machine, or the control socket
    hostname: str
    helo: str
    username: str
    authenticated: bool
    tls: bool
    tag: str
    listener: str  # its host name


class CriterionTried(msgspec.Struct, frozen=True, kw_only=True):
    """One criterion of a rule: `text` as it stands there, whether it holds (negation applied), and why.

    `value` was looked for in `table` (whose content is from `source`); `entry` is the one that it matched.
    """

    text: str
    holds: bool
    why: str
    value: str = ""
    table: str = ""
    source: str = ""
    entry: str = ""


class RuleTried(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: its criteria up to the first that does not hold. `text` in canonical words."""

    file: str
    line: int
    text: str
    matches: bool
    criteria: tuple[CriterionTried, ...]


class Rules(msgspec.Struct, frozen=True, kw_only=True, tag="rules", tag_field="step"):
    """The ruleset was asked about `dest`; the last rule tried is the one that matches, where one does.

    `action` "" refuses. `internal`: as mail of our own, which is always `from local`. `untold`: rules that were tried
    first and are not told about, because the explanation would become too long.
    """

    dest: str
    internal: bool
    tried: tuple[RuleTried, ...]
    action: str
    untold: int = 0


class TableAsked(msgspec.Struct, frozen=True, kw_only=True, tag="table", tag_field="step"):
    """A table was asked for a key. `value` None: it has none; `error`: it could not answer."""

    table: str
    source: str
    service: str
    key: str
    value: str | None = None
    error: str = ""


class UserAsked(msgspec.Struct, frozen=True, kw_only=True, tag="user", tag_field="step"):
    """A user base was asked for a user. `uid` None: there is none; `error`: it could not answer."""

    table: str
    source: str
    user: str
    uid: int | None = None
    gid: int = 0
    home: str = ""
    error: str = ""


class ForwardRead(msgspec.Struct, frozen=True, kw_only=True, tag="forward", tag_field="step"):
    """`~/.forward`. `state`: absent, read, insecure (not to be used), unreadable (now), unknown (not for us to see)."""

    path: str
    state: str
    content: str = ""
    reason: str = ""


class IncludeRead(msgspec.Struct, frozen=True, kw_only=True, tag="include", tag_field="step"):
    """The file of an `:include:`. `reason`: why it could not be read."""

    path: str
    content: str = ""
    reason: str = ""


class SrsDecoded(msgspec.Struct, frozen=True, kw_only=True, tag="srs", tag_field="step"):
    """A bounce to a sender that was rewritten; `decoded` None: forged, broken or too old."""

    given: str
    decoded: str | None


class MemberFound(msgspec.Struct, frozen=True, kw_only=True, tag="member", tag_field="step"):
    """A member that this one led to. `number` 0: it is there already and dropped, which is how loops end."""

    number: int
    kind: str
    text: str


class Note(msgspec.Struct, frozen=True, kw_only=True, tag="note", tag_field="step"):
    """What else there is to say."""

    text: str


class EnvelopeMade(msgspec.Struct, frozen=True, kw_only=True, tag="envelope", tag_field="step"):
    """This member became an envelope: its number in `Explanation.envelopes`."""

    number: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused", tag_field="step"):
    """This member refuses the whole recipient."""

    code: int
    text: str


Step: TypeAlias = (
    Rules
    | TableAsked
    | UserAsked
    | ForwardRead
    | IncludeRead
    | SrsDecoded
    | MemberFound
    | Note
    | EnvelopeMade
    | Refused
)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the expansion, in the order in which they are worked through. `parent` 0: the recipient itself.

    `kind`: address, user, file, command, include, error. `depth` ends at 10.
    """

    number: int
    parent: int
    depth: int
    kind: str
    text: str
    steps: tuple[Step, ...] = ()


class LocalPlan(msgspec.Struct, frozen=True, kw_only=True, tag="local", tag_field="kind"):
    """A local delivery. `method`: maildir, mbox, file, command, lmtp; `target` the path, command or destination with
    its specifiers replaced, `pattern` without; `wrapper` the command around it.
    """

    method: str
    target: str
    pattern: str
    user: str  # whom it is for
    run_as: str  # and as whom it runs
    home: str
    wrapper: str = ""
    problem: str = ""


class RelayPlan(msgspec.Struct, frozen=True, kw_only=True, tag="relay", tag_field="kind"):
    """A relay. `url` "": the MXs of `domain`. `sender`: the MAIL FROM, rewritten. `tls`: none, opportunistic, required,
    immediate. `in_turn`: several URLs that are used in turn, `url` being the next. `relay` "": it cannot be told where.
    """

    relay: str  # as the log and `show relays` have it
    domain: str
    url: str = ""
    in_turn: tuple[str, ...] = ()
    sender: str
    tls: str
    verify: bool
    helo: str
    sources: tuple[str, ...] = ()
    credentials: str = ""  # the label, where it authenticates
    backup: str = ""
    problem: str = ""


class EnvelopePlan(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope, and its action as it would run now. `asked`: the tables that were asked for it.

    `type`, `sender`, `rcpt`, `dest` and the `mda_` fields are those of `smtpctl show envelope`. `ttl` in seconds.
    """

    number: int
    member: int
    type: str
    action: str
    text: str  # the action in canonical words
    file: str
    line: int
    sender: str
    rcpt: str
    dest: str
    mda_user: str
    mda_subaddress: str
    mda_exec: str
    ttl: int
    asked: tuple[TableAsked | UserAsked, ...]
    plan: LocalPlan | RelayPlan


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `verdict`: accepted, refused, temporary, unknown (`unknown` says what could not be seen).

    `reply` is what a client would hear. `left_out`: steps and envelopes beyond what an explanation may hold.
    """

    version: int = VERSION
    verdict: str
    reply: str
    session: Session
    members: tuple[Member, ...]
    envelopes: tuple[EnvelopePlan, ...]
    unknown: tuple[str, ...] = ()
    left_out: int = 0


def one_line(text: str) -> str:
    """A statement of the configuration; a list that is written in it may be long."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= STATEMENT_MAX else text[:STATEMENT_MAX] + "…"


def visible(text: str) -> str:
    """Text that any encoding holds and no terminal obeys; long text is cut."""
    if len(text) > TEXT_MAX:
        text = text[:TEXT_MAX] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(ord(c)) for c in text)


def _escaped(code: int) -> str:
    """A byte that was no UTF-8 (surrogateescape), a control character, or one that shows nothing."""
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"
