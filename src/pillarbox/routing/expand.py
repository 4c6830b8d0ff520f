"""Expansion: what becomes of one RCPT TO, before it is answered.

The recipient is put to the ruleset; a relay action makes an envelope at once, a local one goes on to virtual
entries or to a user name, its aliases, its entry in the user base and its ~/.forward. Each of these may yield further
addresses, which start over as mail of our own. The members of the tree are worked through breadth first; one that is
there already is dropped, which is what ends loops; the depth is limited.

The outcome is envelopes, or a refusal of the whole recipient: one bad member refuses all of it.
"""

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from pillarbox.conf.model import Config, Local, Relay
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail import srs
from pillarbox.mail.envelope import Envelope, Flag, Kind
from pillarbox.roles.lookup import Recipient, User
from pillarbox.routing.aliases import AliasError, Member, parse_members, read_lines
from pillarbox.routing.aliases import Kind as Form
from pillarbox.routing.ruleset import NO_NAME, Decider, Subject
from pillarbox.routing.trace import Observer
from pillarbox.tables.services import Service
from pillarbox.tables.table import Table

MAX_DEPTH = 10
MAX_FORWARD_SIZE = 4096  # bytes; a ~/.forward of this size is too large
MAX_FORWARD_NODES = 100
MAX_NODES = 100_000  # members of one recipient's tree: a bound, not a policy
NODES_A_TURN = 500  # then others get the loop

Refusal = tuple[int, str]
INVALID: Refusal = (550, "Invalid recipient")
TEMPORARY: Refusal = (451, "Temporary failure")
LIST_TEMPFAIL: Refusal = (424, "4.2.4 Mailing list expansion problem")
LIST_PERMFAIL: Refusal = (524, "5.2.4 Mailing list expansion problem")


class _Node:
    """A member of the tree. `text` is the user, address, path, command or refusal; `user` the name without its tag.

    `home` is the nearest address above: the envelope's destination. `owner` is the nearest user name above.
    """

    __slots__ = (
        "action", "depth", "form", "forwarded", "home", "key", "owner", "parent", "same_user", "subaddress", "text",
        "uid", "user",
    )  # fmt: skip

    def __init__(self, member: Member, parent: "_Node | None", action: Local | None) -> None:
        self.form, self.text = member
        self.parent = parent
        self.action = action
        self.user = self.text
        self.subaddress = ""
        self.uid: int | None = None  # known once the user was found
        self.forwarded = False  # its ~/.forward was read
        self.same_user = False
        self.home: _Node | None = None
        self.owner: _Node | None = None
        self.depth = 0
        if parent is not None:
            self.depth = parent.depth + 1
            self.home = parent if parent.form is Form.ADDRESS else parent.home
            self.owner = parent if parent.form is Form.USER else parent.owner
            self.same_user = self.form is Form.USER and parent.form is Form.USER and parent.user == self.text
        self.key = self._key()

    def _key(self) -> tuple[object, ...]:
        """What makes two members the same: for one destination once; commands and files once for each user."""
        owner = id(self.owner) if self.form in (Form.FILE, Form.COMMAND) else 0
        return self.form, self.same_user, self.uid is not None, self.text, id(self.home), owner


class Expander:
    """Expands recipients by one configuration. All it asks for is handed in.

    `read_forward` and `read_include` return a file's content; `find_user` asks a user base. They may raise TempFail,
    `read_forward` also PermFail for a file that must not be used.
    """

    def __init__(
        self,
        *,
        config: Config,
        ruleset: Decider,
        tables: dict[str, Table],
        find_user: Callable[[str, str], Awaitable[User | None]],
        read_forward: Callable[[User], Awaitable[bytes | None]],
        read_include: Callable[[str], Awaitable[bytes]],
        log: Log,
        now: Callable[[], float],
        libexec: str,
        alias_user: str,
    ) -> None:
        self.config = config
        self.ruleset = ruleset
        self.tables = tables
        self.find_user = find_user
        self.read_forward = read_forward
        self.read_include = read_include
        self.log = log
        self.now = now
        self.libexec = libexec
        self.alias_user = alias_user
        self.delimiter = config.smtp.sub_addr_delim[:1]
        self._serial = itertools.count(secrets.randbits(32))

    async def expand(self, recipient: Recipient, observer: Observer | None = None) -> list[Envelope] | Refusal:
        """The envelopes of a recipient (at least one), or the code and the words of the refusal.

        An `observer` is told what is done, as it is done (`smtpctl explain`).
        """
        return await _Expansion(self, recipient, observer).run()

    def new_evpid(self, msgid: int) -> int:
        """An envelope id of the message. The lower half looks random and repeats only after 2**32 envelopes."""
        low = 0
        while low == 0:
            low = next(self._serial) * 0x9E3779B1 & 0xFFFFFFFF  # odd factor: a permutation
        return msgid << 32 | low


