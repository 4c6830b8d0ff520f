"""Questions to the DNS: where mail for a domain goes, and what an address is called.

A stub resolver on dnspython: it asks the configured servers (or those of resolv.conf), by TCP where an answer does
not fit, and keeps answers for their TTL. Failures are TempFail and PermFail with the reference's texts, which end up
in the queue and in bounces. /etc/hosts comes first for addresses and names, as with `lookup file bind`.
"""

import asyncio
import ipaddress
import random
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

# dnspython loads record types when it meets them, which a sandbox would refuse.
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA

from pillarbox.dns.hosts import Hosts
from pillarbox.errors import PermFail, PillarboxError, TempFail
from pillarbox.mail.idn import fold_domain
from pillarbox.roles.lookup import MxHost, ReverseName

_ROUNDS = (2.0, 5.0)  # seconds for each server, asked in turn: quickly on to the next one, then once more with patience
_ANSWER = 30.0  # seconds for all that one question needs
_REVERSE = 10.0
_TTL_MAX = 86400  # seconds; negative answers at most
_NEGATIVE_MAX = 900
_CACHE_MAX = 20_000  # answers kept
_EXCHANGERS_MAX = 50  # MX records looked at
_ADDRESSES_MAX = 100  # of all of them, the best preferences first: a zone must not cost the queue its memory
_POINTERS_MAX = 5  # PTR names tried
_PORT = 53
_NAMESERVERS_MAX = 3  # resolv.conf(5)
_PROBE = 60.0  # seconds that we remember whether there is a way into IPv6
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")

Nameserver = tuple[str, int]


class Refused(TempFail):
    """Every server that answers refuses to answer about this name."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server said: records of the type asked for, as text or as MX pairs. `secure`: it vouches for them."""

    exists: bool
    records: tuple[str, ...] = ()
    exchangers: tuple[tuple[int, str], ...] = ()
    secure: bool = False


