"""The resolver against a name server of its own, over real sockets."""

import asyncio
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from pillarbox.dns import resolver as module
from pillarbox.dns.resolver import Resolver, literal, system_nameservers
from pillarbox.errors import PermFail, TempFail
from pillarbox.roles.lookup import ReverseName

ZONE = {
    ("mx.example.", "MX"): ["20 b.example.", "10 a.example."],
    ("a.example.", "A"): ["192.0.2.1", "192.0.2.2"],
    ("b.example.", "A"): ["192.0.2.3"],
    ("b.example.", "AAAA"): ["2001:db8::3"],
    ("xn--bcher-kva.example.", "MX"): ["10 a.example."],
    ("signed.example.", "MX"): ["10 a.example."],
    ("alone.example.", "A"): ["192.0.2.8"],
    ("null.example.", "MX"): ["0 ."],
    ("local.example.", "MX"): ["5 localhost."],
    ("dangling.example.", "MX"): ["10 nothing.example."],
    ("half.example.", "MX"): ["10 broken.example.", "20 b.example."],
    ("plain.example.", "A"): ["192.0.2.9"],
    ("empty.example.", "TXT"): ['"x"'],
    ("many.example.", "MX"): [f"{i} a.example." for i in range(1, 200)],
    ("wide.example.", "MX"): [f"{i} crowd.example." for i in range(1, 20)],
    ("crowd.example.", "A"): [f"198.51.100.{i}" for i in range(1, 40)],
    ("1.2.0.192.in-addr.arpa.", "PTR"): ["a.example."],
    ("3.2.0.192.in-addr.arpa.", "PTR"): ["a.example."],
    ("9.2.0.192.in-addr.arpa.", "PTR"): ["evil\\010name.example.", "plain.example."],
}
SIGNED = {"signed.example.", "alone.example."}
BROKEN = {"broken.example.", "down.example."}


class NameServer(asyncio.DatagramProtocol):
    """Answers from ZONE by UDP (cut where long) and TCP; BROKEN names get SERVFAIL; silent.example nothing."""

    def __init__(self):
        self.asked = []
        self.answer_silent = False

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        answer = self.answer(data)
        if answer is None:
            return
        if len(answer.to_wire(max_size=65535)) > 512:
            answer.answer = []
            answer.flags |= dns.flags.TC
        self.transport.sendto(answer.to_wire(), peer)

    def answer(self, data):
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if name == "silent.example." and not self.answer_silent:
            return None
        response = dns.message.make_response(query)
        if name in SIGNED:
            response.flags |= dns.flags.AD
        if name in BROKEN:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif (name, kind) in ZONE:
            response.answer.append(dns.rrset.from_text_list(name, 300, "IN", kind, ZONE[name, kind]))
        elif not any(n == name for n, _ in ZONE):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    async def serve_tcp(self, reader, writer):
        length = int.from_bytes(await reader.readexactly(2), "big")
        wire = self.answer(await reader.readexactly(length)).to_wire(max_size=65535)
        writer.write(len(wire).to_bytes(2, "big") + wire)
        writer.close()


class Dns:
    """A name server and a resolver that asks it; `clock` is the resolver's."""

    def __init__(self, hosts="/nonexistent", first=()):
        self.hosts, self.first = hosts, first
        self.clock = time.monotonic()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        tcp = None
        while tcp is None:  # the same port for both
            udp, self.server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
            port = udp.get_extra_info("sockname")[1]
            try:
                tcp = await asyncio.start_server(self.server.serve_tcp, "127.0.0.1", port)
            except OSError:
                udp.close()
        self.transports = [udp, tcp]
        self.resolver = Resolver(
            nameservers=[*self.first, ("127.0.0.1", port)],
            hosts_file=str(self.hosts),
            now=lambda: self.clock,
            shuffle=lambda hosts: None,
        )
        return self

    async def __aexit__(self, *_):
        for transport in self.transports:
            transport.close()

    async def addresses(self, domain, mx=True, family="inet4"):
        found = [(h.preference, h.name, h.address) for h in await self.resolver.exchangers(domain, mx, family)]
        assert [f[0] for f in found] == sorted(f[0] for f in found)
        return sorted(found)


