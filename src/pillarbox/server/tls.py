"""TLS contexts of listeners, from PEM (RFC 8446, RFC 5246; 1.2 is the least, RFC 8996).

Keys are handed to a dispatcher as bytes or as paths such as `/proc/self/fd/N`; they are loaded here, once for each
generation of the configuration. Of several `pki` the client's SNI chooses; the first is for everybody else.
"""

import hashlib
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.errors import PermFail

if TYPE_CHECKING:
    from cryptography import x509

TLS_UNIQUE, TLS_END_POINT = "tls-unique", "tls-server-end-point"

# libtls' words for cipher suites in OpenSSL's; anything else is passed on as it is.
_CIPHERS = {
    "": "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20",
    "secure": "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20",
    "default": "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20",
    "compat": "HIGH:!aNULL",
    "legacy": "HIGH:MEDIUM:!aNULL",
    "all": "ALL:!aNULL:!eNULL",
    "insecure": "ALL:!aNULL:!eNULL",
}
_VERSIONS = {"tlsv1.2": ssl.TLSVersion.TLSv1_2, "tlsv1.3": ssl.TLSVersion.TLSv1_3}
_ANY_VERSION = ("all", "legacy", "default", "secure", "tlsv1")

# RFC 7919 appendix A.1: ffdhe2048.
_FFDHE2048 = b"""\
-----BEGIN X9.42 DH PARAMETERS-----
MIICDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgKCAQB//////////9b8KixRXaVN
V+4rEBOennjsXOLB5xabStTwmyCKMhn95knO5xJNn3y+l/GxsYY67HtA2QFXYjC9
ae+Paur+srCSGfqPr4M3aEKxsqqe9o152quJrz+r5JrMJ4Y4cHNFu/FTRO159/Q5
DvisUJtW85qYVmUnpB08vV4FWMFZkn2w6IRUpdlkcf3ctW1bsGv6NA6noVHvHKb6
Vyt287G5XYyFg9PkdwU2uE8BfnDm+/F2YBoCZpQaF7DIuX9OdMLB/8cniRl3eUDB
4f8djaY31rmd2v5eF2EQAuLHeMG+i0HZY3mlE2DZd/1ENaEcMJQuS///////////
-----END X9.42 DH PARAMETERS-----
"""


class ListenerContext(ssl.SSLContext):
    """A context that knows the certificate that it shows, for `tls-server-end-point`."""

    certificate: bytes = b""  # PEM
    end_point: bytes | None = None  # None: not calculated yet


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate chain and its key: PEM, or the path of a file that holds it. `dhe` as in `pki NAME dhe`."""

    cert: bytes | str
    key: bytes | str
    dhe: str = "none"


def build_contexts(
    config: Config, materials: Mapping[str, Material], authorities: Mapping[str, bytes | str]
) -> dict[int, ssl.SSLContext]:
    """A context for each listener that does TLS. `materials` by pki name, `authorities` by ca name.

    Raises PermFail naming the listener's line where something does not load.
    """
    return {
        listener.id: build_context(listener, config, materials, authorities)
        for listener in config.listeners
        if listener.tls is not TlsMode.NONE
    }


def build_context(
    listener: Listener, config: Config, materials: Mapping[str, Material], authorities: Mapping[str, bytes | str]
) -> ssl.SSLContext:
    """The context of one listener; see `build_contexts`."""
    try:
        chosen = [materials[name] for name in listener.pki] or [materials["*"]]
        contexts = [_context(listener, config, material, authorities) for material in chosen]
        if len(contexts) > 1:
            _choose_by_name(contexts[0], _by_name(contexts))
    except (OSError, ValueError, KeyError) as error:
        raise PermFail(
            f"{config.file}:{listener.line}: listen on {listener.interface}: TLS: {_reason(error)}"
        ) from error
    return contexts[0]


def _reason(error: Exception) -> str:
    """What OpenSSL says, which `ssl` wraps in a tuple where it is no code."""
    inner = error.args[0] if len(error.args) == 1 else error
    return str(inner[0] if isinstance(inner, tuple) and inner else inner)


def _context(
    listener: Listener, config: Config, material: Material, authorities: Mapping[str, bytes | str]
) -> ListenerContext:
    context = ListenerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = parse_protocols(listener.protocols)
    ciphers = listener.ciphers or config.smtp.ciphers
    context.set_ciphers(_CIPHERS.get(ciphers.lower(), ciphers))
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    _load_pair(context, material)
    _load_dh(context, material.dhe)
    if listener.tls_verify:
        _load_authorities(context, authorities[listener.ca] if listener.ca else None)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def parse_protocols(text: str) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """The least and the highest version of a `protocols` string, in the form of tls_config_parse_protocols(3).

    Versions before 1.2 are accepted as words and never spoken. Raises ValueError.
    """
    wanted: set[str] = set()
    for word in text.lower().replace(":", ",").split(",") if text else ["default"]:
        negated, name = word.strip().startswith("!"), word.strip().lstrip("!").strip()
        if name in _ANY_VERSION:
            found = set(_VERSIONS)
        elif name in _VERSIONS:
            found = {name}
        elif name in ("tlsv1.0", "tlsv1.1"):
            found = set()
        else:
            raise ValueError(f"unknown protocol {name!r}")
        if negated:
            wanted = (wanted or set(_VERSIONS)) - found
        else:
            wanted |= found
    if not wanted:
        raise ValueError(f"no protocol left of {text!r}")
    return min(_VERSIONS[x] for x in wanted), max(_VERSIONS[x] for x in wanted)


def _load_pair(context: ListenerContext, material: Material) -> None:
    # Read once: a file that is renewed meanwhile shall not say something else of the certificate than is shown.
    context.certificate = _content(material.cert)
    descriptors: list[int] = []
    try:
        context.load_cert_chain(_path(context.certificate, descriptors), _path(material.key, descriptors))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _load_dh(context: ssl.SSLContext, dhe: str) -> None:
    """Python's `ssl` cannot choose a group by itself; `legacy`, 1024 bits to the reference, gets the same as `auto`."""
    if dhe == "none":
        return
    descriptors: list[int] = []
    try:
        context.load_dh_params(_path(_FFDHE2048, descriptors))
    finally:
        os.close(descriptors[0])