class _Expansion:
    """One run."""

    def __init__(self, expander: Expander, recipient: Recipient, observer: Observer | None) -> None:
        self._expander = expander
        self._observer = observer
        self._recipient = recipient
        self._actions = expander.config.actions
        self._queue: deque[_Node] = deque()
        self._seen: set[tuple[object, ...]] = set()
        self._nodes = 0
        self._envelopes: list[Envelope] = []
        self._internal = recipient.client.internal

    async def run(self) -> list[Envelope] | Refusal:
        self._insert(Member(Form.ADDRESS, self._recipient.rcpt), None, None)
        worked = 0
        while self._queue:
            node = self._queue.popleft()
            if self._observer is not None:
                self._observer.working(node)
            refusal = await self._work(node)
            if refusal is not None:
                return refusal
            worked += 1
            if worked % NODES_A_TURN == 0:
                await asyncio.sleep(0)
        return self._envelopes or LIST_PERMFAIL

    async def _work(self, node: _Node) -> Refusal | None:
        if node.depth >= MAX_DEPTH:
            if self._observer is not None:
                self._observer.note(
                    f"deeper than {MAX_DEPTH - 1} steps below the recipient: a loop, or too long a chain"
                )
            return LIST_PERMFAIL
        if self._nodes > MAX_NODES:
            return LIST_TEMPFAIL
        if node.form is Form.ADDRESS:
            return await self._work_address(node)
        action = node.action
        assert action is not None  # only addresses have none
        if node.form is Form.USER:
            return await self._work_user(node, action)
        return self._work_other(node, action)

    def _insert(self, member: Member, parent: _Node | None, action: Local | None) -> None:
        node = _Node(member, parent, action)
        new = node.key not in self._seen
        if self._observer is not None:
            self._observer.inserted(node, new=new)
        if new:
            self._seen.add(node.key)
            self._queue.append(node)
            self._nodes += 1

    # -- addresses

    async def _work_address(self, node: _Node) -> Refusal | None:
        expander = self._expander
        self._decode_srs(node)
        rule = await expander.ruleset.decide(self._subject(node))
        if rule is None or not rule.action:
            return INVALID
        action = self._actions[rule.action]
        if isinstance(action, Relay):
            self._submit(Kind.MTA, action.name, node.text)
            return None
        if not action.virtual:
            self._insert(Member(Form.USER, node.text.rpartition("@")[0].lower()), node, action)
            return None
        user, _, domain = node.text.rpartition("@")
        try:
            found = await self._insert_virtual(node, action, user.lower(), domain.lower())
        except (TempFail, AliasError) as error:
            return self._list_failed(node, error)
        return None if found else LIST_PERMFAIL

    def _decode_srs(self, node: _Node) -> None:
        """A bounce to a sender that we rewrote goes to the sender itself, and is mail of our own from here on."""
        keys = self._expander.config.srs
        if not keys.key or self._recipient.sender or not srs.is_srs(node.text):
            return
        known = (keys.key, keys.backup_key)
        decoded = srs.decode(node.text, keys=known, ttl=keys.ttl, now=self._expander.now())
        if self._observer is not None:
            self._observer.decoded(node.text, decoded)
        if decoded is None:
            self._expander.log.warn(f"SRS failed to decode: {node.text}")
            return
        node.text = decoded
        self._internal = True

    def _subject(self, node: _Node) -> Subject:
        client = self._recipient.client
        return Subject(
            sender=self._recipient.sender,
            dest=node.text,
            address=client.address,
            local=client.local,
            internal=self._internal or node.parent is not None,
            hostname=client.hostname,
            tag=client.tag,
            helo=client.helo,
            tls=client.tls,
            authenticated=self._is_authenticated(),
            username=client.username,
        )

    def _is_authenticated(self) -> bool:
        client = self._recipient.client
        return bool(client.username) or client.internal or client.address == "local"

    # -- users

    async def _work_user(self, node: _Node, action: Local) -> Refusal | None:
        if not node.same_user and (action.alias or action.virtual):
            try:
                found = await self._insert_aliases(node, action)
            except (TempFail, AliasError) as error:
                return self._list_failed(node, error)
            if found:
                return None
        node.user, _, node.subaddress = node.text.partition(self._expander.delimiter)
        try:
            user = await self._expander.find_user(action.userbase, node.user)
        except TempFail as error:
            self._expander.log.warn(f"expand: {node.user}: {error}")
            return TEMPORARY
        if user is None:
            return INVALID
        self._found_user(node, user)
        assert node.parent is not None  # a user name always comes from somewhere
        if (node.same_user and node.parent.forwarded) or (action.user and action.user != node.user):
            if self._observer is not None:
                self._observer.note(f".forward of {node.user} is not read: {_reason(node, action)}")
            self._submit_local(node, action)
            return None
        return await self._work_forward(node, action, user)

    def _found_user(self, node: _Node, user: User) -> None:
        # COMPAT: a user who was found is another member than the bare name, so that two ~/.forward that name each
        # other end by depth (524), while two aliases that do end because nothing new comes up. It also means that a
        # user whom an alias deeper down names again gets a second copy.
        self._seen.discard(node.key)
        node.uid = user.uid
        node.key = node._key()
        self._seen.add(node.key)

    async def _work_forward(self, node: _Node, action: Local, user: User) -> Refusal | None:
        node.forwarded = True
        before = self._nodes
        try:
            data = await self._expander.read_forward(user)
            if data is not None:
                self._insert_forward(node, action, data)
        except PermFail:
            return LIST_PERMFAIL
        except (TempFail, AliasError) as error:
            return self._list_failed(node, error)
        if self._nodes > before:
            return None
        if action.method == "forward-only":
            return LIST_TEMPFAIL
        if action.method == "expand-only":
            return LIST_PERMFAIL
        self._submit_local(node, action)
        return None

    def _insert_forward(self, node: _Node, action: Local, data: bytes) -> None:
        log = self._expander.log
        if not data:
            log.info("info: forward file is empty")
        if len(data) >= MAX_FORWARD_SIZE:
            log.info("info: forward file exceeds max size")
            raise TempFail(f"~/.forward of {node.user} has {MAX_FORWARD_SIZE} bytes or more")
        for line in read_lines(data):
            try:
                self._insert_all((m for m in parse_members(line) if m.kind is not Form.INCLUDE), node, action)
            except AliasError:
                log.info("info: parse error in forward file")
                raise
            if self._nodes > MAX_FORWARD_NODES:
                log.info("info: forward file expanded too many nodes")
                raise TempFail(f"~/.forward of {node.user} names too many recipients")

    # -- aliases

    async def _insert_aliases(self, node: _Node, action: Local) -> bool:
        if action.virtual:
            return await self._insert_virtual(node, action, node.text.lower(), "")
        table = self._expander.tables[action.alias]
        name = node.text.lower()
        value = await table.lookup(Service.ALIAS, name)
        if value is None and self._expander.delimiter in name:
            value = await table.lookup(Service.ALIAS, name.partition(self._expander.delimiter)[0])
        return value is not None and await self._insert_value(node, action, value)

    async def _insert_virtual(self, node: _Node, action: Local, user: str, domain: str) -> bool:
        """The first of: user+tag@domain, user@domain, user+tag, user, @domain, @."""
        table = self._expander.tables[action.virtual]
        base, _, tag = user.partition(self._expander.delimiter)
        keys = [f"{base}@{domain}", base]
        if tag:
            keys = [f"{user}@{domain}", f"{base}@{domain}", user, base]
        if domain:
            keys += [f"@{domain}", "@"]
        for key in keys:
            value = await table.lookup(Service.ALIAS, key)
            if value is not None:
                return await self._insert_value(node, action, value)
        return False

    async def _insert_value(self, node: _Node, action: Local, value: str) -> bool:
        """Insert the members of an alias; False where that came to nothing (an include that cannot be read)."""
        count = 0
        for member in sorted(set(parse_members(value))):
            if member.kind is Form.INCLUDE:
                count += await self._insert_include(node, action, member.text)
            else:
                self._insert(member, node, action)
                count += 1
        return count > 0

    async def _insert_include(self, node: _Node, action: Local, path: str) -> bool:
        try:
            data = await self._expander.read_include(path)
        except TempFail as error:
            self._expander.log.warn(f'failed to open include file "{path}": {error}')
            return False
        for line in data.decode("utf-8", "surrogateescape").split("\n"):
            try:
                self._insert_all((m for m in parse_members(line) if m.kind is not Form.INCLUDE), node, action)
            except AliasError as error:
                if line.strip()[:1] != "#":
                    self._expander.log.warn(f"{path}: {error}")
        return True

    def _insert_all(self, members: Iterable[Member], node: _Node, action: Local) -> None:
        for member in members:
            self._insert(member, node, action)

    def _list_failed(self, node: _Node, error: Exception) -> Refusal:
        # Machinery that failed is an operator's business, a list that somebody wrote wrongly is that person's.
        log = self._expander.log.warn if isinstance(error, TempFail) else self._expander.log.debug
        log(f"expand: {node.text}: {error}")
        return LIST_TEMPFAIL

    # -- files, commands, errors

    def _work_other(self, node: _Node, action: Local) -> Refusal | None:
        parent = node.parent
        assert parent is not None  # these are always members of a list
        if parent.uid == 0 and node.form is not Form.ERROR:
            return TEMPORARY  # never a command or a file as root
        if action.method == "forward-only":
            return TEMPORARY
        if node.form is Form.ERROR:
            return int(node.text[:3]), node.text[4:]
        user = parent.user if parent.uid is not None else self._expander.alias_user
        command = node.text
        if node.form is Form.FILE:
            command = f"{self._expander.libexec}/mail.mboxfile -f %{{mbox.from}} {node.text}"
        elif parent.uid is None:
            self._expander.log.info(f"commands executed from aliases run with {user} privileges")
        self._submit(Kind.MDA, action.name, _home(node), mda_user=user, mda_exec=command)
        return None

    def _submit_local(self, node: _Node, action: Local) -> None:
        dest = _home(node)
        self._submit(Kind.MDA, action.name, dest, mda_user=node.user, mda_subaddress=node.subaddress)

    def _submit(
        self, kind: Kind, action: str, dest: str, *, mda_user: str = "", mda_exec: str = "", mda_subaddress: str = ""
    ) -> None:
        recipient = self._recipient
        client = recipient.client
        self._envelopes.append(
            Envelope(
                evpid=self._expander.new_evpid(recipient.msgid),
                kind=kind,
                dispatcher=action,
                sender=recipient.sender,
                rcpt=recipient.rcpt,
                dest=dest,
                ctime=int(self._expander.now()),
                tag=client.tag,
                smtpname=client.smtpname,
                helo=client.helo,
                hostname=NO_NAME[1] if client.hostname in NO_NAME else client.hostname,
                sockaddr=client.address,
                username=client.username,
                flags=Flag.AUTHENTICATED if self._is_authenticated() else Flag.NONE,
                dsn_notify=recipient.dsn_notify,
                dsn_ret=recipient.dsn_ret,
                dsn_envid=recipient.dsn_envid,
                dsn_orcpt=recipient.dsn_orcpt,
                mda_exec=mda_exec,
                mda_subaddress=mda_subaddress,
                mda_user=mda_user,
            )
        )
        if self._observer is not None:
            self._observer.submitted(self._envelopes[-1])


def _home(node: _Node) -> str:
    assert node.home is not None  # the root is an address
    return node.home.text


def _reason(node: _Node, action: Local) -> str:
    if action.user and action.user != node.user:
        return f"the action delivers as {action.user}"
    return "it was read already, and names this user itself"


def refusal_text(rcpt: str, words: str) -> str:
    """What follows the code of a refusal: the words, and the recipient as the client gave it."""
    user, _, domain = rcpt.rpartition("@")
    shown = "" if not user and domain and "@" in rcpt else rcpt.removesuffix("@")
    return f"{words}: <{shown}>"
