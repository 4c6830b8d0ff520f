"""What the action of an envelope would do now: the tables that it asks, and what `mta` and `mda` decide by (`Plans`).

`Plans` is made by `daemon`, for this package knows nothing of delivery. A list is never asked for its next entry, which
would take it from the mail that is due: the entry is looked at and stays.
"""

from typing import NamedTuple, Protocol

import msgspec

from pillarbox.conf.format import format_action
from pillarbox.conf.model import Config, Local, Relay
from pillarbox.errors import TempFail
from pillarbox.mail.envelope import Envelope
from pillarbox.roles import explain
from pillarbox.roles.explain import one_line, visible
from pillarbox.roles.lookup import Lookup, User
from pillarbox.routing.trace import asked, source_of, user_asked
from pillarbox.tables.program import ProgramTable
from pillarbox.tables.services import Service
from pillarbox.tables.table import MemoryTable, Table

SYSTEM_USERS = "<getpwnam>"
HOSTS_MAX = 100  # of a list of smarthosts that are told

_NO_HOST = "Cannot retrieve smarthost"  # as `mta/relay` reports it
_LATER = "it is asked for its next entry when that is due"

_Asked = explain.TableAsked | explain.UserAsked


class _Smarthost(NamedTuple):
    """Where a relay goes: by MX with the URL "". Not `known`: `problem` says why, or its table is asked later."""

    url: str = ""
    in_turn: tuple[str, ...] = ()
    known: bool = True
    problem: str = ""


class Plans(Protocol):
    """How an envelope would be delivered: the decisions of `mta` and `mda`, without doing anything."""

    def smarthost_question(self, action: Relay, domain: str) -> tuple[str, str] | None:
        """What is asked for the smarthost: the table, and the key ("": its next entry)."""
        ...

    def helo_name(self, action: Relay, source: str, hostname: str) -> str | None:
        """What a session from this source calls itself; None: the `helo-src` table has the name."""
        ...

    def relay(self, config: Config, envelope: Envelope, action: Relay, smarthost: str) -> explain.RelayPlan:
        """The relay of an envelope; `smarthost` "" = by MX."""
        ...

    def local(self, config: Config, envelope: Envelope, action: Local, user: User, run_as: User) -> explain.LocalPlan:
        """The delivery to a user, as another where the action says so."""
        ...