def _load_authorities(context: ssl.SSLContext, authority: bytes | str | None) -> None:
    if authority is None:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    elif isinstance(authority, bytes):
        context.load_verify_locations(cadata=authority.decode("ascii"))
    else:
        context.load_verify_locations(cafile=authority)


def _path(content: bytes | str, descriptors: list[int]) -> str:
    """`ssl` reads files only: bytes go into one in memory, whose descriptor is noted."""
    if isinstance(content, str):
        return content
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    descriptors.append(descriptor)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"


def _by_name(contexts: Sequence[ListenerContext]) -> dict[str, ssl.SSLContext]:
    found: dict[str, ssl.SSLContext] = {}
    for context in contexts:
        for name in _certificate_names(context.certificate):
            found.setdefault(name.lower(), context)
    return found


def _content(content: bytes | str) -> bytes:
    if isinstance(content, bytes):
        return content
    with open(content, "rb") as file:
        return file.read()


def _certificate(content: bytes) -> "x509.Certificate":
    from cryptography import x509  # noqa: PLC0415 - 2.5 MB a process, wanted by few

    return x509.load_pem_x509_certificate(content)


def _certificate_names(content: bytes) -> list[str]:
    from cryptography import x509  # noqa: PLC0415 - as above

    certificate = _certificate(content)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        subject = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return [str(attribute.value) for attribute in subject]
    return names.get_values_for_type(x509.DNSName)


def channel_bindings(connection: ssl.SSLObject) -> dict[str, bytes]:
    """What ties an exchange to this connection (RFC 5929), by type; `tls-exporter` Python's `ssl` does not tell.

    `tls-unique` means nothing with TLS 1.3 (RFC 9266 §3).
    """
    bindings: dict[str, bytes] = {}
    unique = connection.get_channel_binding("tls-unique") if connection.version() == "TLSv1.2" else None
    if unique:
        bindings[TLS_UNIQUE] = unique
    context = connection.context  # the one that SNI chose
    if isinstance(context, ListenerContext):
        if context.end_point is None:
            context.end_point = _end_point(context.certificate)
        if context.end_point:
            bindings[TLS_END_POINT] = context.end_point
    return bindings


def _end_point(content: bytes) -> bytes:
    """The hash of the certificate by the hash of its signature, SHA-256 at least (RFC 5929 §4.1); b"" without one."""
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as above

    certificate = _certificate(content)
    signed_by = certificate.signature_hash_algorithm
    if signed_by is None:
        return b""
    name = "sha256" if signed_by.name in ("md5", "sha1") else signed_by.name
    return hashlib.new(name, certificate.public_bytes(Encoding.DER)).digest()


def _choose_by_name(default: ssl.SSLContext, contexts: Mapping[str, ssl.SSLContext]) -> None:
    def chosen(connection: "ssl.SSLSocket | ssl.SSLObject", name: str | None, _context: ssl.SSLContext) -> None:
        if name:
            wanted = name.lower()
            found = contexts.get(wanted) or contexts.get("*." + wanted.partition(".")[2])
            if found is not None:
                connection.context = found

    default.sni_callback = chosen
