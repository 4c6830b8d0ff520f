"""Every form of a statement that smtpd.conf(5) describes is accepted, and comes out of the canonical form the same."""

import pytest

from pillarbox.conf.build import load_config
from pillarbox.conf.format import format_config
from pillarbox.conf.uses import normal

BEFORE = """\
pki mx.example.org cert "/c" key "/k"
pki "*" cert "/c" key "/k"
ca corp cert "/ca"
srs key "secret"
table list { "a", "b" }
table map { "a" = "b" }
proc rspamd "rspamd"
filter rspamd proc rspamd
filter early phase connect match !rdns disconnect "550 no"
filter both chain { early, rspamd }
mda wrapper sieve "sieve"
action "local" mbox
action "out" relay
"""

ACTIONS = """
expand-only | expand-only alias <map> | forward-only virtual <map> userbase <map> | mbox alias <map> ttl 1d
lmtp "/run/lmtp.sock" | lmtp localhost:24 | lmtp "localhost:24" rcpt-to user vmail | maildir | maildir junk
maildir "/mail/%{dest.domain}/%{dest.user}" | maildir "~/Mail" junk user vmail virtual <map> wrapper sieve ttl 12h
mda "/usr/bin/procmail -f %{sender}" | mda "cat" alias { root = alice } | mbox wrapper sieve
maildir userbase <map> | relay | relay backup | relay backup mx mx2.example.org | relay ca corp
relay helo mx.example.org | relay helo-src <map> | relay domain <map>
relay domain { example.org = "smtp://mx.example.org" } auth <map> | relay host mx.example.org
relay host "smtp+notls://[::1]:25" | relay host lmtp://localhost:24
relay host smtps://me@mx.example.org auth <map> | relay host <list> | relay host { mx1, mx2 }
relay pki mx.example.org | relay srs | relay tls | relay tls no-verify | relay protocols "TLSv1.2:TLSv1.3"
relay ciphers HIGH | relay mail-from "@example.org" | relay src 192.0.2.1 | relay src <list>
relay src { 192.0.2.1, "2001:db8::1" } | relay filter rspamd | relay filter { early, rspamd } ttl 2d
"""
LISTENERS = """
lo | lo inet4 | lo inet6 | eth0 port 2525 | 192.0.2.1 port submission | "2001:db8::1" | localhost port smtp | egress
lo port smtps smtps pki mx.example.org | lo smtps verify pki mx.example.org ca corp | lo tls pki mx.example.org
lo tls-require pki mx.example.org pki "*" | lo tls-require verify pki mx.example.org | lo filter rspamd
lo filter both | lo tls pki mx.example.org auth | lo tls pki mx.example.org auth <list>
lo tls pki mx.example.org auth-optional | lo tls pki mx.example.org auth-optional { a = b }
lo tls pki mx.example.org auth pam | lo tls pki mx.example.org auth-optional pam mail tag LAN
lo tls pki mx.example.org auth <map> mechanisms { plain, scram-sha-256 } | lo tls pki mx.example.org tokens <map> auth
lo filter { early rspamd } | lo hostname mx.example.org tag LAN | lo hostnames <map>
lo hostnames { 192.0.2.1 = "mx" } | lo mask-src no-dsn received-auth proxy-v2 | lo senders <map>
lo senders { a = b } masquerade | lo tls pki mx.example.org protocols "TLSv1.3" ciphers HIGH | socket
socket filter rspamd mask-src no-dsn tag LOCAL | socket filter { early }
"""
MATCHES = """
for any | for local | for domain example.org | for domain { example.org, "*.example.net" } | for domain <list>
for domain regex "^ex" | for domain regex { "^a", "b$" } | for domain regex <list> | for rcpt-to "a@example.org"
for rcpt-to <map> | for rcpt-to regex <list> | !for any | !for local | !for domain example.org | !for rcpt-to <list>
from any | from auth | from auth alice | from auth <list> | from auth regex "^a" | from local | from mail-from "@"
from mail-from <map> | from mail-from regex <list> | from rdns | from rdns mx.example.org | from rdns regex "^mx"
from rdns <list> | from socket | from src 192.0.2.1 | from src { 192.0.2.0/24, "2001:db8::/32" }
from src regex "^192" | from src <list> | !from any | !from auth | !from local | !from rdns | !from socket
!from src <list> | auth | auth alice | auth <map> | auth regex <list> | !auth | helo mx.example.org | helo <list>
helo regex "^mx" | !helo <list> | mail-from "a@example.org" | mail-from <map> | mail-from regex <list>
!mail-from "@" | rcpt-to <map> | rcpt-to { a, b } | !rcpt-to regex "^a" | tag LAN | tag regex "^L" | tag <list>
!tag LAN | tls | !tls | tls !auth tag X from any for any
"""
FILTERS = """
proc rspamd | proc-exec "filter-x -a" | proc-exec "/bin/x" user a group b chroot "/c" | chain { early }
proc-exec "/bin/x" timeout 90s fail open protocol "0.6" user timeout group fail chroot protocol
chain { early, rspamd } | phase connect match fcrdns junk | phase connect match !fcrdns disconnect "421 no"
phase connect match src <list> bypass | phase helo match rdns { "*.dyn.example" } reject "550 no"
phase ehlo match helo regex "^x" rewrite "y" | phase auth match auth <list> report "seen"
phase mail-from match mail-from regex <map> junk | phase rcpt-to match rcpt-to { a } reject "550"
phase data match !auth disconnect "550" | phase commit match src a reject "x"
"""
OTHERS = """
admd example.org | bounce warn-interval 1h | bounce warn-interval 1h, 6h, 2d | ca other cert "/ca"
mda limit max-session 10 | mda limit max-session 1 max-session-per-user 2 task-lowat 3 task-hiwat 4 task-release 5
mda wrapper w "/bin/w %{mda}" | mta max-deferred 10 | mta limit session-mail-max 1 | mta limit inet4
mta limit for domain d inet6
scheduler limit max-inflight 1 max-schedule 2 max-evp-batch-size 3 max-msg-batch-size 4
pki a cert "/c" key "/k" dhe auto | pki b key "/k" cert "/c" dhe NONE | proc p "/bin/p" group g user u
queue compression | queue encryption | queue ttl 4d | queue encryption 0123456789abcdef0123456789abcdef
smtp ciphers HIGH | smtp limit max-mails 1 max-rcpt 2 | srs ttl 2d | smtp max-message-size 35M
smtp max-message-size 1048576 | smtp max-message-size 1.5g | smtp sub-addr-delim "-" | srs key backup "old"
table t { a } | table t { a b } | table t { a => b, c = d } | table t "/list" | table t file:/list
table t getpwnam | table t db:/list | table t sqlite:/list | table t proc:/bin/t | x = "y" | include "/nothing"
report smtp-in on rspamd | report smtp-out on rspamd | report smtp on rspamd | dns resolver 127.0.0.1 port 53
report mda on rspamd
"""


def forms(text: str) -> list[str]:
    return [form.strip() for line in text.strip().split("\n") for form in line.split(" | ")]


STATEMENTS = [
    *(f'action "x" {form}' for form in forms(ACTIONS)),
    *(f"listen on {form}" for form in forms(LISTENERS)),
    *(f'match {form} action "out"' for form in forms(MATCHES)),
    *(f"match {form} reject" for form in forms(MATCHES)),
    *(f"filter x {form}" for form in forms(FILTERS)),
    *forms(OTHERS),
]
FILES = {"/list": "a\n", "/nothing": ""}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_is_accepted(statement: str) -> None:
    def load(text: str):  # type: ignore[no-untyped-def]
        known = {**FILES, "c": text}
        return load_config(file="c", read=known.__getitem__, macros={}, hostname="h", checker=None)

    config = load(f"{BEFORE}{statement}\nmatch reject\n")
    assert normal(load(format_config(config))) == normal(config)