def play(test, **options):
    async def go():
        async with Dns(**options) as it:
            await test(it)

    asyncio.run(go())


def test_a_domain_in_unicode_is_asked_for_in_ascii():
    async def go():
        async with Dns() as d:
            assert [a for _, _, a in await d.addresses("Bücher.example")] == ["192.0.2.1", "192.0.2.2"]
            assert d.server.asked[0] == ("xn--bcher-kva.example.", "MX")

    asyncio.run(go())


def test_exchangers_in_the_order_of_preference():
    async def go(it):
        assert await it.addresses("MX.example") == [
            (10, "a.example", "192.0.2.1"), (10, "a.example", "192.0.2.2"), (20, "b.example", "192.0.2.3")
        ]  # fmt: skip
        assert await it.addresses("mx.example", family="inet6") == [(20, "b.example", "2001:db8::3")]

    play(go)


@pytest.mark.parametrize(
    ("domain", "secure"),
    [("signed.example", True), ("alone.example", True), ("mx.example", False), ("plain.example", False)],
)
@pytest.mark.parametrize("family", ["", "inet4"])
def test_exchangers_are_secure_where_the_answer_about_the_mx_is(domain, secure, family):
    """The zone of the host itself need not be signed, nor have addresses of both families."""

    async def go(it):
        for _ in range(2):  # from the server, and from the cache
            found = await it.resolver.exchangers(domain, True, family)
            assert found and {host.secure for host in found} == {secure}

    play(go)


def test_domain_without_mx_is_its_own_exchanger():
    async def go(it):
        assert await it.addresses("plain.example") == [(0, "plain.example", "192.0.2.9")]

    play(go)


@pytest.mark.parametrize(
    ("domain", "error", "text"),
    [
        ("null.example", PermFail, "Domain does not accept mail"),
        ("local.example", PermFail, "Domain does not accept mail"),
        ("missing.example", PermFail, "Domain does not exist"),
        ("empty.example", TempFail, "No MX found for domain"),
        ("dangling.example", TempFail, "No MX found for domain"),
        ("down.example", TempFail, "Temporary failure in MX lookup"),
        (f"{'x' * 64}.example", PermFail, "Invalid domain name"),
        ("[nonsense]", PermFail, "Invalid domain name"),
    ],
)
def test_domains_that_take_no_mail(domain, error, text):
    async def go(it):
        with pytest.raises(error, match=text):
            await it.addresses(domain)

    play(go)


def test_one_broken_exchanger_does_not_hide_the_others():
    async def go(it):
        assert await it.addresses("half.example") == [(20, "b.example", "192.0.2.3")]

    play(go)


