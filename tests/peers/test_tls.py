"""TLS of listeners as OpenSSL's s_client sees it: certificates by name, clients' certificates, versions, ciphers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.peers.programs import program
from tests.system.server import Server, Wiring, free_port

pytestmark = pytest.mark.usefixtures("machine")

CERTIFICATES = Path(__file__).parent.parent / "corpus/fixtures/certs"
RULES = 'action "local" maildir\nmatch from any for domain "example.org" action "local"\n'


def serving(folder: Path, wiring: Wiring, options: str) -> tuple[Server, int]:
    """A server with one listener, and the recorded certificates; its port."""
    own = folder / "certs"
    shutil.copytree(CERTIFICATES, own)
    for file in own.iterdir():
        file.chmod(0o600 if file.suffix == ".key" else 0o644)
    port = free_port()
    config = f'ca corp cert "{own}/ca.crt"\n'
    for name in ("rsa", "ecdsa", "other"):
        config += f'pki {name} cert "{own}/{name}.crt" key "{own}/{name}.key" dhe auto\n'
    config += f"listen on 127.0.0.1 port {port} hostname mail.example.org {options}\n{RULES}"
    return Server(folder / "server", config, wiring), port


def s_client(port: int, *options: str, starttls: bool = False) -> str:
    """All that s_client says about the handshake; QUIT is sent behind it."""
    argv = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", "-ign_eof", *options]
    argv += ["-starttls", "smtp", "-name", "client.example.net"] if starttls else []
    done = subprocess.run(argv, input="QUIT\n", capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def subject(folder: Path, name: str) -> str:
    argv = [program("openssl"), "x509", "-in", str(folder / f"certs/{name}.crt"), "-noout", "-subject"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def names_of(folder: Path, name: str) -> list[str]:
    argv = [program("openssl"), "x509", "-in", str(folder / f"certs/{name}.crt"), "-noout", "-ext", "subjectAltName"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    return [part.strip().removeprefix("DNS:") for part in out.split("\n", 1)[1].split(",") if "DNS:" in part]


@pytest.mark.parametrize("starttls", [True, False])
def test_the_certificate_is_chosen_by_the_name_that_the_client_asks_for(
    folder: Path, wiring: Wiring, starttls: bool
) -> None:
    server, port = serving(folder, wiring, f"{'tls' if starttls else 'smtps'} pki rsa pki other")
    with server:
        (name, *_) = names_of(folder, "other")
        assert name not in names_of(folder, "rsa")
        for asked, shown in ((name, "other"), (name.upper(), "other"), ("nobody.example", "rsa")):
            said = s_client(port, "-servername", asked, starttls=starttls)
            assert subject(folder, shown) in said, said
        assert subject(folder, "rsa") in s_client(port, "-noservername", starttls=starttls)


def test_an_elliptic_key_serves(folder: Path, wiring: Wiring) -> None:
    server, port = serving(folder, wiring, "smtps pki ecdsa")
    with server:
        said = s_client(port, "-CAfile", str(CERTIFICATES / "ca.crt"))
        assert subject(folder, "ecdsa") in said and "Verify return code: 0 (ok)" in said


@pytest.mark.parametrize("starttls", [True, False])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_clients_must_show_a_certificate_of_the_ca(folder: Path, wiring: Wiring, starttls: bool, version: str) -> None:
    server, port = serving(folder, wiring, f"{'tls-require' if starttls else 'smtps'} verify pki rsa ca corp")
    with server:

        def show(name: str) -> str:
            pair = ["-cert", f"{CERTIFICATES}/{name}.crt", "-key", f"{folder}/certs/{name}.key"] if name else []
            return s_client(port, version, *pair, starttls=starttls)

        known = show("client")
        assert "221 2.0.0 Bye" in known, known
        assert 'smtp cert-check result="verified" fingerprint="SHA256:' in server.log()
        for stranger in ("selfsigned", ""):
            assert "221 2.0.0" not in show(stranger)
        assert server.log().count("handshake failed") == 2, server.log()


@pytest.mark.parametrize(
    ("options", "accepted", "refused"),
    [
        ("", ["-tls1_2", "-tls1_3"], ["-tls1_1"]),
        ('protocols "tlsv1.2"', ["-tls1_2"], ["-tls1_3"]),
        ('protocols "tlsv1.3"', ["-tls1_3"], ["-tls1_2"]),
        ('protocols "all,!tlsv1.3"', ["-tls1_2"], ["-tls1_3"]),
    ],
)
def test_versions(folder: Path, wiring: Wiring, options: str, accepted: list[str], refused: list[str]) -> None:
    server, port = serving(folder, wiring, f"smtps pki rsa {options}")
    with server:
        for version in accepted:
            assert "221 2.0.0 Bye" in s_client(port, version), version
        for version in refused:
            assert "221 2.0.0" not in s_client(port, version, "-cipher", "ALL:@SECLEVEL=0"), version
        log = server.log()
        assert log.count("smtp tls ciphers=TLSv1.") == len(accepted)
        assert ("ciphers=TLSv1.2:" in log, "ciphers=TLSv1.3:" in log) == ("-tls1_2" in accepted, "-tls1_3" in accepted)


@pytest.mark.parametrize(
    ("options", "before", "accepted", "refused"),
    [
        ('ciphers "ECDHE-RSA-AES256-GCM-SHA384"', "", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"),
        (
            "",
            'smtp ciphers "ECDHE-RSA-AES128-GCM-SHA256"\n',
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES256-GCM-SHA384",
        ),
        ("", "", "DHE-RSA-AES256-GCM-SHA384", "AES256-SHA"),
        ('ciphers "HIGH:!aNULL"', "", "AES256-SHA", "AECDH-AES256-SHA"),
    ],
    ids=["listener", "smtp", "dhe", "compatible"],
)
def test_ciphers(folder: Path, wiring: Wiring, options: str, before: str, accepted: str, refused: str) -> None:
    server, port = serving(folder, wiring, f"smtps pki rsa {options}")
    server.conf.write_text(before + server.config)
    with server:
        said = s_client(port, "-tls1_2", "-cipher", accepted)
        assert f"Cipher is {accepted}" in said and "221 2.0.0 Bye" in said, said
        assert "Cipher is (NONE)" in s_client(port, "-tls1_2", "-cipher", f"{refused}:@SECLEVEL=0")
        assert f"smtp tls ciphers=TLSv1.2:{accepted}:" in server.log()


def test_what_keeps_a_listener_from_tls_is_said_at_the_start(folder: Path, wiring: Wiring) -> None:
    wrong = {
        'ciphers "NONSENSE"': "No cipher can be selected.",
        'protocols "sslv9"': "unknown protocol 'sslv9'",
        'protocols "tlsv1.1"': "no protocol left of 'tlsv1.1'",
    }
    for number, (options, reason) in enumerate(wrong.items()):
        server, _ = serving(folder / str(number), wiring, f"tls pki rsa {options}")
        server.launch()
        assert not server.wait_listening()
        assert f"smtpd.conf:5: listen on 127.0.0.1: TLS: {reason}" in server.log(), server.log()
        server.stop()
