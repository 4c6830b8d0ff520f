"""`table-ldap` against OpenLDAP's slapd."""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.servers import ADMIN, BASE_DN, CERTS, PASSWORD, Slapd, running
from tests.sdk.child import Child, installed
from tests.system.server import wait_for

if importlib.util.find_spec("ldap") is None:
    pytest.skip("python-ldap is not installed (tools/setup peers, as root)", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("table-ldap")

LDIF = f"""\
dn: {BASE_DN}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,{BASE_DN}
objectClass: organizationalUnit
ou: people

dn: uid=alice,ou=people,{BASE_DN}
objectClass: inetOrgPerson
objectClass: posixAccount
uid: alice
cn: Alice
sn: Example
uidNumber: 1000
gidNumber: 1001
homeDirectory: /home/a|b
mail: alice@example.org
mail: postmaster@example.org
description: $2b$08$a:b/c|d
userPassword: Al|ice's: pw

dn: uid=bob,ou=people,{BASE_DN}
objectClass: inetOrgPerson
uid: bob
cn: Bob (the builder) * \\5c
sn: Example
mail: bob@example.org
mail: postmaster@example.org

dn: cn=example.org,ou=people,{BASE_DN}
objectClass: device
cn: example.org
"""
CONFIG = f"""\
username: {ADMIN}
password: {PASSWORD}
basedn: {BASE_DN}

alias_filter: (&(objectclass=inetOrgPerson)(mail=%u))
alias_attributes: uid
credentials_filter: (&(objectClass=posixAccount)(uid=%s))
credentials_attributes: UID, description
domain_filter: (&(objectclass=device)(cn=%u))
domain_attributes: cn
userinfo_filter: (uid=%u)
userinfo_attributes: uidNumber, gidNumber,homedirectory
mailaddr_filter: (mail=%u)
mailaddr_attributes: mail
mailaddrmap_filter: (uid=%u)
mailaddrmap_attributes: mail
netaddr_filter: (&(cn=%u)(!(cn=%%))(!(cn=%h)))
netaddr_attributes: cn
auth_filter: (uid=%u)
"""


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Slapd]:
    """A directory with people in it."""
    made = Slapd(place / "slapd")
    with running(made):
        made.add(LDIF)
        yield made


def child(place: Path, text: str) -> Child:
    """The program with this configuration."""
    file = place / "table.conf"
    file.write_text(text)
    return Child([installed("table-ldap"), str(file)])


