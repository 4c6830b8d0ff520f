"""TLS contexts of outgoing sessions, one for each distinct set of options; and the reference's words for failures."""

import ssl
from collections import OrderedDict
from typing import Protocol

from pillarbox.errors import PillarboxError, TempFail
from pillarbox.roles.delivery import SessionOrder

_CONTEXTS_MAX = 64
_NAME_MISMATCH = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, …_IP_ADDRESS_MISMATCH
_VERSIONS = {
    "tlsv1.0": (ssl.TLSVersion.TLSv1, ssl.OP_NO_TLSv1),
    "tlsv1.1": (ssl.TLSVersion.TLSv1_1, ssl.OP_NO_TLSv1_1),
    "tlsv1.2": (ssl.TLSVersion.TLSv1_2, ssl.OP_NO_TLSv1_2),
    "tlsv1.3": (ssl.TLSVersion.TLSv1_3, ssl.OP_NO_TLSv1_3),
}
_GROUPS = {
    "all": tuple(_VERSIONS),
    "legacy": tuple(_VERSIONS),
    "default": ("tlsv1.2", "tlsv1.3"),
    "secure": ("tlsv1.2", "tlsv1.3"),
    "tlsv1": ("tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"),
}


class TlsMaterial(Protocol):
    """Where a dispatcher has certificates from. Both raise TempFail where there is no such thing."""

    def authorities(self, generation: int, name: str) -> str:
        """The PEM certificates of `ca NAME`."""
        ...

    def pair(self, generation: int, name: str) -> tuple[str, str]:
        """Paths of the certificate chain and the key of `pki NAME`, as `load_cert_chain` takes them."""
        ...


class ClientContexts:
    """Makes contexts and keeps them."""

    def __init__(self, *, material: TlsMaterial) -> None:
        self._material = material
        self._contexts: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()

    def context(self, order: SessionOrder) -> ssl.SSLContext:
        """The context for a session; TempFail, in words for the log, where its options cannot be used."""
        key = (order.generation, order.tls_verify, order.pki, order.ca, order.ciphers, order.protocols)
        context = self._contexts.get(key)
        if context is None:
            try:
                context = self._make(order)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise TempFail(f'TLS of action "{order.action}" cannot be used: {error}') from error
            self._contexts[key] = context
            if len(self._contexts) > _CONTEXTS_MAX:
                self._contexts.popitem(last=False)
        return context

    def forget(self, generation: int) -> None:
        """No session goes by this configuration any more."""
        for key in [key for key in self._contexts if key[0] == generation]:
            del self._contexts[key]

    def _make(self, order: SessionOrder) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = order.tls_verify
        context.verify_mode = ssl.CERT_REQUIRED if order.tls_verify else ssl.CERT_NONE
        if order.ca:
            context.load_verify_locations(cadata=self._material.authorities(order.generation, order.ca))
        elif order.tls_verify:
            context.set_default_verify_paths()
        if order.pki:
            context.load_cert_chain(*self._material.pair(order.generation, order.pki))
        if order.ciphers:
            context.set_ciphers(order.ciphers)
        if order.protocols:
            _restrict(context, order.protocols)
        return context


def _restrict(context: ssl.SSLContext, protocols: str) -> None:
    """Allow these versions only: comma or colon between names, `!` takes one away (tls_config_parse_protocols(3))."""
    allowed: set[str] = set()
    words = protocols.lower().replace(":", ",").split(",")
    for position, word in enumerate(w.strip() for w in words):
        negated, name = word.startswith("!"), word.lstrip("!")
        versions = _GROUPS.get(name) or ((name,) if name in _VERSIONS else None)
        if versions is None:
            raise ValueError(f'unknown TLS protocol "{word}"')
        if negated:
            allowed = (allowed or (set(_VERSIONS) if position == 0 else allowed)) - set(versions)
        else:
            allowed |= set(versions)
    if not allowed:
        raise ValueError(f'no TLS protocol left of "{protocols}"')
    names = list(_VERSIONS)
    chosen = [name in allowed for name in names]
    lowest, highest = chosen.index(True), len(names) - 1 - chosen[::-1].index(True)
    context.minimum_version = _VERSIONS[names[lowest]][0]
    context.maximum_version = _VERSIONS[names[highest]][0]
    for name in names[lowest:highest]:
        if name not in allowed:
            context.options |= _VERSIONS[name][1]


def failure_text(error: BaseException, host: str) -> str:
    """A handshake's failure in the reference's (libtls') words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCH:
            return f"name `{host}' not present in server certificate"
        return f"certificate verification failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"handshake failed: {(error.reason or 'unknown error').lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "handshake failed: timed out"
    if isinstance(error, PillarboxError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"handshake failed: {error.strerror}"
    return "handshake failed: unexpected EOF"
