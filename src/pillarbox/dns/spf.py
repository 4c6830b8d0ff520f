"""SPF records (RFC 7208) walked: every address and network that the records of a domain allow to send for it.

Nothing is decided about a message. What depends on one (macros, `exists`, `ptr`) cannot be listed. COMPAT: each
mechanism is worked through once in a walk, however many records name it; `redirect` is followed beside `all` too.
"""

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from pillarbox.dns.resolver import Refused
from pillarbox.errors import PillarboxError

DEPTH_MAX = 20  # records that lead to one another; RFC 7208 §4.6.4 allows ten lookups in all
QUESTIONS_MAX = 500  # about one domain
AT_ONCE = 20  # domains
EXCHANGERS_MAX = 50  # of one domain; §4.6.4 allows ten

_VERSION = "v=spf1 "
_TERM = re.compile(r"(?P<word>[a-z0-9]+)(?P<sign>[:=/]?)(?P<argument>.*)", re.IGNORECASE | re.DOTALL)
# What may be printed of somebody else's record as it stands there: `ip_network` takes any text behind a `%`.
_NETWORK = re.compile(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?")
_TARGET = re.compile(r"(?P<name>[^/]*)(?:/(?P<four>\d{1,2}))?(?:/{1,2}(?P<six>\d{1,3}))?")
_FAMILIES = {4: "A", 6: "AAAA"}


class Questions(Protocol):
    """What a walk needs of `dns/resolver`."""

    async def records(self, name: str, record_type: str) -> tuple[str, ...]:
        """The records of a name; raises TempFail and PermFail."""
        ...


class _Budget:
    """The questions that may still be asked for one domain."""

    def __init__(self) -> None:
        self.left = QUESTIONS_MAX
        self.told = False


@dataclass(frozen=True, slots=True)
class _Origin:
    """Whose record it is, and how many records led to it."""

    name: str
    depth: int
    budget: _Budget


class SpfWalk:
    """One walk over the records of any number of domains.

    `warn` is told what is left out. `complete` is False once something is because no answer came or a bound was
    reached: then a list should not take the place of an older one. `families`: 4, 6 or both.
    """

    def __init__(
        self, *, questions: Questions, warn: Callable[[str], None], families: Collection[int] = (4, 6)
    ) -> None:
        self.complete = True
        self._questions = questions
        self._warn = warn
        self._families = families
        self._seen: set[tuple[str, str]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def walk(self, domain: str) -> list[str]:
        """What a domain allows, in the order of its records: `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`."""
        async with self._turns:
            return await self._record(_Origin(domain, 0, _Budget()))

    async def _record(self, origin: _Origin) -> list[str]:
        if "%" in origin.name:
            return self._macros(origin.name)
        if origin.depth > DEPTH_MAX:
            return self._leave_out(f"{origin.name}: more than {DEPTH_MAX} records lead to it")
        texts = [t for t in await self._ask(origin, origin.name, "TXT") if t[: len(_VERSION)].lower() == _VERSION]
        found = await asyncio.gather(*(self._mechanism(origin, t) for text in texts for t in self._terms(origin, text)))
        return [network for networks in found for network in networks]

    def _terms(self, origin: _Origin, text: str) -> Iterator[re.Match[str]]:
        """The terms of a record that allow something and were not met before."""
        for word in text.split(" ")[1:]:
            if word[:1] in ("-", "~"):
                continue
            term = _TERM.fullmatch(word.lstrip("+?").removesuffix("."))
            if term is None:
                continue
            # A bare `a` or `mx` is about the domain whose record it is.
            key = ("" if term["sign"] in (":", "=") else origin.name.lower(), term[0])
            if key not in self._seen:
                self._seen.add(key)
                yield term

    async def _mechanism(self, origin: _Origin, term: re.Match[str]) -> list[str]:
        argument = term["argument"]
        match term["word"].lower() + term["sign"]:
            case "ip4:":
                return self._network(argument, 4)
            case "ip6:":
                return self._network(argument, 6)
            case "include:" | "redirect=":
                return await self._record(_Origin(argument, origin.depth + 1, origin.budget)) if argument else []
            case "a" | "a/" | "mx" | "mx/":
                return await self._hosts(origin, term["word"], origin.name + term["sign"] + argument)
            case "a:" | "mx:":
                return await self._hosts(origin, term["word"], argument)
            case "exists:":
                if "%" in argument:
                    return self._macros(argument)
                self._say(f"{argument}: exists allows whatever address asks and can't be listed")
        return []

    def _network(self, text: str, family: int) -> list[str]:
        if not _NETWORK.fullmatch(text):
            return []
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            return []
        return [text] if network.version == family and family in self._families else []

    async def _hosts(self, origin: _Origin, kind: str, target: str) -> list[str]:
        """The addresses of a domain or of its exchangers, each perhaps with the prefix lengths of `name/24//64`."""
        if "%" in target:
            return self._macros(target)
        parts = _TARGET.fullmatch(target)
        if parts is None or not parts["name"] or int(parts["four"] or 0) > 32 or int(parts["six"] or 0) > 128:
            return []
        names = [parts["name"]]
        if kind.lower() == "mx":
            names = list(await self._ask(origin, parts["name"], "MX"))[:EXCHANGERS_MAX]
        found: list[str] = []
        for family, prefix in ((4, parts["four"]), (6, parts["six"])):
            if family in self._families:
                answers = await _all(self._ask(origin, name, _FAMILIES[family]) for name in names)
                found += [f"{a}/{int(prefix)}" if prefix else a for answer in answers for a in answer]
        return found

    # -- questions, and what cannot be answered

    async def _ask(self, origin: _Origin, name: str, record_type: str) -> tuple[str, ...]:
        if not origin.budget.left:
            if not origin.budget.told:
                self._leave_out(f"{origin.name}: more than {QUESTIONS_MAX} questions")
            origin.budget.told = True
            return ()
        origin.budget.left -= 1
        try:
            return await self._questions.records(name, record_type)
        except Refused:
            return ()  # a server that knows nothing about the name
        except PillarboxError as error:
            self._leave_out(f"{name}: {error}")
            return ()

    def _leave_out(self, what: str) -> list[str]:
        self.complete = False
        self._say(what)
        return []

    def _macros(self, name: str) -> list[str]:
        # The reference's words, with the name of the function that says them.
        self._say(f"lookup_record: {name} contains macros and can't be resolved")
        return []

    def _say(self, text: str) -> None:
        """Warn on one line of printable ASCII: a record holds what its owner likes, and a terminal obeys some of it."""
        self._warn("".join(c if c.isascii() and c.isprintable() else "?" for c in text))


async def _all(questions: Iterator[Awaitable[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    return list(await asyncio.gather(*questions))