class Planner:
    """Plans the envelopes of one configuration."""

    def __init__(self, *, config: Config, tables: dict[str, Table], lookup: Lookup, plans: Plans) -> None:
        self._config = config
        self._tables = tables
        self._lookup = lookup
        self._plans = plans

    async def plan(self, number: int, member: int, envelope: Envelope) -> explain.EnvelopePlan:
        """An envelope, and its action as it would run now."""
        action = self._config.actions[envelope.dispatcher]
        asked_tables: list[_Asked] = []
        plan: explain.LocalPlan | explain.RelayPlan
        if isinstance(action, Local):
            plan = await self._plan_local(action, envelope, asked_tables)
        else:
            plan = await self._plan_relay(action, envelope, asked_tables)
        return explain.EnvelopePlan(
            number=number,
            member=member,
            type=str(envelope.kind),
            action=action.name,
            text=one_line(format_action(self._config, action)),
            file=action.file,
            line=action.line,
            sender=visible(envelope.sender),
            rcpt=visible(envelope.rcpt),
            dest=visible(envelope.dest),
            mda_user=visible(envelope.mda_user),
            mda_subaddress=visible(envelope.mda_subaddress),
            mda_exec=visible(envelope.mda_exec),
            ttl=action.ttl or self._config.queue.ttl,
            asked=tuple(asked_tables),
            plan=plan,
        )

    async def _plan_local(self, action: Local, envelope: Envelope, asked_tables: list[_Asked]) -> explain.LocalPlan:
        name = envelope.mda_user or envelope.dest_user
        user, problem = await self._user(action.userbase, name, asked_tables)
        run_as = user
        if action.user and user is not None:
            run_as, problem = await self._user(SYSTEM_USERS, action.user, asked_tables)
        if user is not None and run_as is not None:
            return self._plans.local(self._config, envelope, action, user, run_as)
        return explain.LocalPlan(
            method=action.method,
            target="",
            pattern=action.target,
            user=visible(name),
            run_as=action.user or visible(name),
            home="",
            problem=problem if user is None else f"delivery user '{action.user}' does not exist",
        )

    async def _user(self, table: str, name: str, asked_tables: list[_Asked]) -> tuple[User | None, str]:
        """A user, or what queue would say without one."""
        step = explain.UserAsked(table=table, source=source_of(self._config.tables.get(table)), user=visible(name))
        try:
            user = await self._lookup.user(self._config.generation, table, name)
        except TempFail as failure:
            asked_tables.append(user_asked(step, None, str(failure)))
            return None, "Temporary failure in user lookup"
        asked_tables.append(user_asked(step, user))
        return user, "Permanent failure in user lookup" if user is None else ""

    async def _plan_relay(self, action: Relay, envelope: Envelope, asked_tables: list[_Asked]) -> explain.RelayPlan:
        smarthost = await self._smarthost(action, envelope, asked_tables)
        plan = self._plans.relay(self._config, envelope, action, smarthost.url)
        if not smarthost.known:
            plan = msgspec.structs.replace(plan, relay="", domain="", tls="", verify=False, problem=smarthost.problem)
        sources = await self._sources(action, asked_tables)
        helo = await self._helo(action, sources[0] if sources else "", asked_tables)
        return msgspec.structs.replace(plan, in_turn=smarthost.in_turn, sources=sources, helo=helo)

    async def _smarthost(self, action: Relay, envelope: Envelope, asked_tables: list[_Asked]) -> _Smarthost:
        question = self._plans.smarthost_question(action, envelope.dest_domain)
        if question is None:
            return _Smarthost(url=action.host)
        name, key = question
        if not key:
            return self._next_host(name, asked_tables)
        url, error = "", ""
        try:
            url = await self._lookup.relay_url(self._config.generation, name, key)
        except TempFail as failure:
            error = str(failure)
        asked_tables.append(self._asked(name, Service.RELAYHOST, key, url or None, error=error))
        return _Smarthost(url=url) if url else _Smarthost(known=False, problem=_NO_HOST)

    def _next_host(self, name: str, asked_tables: list[_Asked]) -> _Smarthost:
        """Whose turn it is; only a list in memory can be looked at without taking the turn."""
        table = self._tables[name]
        if not isinstance(table, MemoryTable):
            asked_tables.append(self._asked(name, Service.RELAYHOST, "", None, error=_LATER))
            return _Smarthost(known=False)
        url = table.upcoming()
        asked_tables.append(self._asked(name, Service.RELAYHOST, "", url))
        if not url:
            return _Smarthost(known=False, problem=_NO_HOST)
        return _Smarthost(url=url, in_turn=tuple(map(visible, table.all_keys()[:HOSTS_MAX])))

    async def _sources(self, action: Relay, asked_tables: list[_Asked]) -> tuple[str, ...]:
        """The addresses to send from: none where the system chooses, or a program is asked when it runs."""
        if not action.src:
            return ()
        if isinstance(self._tables[action.src], ProgramTable):
            asked_tables.append(self._asked(action.src, Service.SOURCE, "", None, error=_LATER))
            return ()
        try:
            found = await self._lookup.source_addresses(self._config.generation, action.src)
        except TempFail as failure:
            asked_tables.append(self._asked(action.src, Service.SOURCE, "", None, error=str(failure)))
            return ()
        asked_tables.append(self._asked(action.src, Service.SOURCE, "", ", ".join(found)))
        return tuple(found)

    async def _helo(self, action: Relay, source: str, asked_tables: list[_Asked]) -> str:
        helo = self._plans.helo_name(action, source, self._config.hostname)
        if helo is not None:
            return helo
        error = ""
        try:
            helo = await self._lookup.host_name(self._config.generation, action.helo_src, source)
        except TempFail as failure:
            error = str(failure)
        asked_tables.append(self._asked(action.helo_src, Service.ADDRNAME, source, helo or None, error=error))
        return helo or ""

    def _asked(
        self, table: str, service: Service, key: str, value: str | None, *, error: str = ""
    ) -> explain.TableAsked:
        return asked(table, source_of(self._config.tables.get(table)), service, key, value, error=error)