@pytest.mark.parametrize(
    ("name", "address"), [("[192.0.2.7]", "192.0.2.7"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("[::1]", "::1")]
)
def test_address_literals_need_no_dns(name, address):
    async def go(it):
        for mx in (True, False):
            assert await it.addresses(name, mx, "") == [(-1, address, address)]
        assert it.server.asked == []

    play(go)


def test_smarthosts_are_hosts():
    async def go(it):
        assert await it.addresses("127.0.0.1", mx=False) == [(-1, "127.0.0.1", "127.0.0.1")]
        assert await it.addresses("plain.example", mx=False) == [(-1, "plain.example", "192.0.2.9")]
        for name in ("missing.example", "mx.example", "down.example"):
            with pytest.raises(TempFail, match="Host not found"):
                await it.addresses(name, mx=False)

    play(go)


def test_long_answer_is_asked_for_by_tcp():
    async def go(it):
        assert len(await it.addresses("many.example")) == 2 * module._EXCHANGERS_MAX
        assert it.server.asked.count(("many.example.", "MX")) == 2

    play(go)


def test_answers_are_kept_for_their_ttl_and_asked_once():
    async def go(it):
        await asyncio.gather(*(it.addresses("plain.example", mx=False) for _ in range(5)))
        assert len(it.server.asked) == 1
        it.clock += 299
        await it.addresses("plain.example", mx=False)
        assert len(it.server.asked) == 1
        it.clock += 2
        await it.addresses("plain.example", mx=False)
        assert len(it.server.asked) == 2

    play(go)


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_CACHE_MAX", 2)

    async def go(it):
        for name in ("plain.example", "a.example", "b.example"):
            await it.addresses(name, mx=False)
        assert len(it.resolver._cache) == 2

    play(go)


def test_a_zone_of_many_addresses_gives_the_best_hundred():
    async def go(it):
        found = await it.addresses("wide.example")
        assert len(found) == 100 and {preference for preference, _, _ in found} == {1, 2, 3}

    play(go)


def test_one_who_gives_up_waiting_does_not_speak_for_the_others():
    async def go(it):
        first = asyncio.create_task(it.addresses("silent.example", mx=False))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asyncio.create_task(it.addresses("silent.example", mx=False))
        await asyncio.sleep(0)
        ZONE["silent.example.", "A"] = ["192.0.2.66"]
        it.server.answer_silent = True
        first.cancel()
        assert await second == [(-1, "silent.example", "192.0.2.66")]

    try:
        play(go)
    finally:
        del ZONE["silent.example.", "A"]


def test_silent_servers_are_passed_over_and_time_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", (0.1, 0.1))
    monkeypatch.setattr(module, "_ANSWER", 0.15)

    async def go(it):
        with pytest.raises(TempFail, match="Temporary failure in MX lookup"):
            await it.addresses("silent.example")
        assert await it.addresses("plain.example", mx=False)

    play(go, first=[("127.0.0.1", 9)])


def test_reverse_names_are_confirmed():
    async def go(it):
        assert await it.resolver.reverse_name("192.0.2.1") == "a.example"
        assert await it.resolver.reverse_name("192.0.2.3") == ""
        assert await it.resolver.reverse_name("192.0.2.9") == "plain.example"
        assert await it.resolver.reverse_name("192.0.2.77") == ""
        assert await it.resolver.reverse_name("local") == ""

    play(go)


def test_a_name_that_is_not_confirmed_is_told_as_such():
    async def go(it):
        assert await it.resolver.client_name("192.0.2.1") == ReverseName(name="a.example", fcrdns="pass")
        unconfirmed = await it.resolver.client_name("192.0.2.3")
        assert unconfirmed.name and unconfirmed.fcrdns == "fail" and not unconfirmed.confirmed
        assert await it.resolver.client_name("192.0.2.77") == ReverseName()

    play(go)


def test_hosts_file_comes_first_and_is_read_again(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# comment\n127.0.0.1 localhost lh\n::1 localhost\nbad line\n192.0.2.50 plain.example # ours\n")

    async def go(it):
        assert await it.addresses("localhost", mx=False, family="") == [
            (-1, "localhost", "127.0.0.1"), (-1, "localhost", "::1")
        ]  # fmt: skip
        assert await it.addresses("plain.example", mx=False) == [(-1, "plain.example", "192.0.2.50")]
        assert await it.resolver.reverse_name("127.0.0.1") == "localhost"
        assert it.server.asked == []
        hosts.write_text("127.0.0.1 renamed\n")
        it.clock += 10
        assert await it.resolver.reverse_name("127.0.0.1") == "renamed"

    play(go, hosts=hosts)


def test_system_nameservers(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text(
        "search x\n" + "".join(f"nameserver {n}\n" for n in ("192.0.2.1", "bad", "::1", "1.1.1.1", "2.2.2.2"))
    )
    assert system_nameservers(str(conf)) == [("192.0.2.1", 53), ("::1", 53), ("1.1.1.1", 53)]
    assert system_nameservers(str(tmp_path / "none")) == [("127.0.0.1", 53)]


@pytest.mark.parametrize(
    ("text", "address"), [("[ipv6:::1]", "::1"), ("10.0.0.1", "10.0.0.1"), ("host", None), ("[host]", None), ("", None)]
)
def test_literal(text, address):
    assert literal(text) == address
