"""`listen on …`: who may log in, and how."""

import pytest

from pillarbox.conf.model import AUTH_SYSTEM, MECHANISMS
from pillarbox.errors import ConfigError
from pillarbox.smtp.sasl import mechanisms as sasl
from tests.conf.test_build import PKI, listener, load

CREDENTIALS = 'table creds { alice = "hash" }\ntable tokens { alice = "hash" }\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auth", {"auth": AUTH_SYSTEM}),
        ("auth pam", {"auth": "<pam:smtp>"}),
        ('auth-optional pam "mail"', {"auth": "<pam:mail>", "auth_optional": True}),
        ("auth pam mail tag T", {"auth": "<pam:mail>", "tag": "T"}),
        ("auth pam tag pam", {"auth": "<pam:smtp>", "tag": "pam"}),
        ("auth <creds> mechanisms scram-sha-256", {"mechanisms": ("SCRAM-SHA-256",)}),
        ("auth <creds> mechanisms { plain, scram-sha-256 }", {"mechanisms": ("PLAIN", "SCRAM-SHA-256")}),
        ("auth <creds> tokens <tokens>", {"auth": "creds", "tokens": "tokens"}),
        ("tokens <tokens> auth", {"auth": AUTH_SYSTEM, "tokens": "tokens"}),
        ("auth tokens <tokens> mechanisms { xoauth2 }", {"tokens": "tokens", "mechanisms": ("XOAUTH2",)}),
    ],
)
def test_listener_auth(text: str, expected: dict[str, object]) -> None:
    found = listener(f"lo tls pki a.example {text}", before=PKI + CREDENTIALS)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("word", ["pam", "mechanisms", "tokens"])
def test_words_of_ours_are_words_like_any_other_elsewhere(word: str) -> None:
    text = f'pki {word} cert "/c" key "/k"\nca {word} cert "/ca"\ntable {word} {{ a = b }}\n'
    options = (
        f"tls pki {word} ca {word} tag {word} hostname {word} ciphers {word} auth-optional <{word}> senders <{word}>"
    )
    found = load(f"{text}listen on {word} {options}\nmatch reject\n").listeners[0]
    assert (found.interface, found.tag, found.hostname, found.auth, found.senders) == (word,) * 5
    assert load(f"action {word} maildir\nmatch for domain {word} action {word}\n").actions[word].method == "maildir"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mechanisms plain", "invalid listen option: mechanisms requires auth or auth-optional"),
        ("tokens <tokens>", "invalid listen option: tokens requires auth or auth-optional"),
        ("auth mechanisms cram-md5", "unknown AUTH mechanism: cram-md5"),
        ("auth mechanisms plan", 'unknown AUTH mechanism: plan; did you mean "PLAIN"?'),
        ("auth <creds> mechanisms xoauth2", "invalid listen option: XOAUTH2 and OAUTHBEARER require tokens"),
        ("auth tokens <tokens> mechanisms plain", "invalid listen option: tokens require XOAUTH2 or OAUTHBEARER among"),
        ("auth mechanisms scram-sha-256", "invalid listen option: system users cannot do SCRAM"),
        ("auth pam mechanisms scram-sha-256-plus", "invalid listen option: system users cannot do SCRAM"),
        ("auth <creds> tokens { alice }", 'invalid use of table "<dynamic:0>" as TOKENS parameter'),
        ("auth mechanisms plain mechanisms login", "mechanisms already specified"),
        ("auth tokens <tokens> tokens <tokens>", "tokens already specified"),
        ("auth pam auth", "auth already specified"),
        ('auth pam ""', "invalid PAM service: "),
        ('auth pam "../x"', "invalid PAM service: ../x"),
    ],
)
def test_listener_auth_that_cannot_be(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listener(f"lo tls pki a.example {text}", before=PKI + CREDENTIALS)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "auth <creds> mechanisms scram-sha-256",
            'no SCRAM for 1 of 2 users of table "creds": smtpctl encrypt --scram',
        ),
        ("auth <creds> tokens <creds>", 'no token fits 2 of 2 users of table "creds": smtpctl encrypt --token makes'),
        ("auth <creds>", ""),
    ],
)
def test_secrets_that_cannot_fit_are_warned_of(text: str, warning: str) -> None:
    tables = 'table creds { alice = "hash", bob = "SCRAM-SHA-256$x" }\n'
    warnings = load(f"{PKI}{tables}listen on lo tls pki a.example {text}\nmatch reject\n").warnings
    assert warning in "".join(warnings) and len(warnings) == bool(warning)


def test_limits_of_failed_logins() -> None:
    found = load("smtp limit max-failed-logins 3 max-failed-logins-per-source 7\nmatch reject").smtp
    assert (found.max_failed_logins, found.max_failed_logins_per_source) == (3, 7)


def test_the_mechanisms_are_those_that_there_are() -> None:
    assert list(MECHANISMS) == list(sasl.MECHANISMS)