class Resolver:
    """Resolves with `nameservers` ((address, port), in order; None: what resolv.conf names now). `now`: monotonic."""

    def __init__(
        self,
        *,
        nameservers: list[Nameserver] | None = None,
        now: Callable[[], float],
        hosts_file: str = "/etc/hosts",
        shuffle: Callable[[list[MxHost]], None] = random.shuffle,
    ) -> None:
        self._nameservers = nameservers if nameservers is not None else system_nameservers()
        self._now = now
        self._hosts = Hosts(path=hosts_file, now=now)
        self._shuffle = shuffle
        self._cache: OrderedDict[tuple[str, str], tuple[float, _Answer]] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Future[bool]] = {}
        self._probed = float("-inf")
        self._ipv6 = False

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        """See `roles.lookup.Lookup.exchangers` (RFC 5321 §5.1, RFC 7505). A domain in Unicode is asked in A-labels."""
        domain = fold_domain(domain)
        try:
            async with asyncio.timeout(_ANSWER):
                found = await (self._by_mx(domain, family) if mx else self._by_host(domain, family))
        except TimeoutError as error:
            raise TempFail("Temporary failure in MX lookup" if mx else "Host not found") from error
        self._shuffle(found)
        return sorted(found, key=lambda host: host.preference)[:_ADDRESSES_MAX]

    async def reverse_name(self, address: str) -> str:
        """The name of an address that has that address, "" where there is none or no answer in time."""
        return (await self.client_name(address)).confirmed

    async def client_name(self, address: str) -> ReverseName:
        """See `roles.lookup.Lookup.client_name`. Of several names the first that has the address, else the first."""
        try:
            canonical = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return ReverseName()
        known = self._hosts.name(str(canonical))
        if known:
            return ReverseName(name=known, fcrdns="pass")
        first = ""
        try:
            async with asyncio.timeout(_REVERSE):
                pointers = await self._ask(canonical.reverse_pointer, "PTR")
                for name in filter(_NAME_CHARACTERS.issuperset, pointers.records[:_POINTERS_MAX]):
                    first = first or name
                    if str(canonical) in await self._confirming(name, canonical):
                        return ReverseName(name=name, fcrdns="pass")
        except (TimeoutError, PillarboxError):
            return ReverseName(name=first, fcrdns="error")
        return ReverseName(name=first)

    async def records(self, name: str, record_type: str) -> tuple[str, ...]:
        """The records of a name as text, those of MX as names, the best preference first; none where there is none.

        TempFail: no answer; PermFail: the name is impossible.
        """
        try:
            async with asyncio.timeout(_ANSWER):
                answer = await self._ask(name, record_type)
        except TimeoutError as error:
            raise TempFail("no answer in time") from error
        return tuple(n for _, n in sorted(answer.exchangers) if n) if record_type == "MX" else answer.records

    async def _confirming(self, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[str]:
        known = self._hosts.addresses(name)
        return known or list((await self._ask(name, "A" if address.version == 4 else "AAAA")).records)

    async def _by_mx(self, domain: str, family: str) -> list[MxHost]:
        if domain.startswith("["):
            address = literal(domain)
            if address is None:
                raise PermFail("Invalid domain name")
            return _only(family, [MxHost(preference=-1, name=address, address=address)])
        answer = await self._ask(domain, "MX")
        if not answer.exists:
            raise PermFail("Domain does not exist")
        # RFC 7505 §3; COMPAT: "localhost" is taken for a null MX too.
        useful = [(p, n) for p, n in answer.exchangers if n and n.lower() != "localhost"]
        if answer.exchangers and not useful:
            raise PermFail("Domain does not accept mail")
        if not useful:
            useful = [(0, domain)]
        useful = sorted(useful)[:_EXCHANGERS_MAX]
        found: list[MxHost] = []
        results = await asyncio.gather(*(self._addresses(name, family) for _, name in useful), return_exceptions=True)
        for (preference, name), result in zip(useful, results, strict=True):
            if isinstance(result, PillarboxError):
                continue  # other exchangers may do; without any it is a temporary failure in any case
            if isinstance(result, BaseException):
                raise result
            # Where the host is need not be signed: that it is the one of this name, its certificate says.
            found += [MxHost(preference=preference, name=name, address=a, secure=answer.secure) for a in result]
        if not found:
            raise TempFail("No MX found for domain")
        return found

    async def _by_host(self, host: str, family: str) -> list[MxHost]:
        address = literal(host)
        if address is not None:
            return _only(family, [MxHost(preference=-1, name=address, address=address)])
        try:
            addresses = await self._addresses(host, family)
        except PillarboxError as error:
            raise TempFail("Host not found") from error
        if not addresses:
            raise TempFail("Host not found")
        return [MxHost(preference=-1, name=host, address=a) for a in addresses]

    async def _addresses(self, name: str, family: str) -> list[str]:
        """The addresses of a host. TempFail: none, but no answer."""
        known = self._hosts.addresses(name)
        if known:
            return [a for a in known if family in ("", _family(a))]
        types = [t for t, f in (("A", "inet4"), ("AAAA", "inet6")) if family in ("", f)]
        if not family and not self._has_ipv6():
            types.remove("AAAA")
        answers = await asyncio.gather(*(self._ask(name, t) for t in types), return_exceptions=True)
        good = [answer for answer in answers if isinstance(answer, _Answer)]
        addresses = [record for answer in good for record in answer.records]
        for answer in answers:
            if isinstance(answer, BaseException) and not (addresses and isinstance(answer, PillarboxError)):
                raise answer
        return addresses

    def _has_ipv6(self) -> bool:
        """Is there a route into the IPv6 Internet? Without one its addresses are only delays (getaddrinfo(3))."""
        if self._now() >= self._probed + _PROBE:
            self._probed = self._now()
            try:
                with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                    probe.connect(("2001:db8::1", 9))  # nothing is sent
                self._ipv6 = True
            except OSError:
                self._ipv6 = False
        return self._ipv6

    # Questions and answers.

    async def _ask(self, name: str, record_type: str) -> _Answer:
        """An answer, from the cache or from a server. TempFail: there is none; PermFail: the name is impossible."""
        key = (name.lower().rstrip("."), record_type)
        while True:
            cached = self._cache.get(key)
            if cached is not None and cached[0] > self._now():
                self._cache.move_to_end(key)
                return cached[1]
            others = self._asking.get(key)
            if others is None:
                break
            if not await asyncio.shield(others):
                raise TempFail("Temporary failure in MX lookup")
        done = self._asking[key] = asyncio.get_running_loop().create_future()
        useful = True
        try:
            answer, ttl = await self._query(*key)
            self._cache[key] = (self._now() + ttl, answer)
            self._cache.move_to_end(key)
            while len(self._cache) > _CACHE_MAX:
                self._cache.popitem(last=False)
            return answer
        except PillarboxError:
            self._cache.pop(key, None)
            useful = False
            raise
        finally:
            del self._asking[key]
            done.set_result(useful)  # who gave up waiting is no answer for the others: one of them asks

    async def _query(self, name: str, record_type: str) -> tuple[_Answer, float]:
        try:
            question = dns.message.make_query(dns.name.from_text(name), record_type, use_edns=0, payload=1232)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise PermFail("Invalid domain name") from error
        question.flags |= dns.flags.AD  # RFC 6840 §5.7: tell us if you validated it
        refused = False
        for timeout in _ROUNDS:
            for address, port in self._nameservers:
                try:
                    response = await _exchange(question, address, port, timeout)
                except (dns.exception.DNSException, OSError, EOFError):
                    continue
                if response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.NOTIMP):
                    return _read(response, record_type)
                refused = response.rcode() == dns.rcode.REFUSED
        raise (Refused if refused else TempFail)("Temporary failure in MX lookup")


