"""`smtpd -n`: what it prints, its status, and the checks of the machine."""

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pillarbox.conf.model import Listener, Pki
from pillarbox.daemon.check import Machine, check_config, read_file

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def run(text: str, macros: dict[str, str] | None = None) -> tuple[int, str]:
        file = tmp_path / "smtpd.conf"
        file.write_text(text)
        output = io.StringIO()
        status = check_config(str(file), macros or {}, output=output)
        return status, output.getvalue().replace(str(tmp_path), "ROOT")

    return run


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[str], Pki]:
    def make(name: str) -> Pki:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.org")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        cert_file, key_file = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key_file.chmod(0o600)
        return Pki(name=name, cert=str(cert_file), key=str(key_file))

    return make


def test_a_good_file_is_ok(check: Check) -> None:
    assert check("listen on 127.0.0.1 port 2525\nmatch reject\n") == (0, "configuration OK\n")


def test_with_v_a_good_file_is_printed_in_canonical_form(tmp_path: Path) -> None:
    file, shown = tmp_path / "smtpd.conf", io.StringIO()
    file.write_text("lan = lo # the loopback\nlisten on $lan\nmatch reject\n")
    assert check_config(str(file), {}, output=io.StringIO(), show=shown) == 0
    assert shown.getvalue() == "listen on lo\nlisten on socket\n\nmatch from local for local reject\n"


def test_warnings_change_no_verdict(check: Check) -> None:
    status, output = check('listen on lo\ntable x { "a" }\nmatch rcpt-to regex "(a)\\1" reject\nmatch reject\n')
    assert status == 0
    assert output.splitlines()[::3] == [
        'ROOT/smtpd.conf:2: warning: nothing reads table "x"',
        "ROOT/smtpd.conf:3: warning: this regular expression never matches (invalid escape sequence: \\1): (a)\\1",
        "configuration OK",
    ]


@pytest.mark.parametrize(
    ("what", "good", "bad"),
    [
        ("regex", r"^a\.b$|[0-9]+(?i:x)", r"(?=a)"),
        ("regex", "é*", "a" + "{1000}" * 5),
        ("regex", "(a{1,9}){9}", "((((a{9}){99}){9}[^b]){99}){9}"),
        ("netaddr", "10/8", "10.0.0.0/33"),
        ("netaddr", "[::1]", "mx.example.org"),
        ("netaddr", "local", "fe80::/200"),
        ("relay-url", "smtps://label@mx.example.org:465", "smtp://label@mx.example.org"),
        ("relay-url", "[::1]", "gopher://mx.example.org"),
    ],
)
def test_values_that_are_read_later(what: str, good: str, bad: str) -> None:
    assert Machine().value(what, good) == ""
    assert Machine().value(what, bad)


def test_whether_everybody_may_read_a_file(tmp_path: Path) -> None:
    for mode, answer in ((0o600, False), (0o640, False), (0o644, True)):
        (tmp_path / "f").touch()
        (tmp_path / "f").chmod(mode)
        assert Machine().everybody_reads(str(tmp_path / "f")) is answer
    assert Machine().everybody_reads(str(tmp_path / "absent")) is False


def test_errors_begin_with_file_and_line_and_show_the_place(check: Check) -> None:
    status, output = check('match for domain <none> reject\nmatch for any action "x"\n')
    assert status == 1
    assert output.splitlines() == [
        "ROOT/smtpd.conf:1: no such table: none",
        "    match for domain <none> reject",
        "                     ^",
        "ROOT/smtpd.conf:2: no such dispatcher: x",
        '    match for any action "x"',
        "                         ^",
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    output = io.StringIO()
    assert check_config(str(tmp_path / "none"), {}, output=output) == 1
    assert "No such file or directory" in output.getvalue()


def test_output_takes_what_the_terminal_lacks(tmp_path: Path) -> None:
    file = tmp_path / "smtpd.conf"
    file.write_text('match for any action "ü€"\n')
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii")
    assert check_config(str(file), {}, output=terminal) == 1
    assert rb"\u20ac" in raw.getvalue()


def test_a_key_from_stdin_cannot_be_checked(check: Check) -> None:
    assert check("queue encryption stdin\nmatch reject\n")[0] == 1


def test_macros_of_the_command_line(check: Check) -> None:
    assert check("match for domain $zone reject\n", {"zone": "example.org"})[0] == 0


def test_an_interface_that_is_not_there(check: Check) -> None:
    status, output = check("listen on nosuchif0.invalid\nmatch reject\n")
    assert status == 1
    assert "smtpd.conf:1: invalid virtual ip or interface: nosuchif0.invalid" in output


def test_an_address_of_the_wrong_family(check: Check) -> None:
    assert Machine().listener(Listener(id=0, interface="127.0.0.1", family="inet6"))
    assert not Machine().listener(Listener(id=0, interface="127.0.0.1", family="inet4"))


def test_services_of_the_machine() -> None:
    assert Machine().service_port("no-such-service") == 0
    assert Machine().service_port("nul\0") == 0


def test_a_pair_that_loads_is_fine(pair: Callable[[str], Pki]) -> None:
    assert Machine().pki(pair("a")) == ("", "")


def test_a_pair_that_does_not_match_is_a_warning(pair: Callable[[str], Pki], check: Check) -> None:
    a, b = pair("a"), pair("b")
    status, output = check(f'pki a cert "{a.cert}" key "{b.key}"\nmatch reject\n')
    assert status == 0
    assert "does not belong to the certificate" in output
    assert output.endswith("configuration OK\n")


def test_secrets_that_others_can_read_are_refused(pair: Callable[[str], Pki]) -> None:
    pki = pair("a")
    os.chmod(pki.key, 0o644)
    assert "insecure permissions" in Machine().pki(pki)[0]


def test_certificates_that_others_can_write_are_refused(pair: Callable[[str], Pki]) -> None:
    pki = pair("a")
    os.chmod(pki.cert, 0o666)
    assert "insecure permissions" in Machine().pki(pki)[0]
    assert "insecure permissions" in Machine().ca(pki.cert)


def test_missing_and_broken_files(pair: Callable[[str], Pki], tmp_path: Path) -> None:
    pki = pair("a")
    broken = tmp_path / "broken"
    broken.write_text("no key")
    broken.chmod(0o600)
    assert "No such file" in Machine().pki(Pki(name="x", cert="/nowhere", key=pki.key))[0]
    assert "failed to load key file" in Machine().pki(Pki(name="x", cert=pki.cert, key=str(broken)))[0]
    assert "holds no usable certificate" in Machine().pki(Pki(name="x", cert=str(broken), key=pki.key))[1]
    assert "Is a directory" in Machine().ca(str(tmp_path))
    assert "No such file" in Machine().table_database("/nowhere")


def test_table_programs(tmp_path: Path, check: Check) -> None:
    (tmp_path / "table-mine").touch()
    machine = Machine(table_programs=[str(tmp_path)])
    assert machine.table_program("mine")
    assert not machine.table_program("../table-mine")
    status, output = check("table t frobnicate:/x\nmatch reject\n")
    assert status == 1
    assert 'backend "frobnicate" does not exist' in output


def test_bytes_that_are_not_utf8_are_no_error(tmp_path: Path) -> None:
    file = tmp_path / "smtpd.conf"
    file.write_bytes(b"# caf\xe9\nmatch reject\n")
    assert read_file(str(file)) == "# caf\xe9\nmatch reject\n"
    output = io.StringIO()
    assert check_config(str(file), {}, output=output) == 0