def test_every_service_is_answered(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        services = ["alias", "credentials", "domain", "userinfo", "mailaddr", "mailaddrmap", "netaddr", "auth"]
        assert program.registered == services
        assert program.lookup("alias", "alice@example.org") == "found|alice"
        assert sorted(program.lookup("alias", "postmaster@example.org").removeprefix("found|").split(", ")) == [
            "alice",
            "bob",
        ]
        assert program.lookup("credentials", "alice") == "found|alice:$2b$08$a:b/c|d"
        assert program.lookup("domain", "example.org") == "found|example.org"
        assert program.lookup("userinfo", "alice") == "found|1000:1001:/home/a|b"
        assert program.lookup("mailaddrmap", "alice") == "found|alice@example.org, postmaster@example.org"
        assert program.lookup("netaddr", "example.org") == "found|example.org"
        assert program.check("mailaddr", "postmaster@example.org") == program.check("domain", "example.org") == "found"
        for service in services[:-1]:
            assert program.lookup(service, "nobody") == program.check(service, "nobody") == "not-found"
        assert program.fetch("source").startswith("error|")
        assert program.end() == 0
        assert program.log() == ""


def test_an_object_that_lacks_an_attribute_is_not_there(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        assert program.lookup("userinfo", "bob") == "not-found"
        assert program.check("userinfo", "bob") == "found"


def test_keys_are_harmless_in_filters(server: Slapd, place: Path) -> None:
    filters = "alias_filter (cn=%u)\nalias_attributes mail\nnetaddr_filter (|(cn=%h)(cn=%u))\nnetaddr_attributes cn\n"
    with child(place, f"url {server.url}\nbasedn {BASE_DN}\n{filters}") as program:  # without a name: anonymous
        assert program.lookup("alias", "Bob (the builder) * \\5c") == "found|bob@example.org, postmaster@example.org"
        for key in ("*", "Bob*", "Alice)(uid=*", "\\2a", "(", ")", "caf\u00e9", "caf\udce9", "\0"):
            assert program.lookup("alias", key) == "not-found"
        assert program.lookup("netaddr", "example.org") == "found|example.org"


def test_a_password_is_proved_by_a_bind(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        assert program.check("auth", "alice:Al|ice's: pw") == "found"
        for wrong in ("alice:al|ice's: pw", "alice:", "alice", "nobody:x", "*:Al|ice's: pw", "bob:x", ":", ""):
            assert program.check("auth", wrong) == "not-found"


def test_an_update_reads_the_file_again(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        assert program.lookup("alias", "alice@example.org") == "found|alice"
        (place / "table.conf").write_text(
            f"url: {server.url}\n{CONFIG}".replace("alias_attributes: uid", "alias_attributes: sn")
        )
        assert program.update() == "ok"
        assert program.lookup("alias", "alice@example.org") == "found|Example"
        (place / "table.conf").write_text(f"url: {server.url}\nbasedn x\n")
        assert "there is no …_filter in it" in program.update()
        assert program.lookup("alias", "alice@example.org") == "found|Example"


def test_a_local_socket_and_a_host_alone_are_urls_too(server: Slapd, place: Path) -> None:
    for url in (server.local, server.url.removeprefix("ldap://"), f"{server.url}/ignored?x"):
        with child(place, f"url: {url}\n{CONFIG}") as program:
            assert program.lookup("alias", "alice@example.org") == "found|alice"


@pytest.mark.parametrize("scheme", ["ldaps", "ldap+tls"])
def test_tls_is_with_the_server_s_name_and_a_ca_that_is_trusted(server: Slapd, place: Path, scheme: str) -> None:
    url = server.secure if scheme == "ldaps" else server.url.replace("ldap", "ldap+tls", 1)
    with child(place, f"url: {url}\nca_file: {CERTS}/ca.crt\n{CONFIG}") as program:
        assert program.lookup("alias", "alice@example.org") == "found|alice"
        assert program.check("auth", "alice:Al|ice's: pw") == "found"
    for ca in (f"ca_file: {CERTS}/other.crt\n", "", "ca_file: /nowhere\n"):
        with child(place, f"url: {url}\n{ca}{CONFIG}") as program:
            assert program.lookup("alias", "alice@example.org").startswith("error|LDAP: ")
    with child(place, f"url: {url.replace('127.0.0.1', '127.0.0.2')}\nca_file: {CERTS}/ca.crt\n{CONFIG}") as program:
        assert program.lookup("alias", "alice@example.org").startswith("error|LDAP: ")


def test_a_directory_that_comes_and_goes_is_errors_meanwhile(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        assert program.lookup("alias", "alice@example.org") == "found|alice"
        server.stop()
        server.start()
        assert program.lookup("alias", "alice@example.org") == "found|alice"  # no error between two questions
        server.stop()
        try:
            assert program.lookup("alias", "alice@example.org").startswith("error|LDAP: ")
            assert program.check("auth", "alice:Al|ice's: pw").startswith("error|LDAP: ")
            assert program.update().startswith("error|LDAP: ")
            with child(place, f"url: {server.url}\n{CONFIG}") as late:
                assert late.lookup("alias", "nobody").startswith("error|LDAP: ")
        finally:
            server.start()
        assert wait_for(lambda: program.lookup("alias", "alice@example.org") == "found|alice", 20), program.log()


def test_a_directory_that_hangs_is_an_error_within_the_deadline(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}") as program:
        assert program.lookup("alias", "alice@example.org") == "found|alice"
        server.pause()
        try:
            before = time.monotonic()
            assert program.lookup("alias", "alice@example.org").startswith("error|")
            assert time.monotonic() - before < 15
        finally:
            server.stop()
            server.start()
        assert wait_for(lambda: program.lookup("alias", "alice@example.org") == "found|alice", 30), program.log()


def test_what_the_directory_refuses_is_an_error(server: Slapd, place: Path) -> None:
    with child(place, f"url: {server.url}\n{CONFIG}".replace(PASSWORD, "wrong")) as program:
        assert program.lookup("alias", "x") == f"error|LDAP: {server.url}: Invalid credentials"
    with child(place, f"url: {server.url}\n{CONFIG}".replace(f"basedn: {BASE_DN}", "basedn: dc=nowhere")) as program:
        assert program.lookup("alias", "x") == 'error|LDAP: there is no basedn "dc=nowhere"'
    with child(
        place, f"url: {server.url}\nbasedn: {BASE_DN}\nalias_filter: (mail=%u\nalias_attributes: uid\n"
    ) as program:
        assert program.lookup("alias", "x") == "error|LDAP: Bad search filter"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("basedn x\nalias_filter (x=%u)\nalias_attributes x\n", '"url" is missing'),
        ("url http://x\nalias_filter (x=%u)\nalias_attributes x\n", 'not "http"'),
        ("url ldap://x\nalias_filter (x=%u)\n", '"alias_attributes" is missing'),
        ("url ldap://x\nuserinfo_filter (x=%u)\nuserinfo_attributes a, b\n", "userinfo_attributes must name 3"),
        ("url ldap://x\nalias_filter (x=%d)\nalias_attributes x\n", 'alias_filter: "%d" is not %u, %h or %%'),
        ("url ldap://x\nalias_fitler (x=%u)\n", 'unknown key "alias_fitler"; did you mean "alias_filter"?'),
    ],
)
def test_a_file_that_is_wrong_ends_the_program_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "table.conf"
    file.write_text(text)
    with Child([installed("table-ldap"), str(file)], handshake=[]) as program:
        assert program.process.wait(20) == 1
        assert said in program.log()