async def _exchange(question: dns.message.Message, address: str, port: int, timeout: float) -> dns.message.Message:
    """Ask one server, again by TCP if the answer was cut. The socket is connected: a closed port is known at once."""
    backend = dns.asyncbackend.get_default_backend()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    async with await backend.make_socket(  # type: ignore[no-untyped-call]
        family, socket.SOCK_DGRAM, 0, None, (address, port)
    ) as connected:
        response, _ = await dns.asyncquery.udp_with_fallback(
            question,
            address,
            timeout=timeout,
            port=port,
            udp_sock=connected,
            ignore_unexpected=True,
            ignore_errors=True,
        )
    return response


def _read(response: dns.message.Message, record_type: str) -> tuple[_Answer, float]:
    """The records of the type (aliases followed by the server), and for how many seconds they hold."""
    # RFC 4035 §3.2.3: a server vouches for what is not there, too; an error proves nothing.
    secure = bool(response.flags & dns.flags.AD) and response.rcode() != dns.rcode.NOTIMP
    wanted = [rrset for rrset in response.answer if rrset.rdtype == dns.rdatatype.from_text(record_type)]
    if not wanted:
        negative = [min(s.ttl, r.minimum) for s in response.authority for r in s if s.rdtype == dns.rdatatype.SOA]
        exists = response.rcode() != dns.rcode.NXDOMAIN
        return _Answer(exists=exists, secure=secure), min([_NEGATIVE_MAX, *negative])
    ttl = min(_TTL_MAX, *(rrset.ttl for rrset in response.answer))
    records = [record for rrset in wanted for record in rrset]
    if record_type == "MX":
        exchangers = tuple((r.preference, r.exchange.to_text(omit_final_dot=True)) for r in records)
        exchangers = tuple((p, "" if n == "." else n) for p, n in exchangers)
        return _Answer(exists=True, exchangers=exchangers, secure=secure), ttl
    if record_type == "TXT":
        texts = tuple(b"".join(r.strings).decode("latin-1") for r in records)  # RFC 7208 §3.3: strings make one
        return _Answer(exists=True, records=texts, secure=secure), ttl
    return _Answer(exists=True, records=tuple(r.to_text().rstrip(".") for r in records), secure=secure), ttl


def literal(text: str) -> str | None:
    """The address of `1.2.3.4`, `[1.2.3.4]`, `[IPv6:…]` or `[…]`, None for anything else (RFC 5321 §4.1.3)."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if text[:5].lower() == "ipv6:":
            text = text[5:]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def system_nameservers(path: str = "/etc/resolv.conf") -> list[Nameserver]:
    """The servers that resolv.conf(5) names; the local one where it names none."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    found = [(w[1], _PORT) for w in words if len(w) > 1 and w[0] == "nameserver" and literal(w[1].partition("%")[0])]
    return found[:_NAMESERVERS_MAX] or [("127.0.0.1", _PORT)]


def _only(family: str, hosts: Iterable[MxHost]) -> list[MxHost]:
    return [host for host in hosts if family in ("", _family(host.address))]


def _family(address: str) -> str:
    return "inet6" if ":" in address else "inet4"
