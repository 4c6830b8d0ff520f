"""The machine's network interfaces and what `listen on WORD` means here."""

import errno
import ipaddress
import socket
import time

import psutil

from pillarbox.conf.model import Listener, TlsMode
from pillarbox.daemon import groups
from pillarbox.dns.hosts import Hosts
from pillarbox.errors import PillarboxError

BACKLOG = 1024
_PATIENCE = 5.0  # seconds: the processes of a server that is just ending let go soon

_EVERY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to

Endpoint = tuple[socket.AddressFamily, str, int]


def local_addresses() -> frozenset[str]:
    """Every address of this machine, in canonical form without scope: what `from local` and `for local` mean."""
    found = {"127.0.0.1", "::1"}
    for addresses in psutil.net_if_addrs().values():
        found.update(canonical(a.address) for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6))
    return frozenset(found)


def canonical(address: str) -> str:
    """An address as the logs show it: compressed, without a scope."""
    return str(ipaddress.ip_address(address.partition("%")[0]))


def endpoints(listener: Listener) -> list[Endpoint]:
    """Where a `listen on` binds: an address, the addresses of an interface, a group or a host name (from files).

    Raises PillarboxError where there is none.
    """
    ports = [listener.port] if listener.port else [465 if listener.tls is TlsMode.SMTPS else 25]
    families = {"inet4": [socket.AF_INET], "inet6": [socket.AF_INET6]}.get(
        listener.family, [socket.AF_INET, socket.AF_INET6]
    )
    found = [(f, a) for f, a in _addresses(listener.interface) if f in families]
    if not found:
        raise PillarboxError(f"listen on {listener.interface}: {_why_none(listener.interface)}")
    return [(family, address, port) for family, address in found for port in ports]


def _why_none(word: str) -> str:
    if word == groups.EGRESS:
        return "no interface has a default route"
    return "no address; name an address, an interface, a group of interfaces or a host in /etc/hosts"


def _addresses(word: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        address = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, word)]
    interfaces = psutil.net_if_addrs()
    named = {word} if word in interfaces else groups.members(word)
    if found := [
        (socket.AddressFamily(a.family), a.address)
        for name in sorted(named)
        for a in interfaces.get(name, ())
        if a.family in (socket.AF_INET, socket.AF_INET6)
    ]:
        return found
    # From the hosts file alone: a server must start, and a configuration be checked, where no name server answers.
    known = Hosts(path="/etc/hosts", now=time.monotonic).addresses(word)
    return [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in known]


def address_of(endpoint: Endpoint) -> str:
    """Its name, in canonical form: `127.0.0.1 25`."""
    return f"{ipaddress.ip_address(endpoint[1])} {endpoint[2]}"


def endpoint_at(address: str) -> Endpoint:
    """What `address_of` named."""
    host, port = address.split()
    return socket.AF_INET6 if ":" in host else socket.AF_INET, host, int(port)


def overlap(one: str, other: str) -> bool:
    """Are these two addresses, one of them for all of the machine's, in each other's way?"""
    (family, host, port), (other_family, other_host, other_port) = endpoint_at(one), endpoint_at(other)
    return (family, port) == (other_family, other_port) and (host in _EVERY or other_host in _EVERY)


def bind(endpoint: Endpoint) -> socket.socket:
    """One listening socket of an endpoint, to be one of several on it (SO_REUSEPORT)."""
    try:
        listening = _bound(endpoint, shared=True)
        listening.listen(BACKLOG)
    except OSError as error:
        raise _taken(endpoint, error) from error
    return listening


def wait_free(endpoint: Endpoint) -> None:
    """Wait until nobody listens there any more; PillarboxError where somebody goes on.

    Sockets that may be shared would let two servers of ours take turns with each other's mail, and connections go to
    the processes of one that was just killed.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _bound(endpoint, shared=False).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise _taken(endpoint, error) from error
        time.sleep(0.05)


def _bound(endpoint: Endpoint, *, shared: bool) -> socket.socket:
    family, address, port = endpoint
    bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        target = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
        bound.bind(target)
    except OSError:
        bound.close()
        raise
    return bound


def _taken(endpoint: Endpoint, error: OSError) -> PillarboxError:
    return PillarboxError(f"listen on {endpoint[1]} port {endpoint[2]}: {error.strerror}")
