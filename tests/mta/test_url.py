import pytest

from pillarbox.conf.model import Relay
from pillarbox.mta.policy import tls_policy
from pillarbox.mta.url import RelayUrl, parse_relay_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("mail.example", RelayUrl("smtp", "mail.example", 25)),
        ("smtp://mail.example:2525", RelayUrl("smtp", "mail.example", 2525)),
        ("SMTPS://mail.example", RelayUrl("smtps", "mail.example", 465)),
        ("smtp+notls://10.0.0.1", RelayUrl("smtp+notls", "10.0.0.1", 25)),
        ("smtp+tls://label@mail.example", RelayUrl("smtp+tls", "mail.example", 25, "label")),
        ("lmtp://localhost:24", RelayUrl("lmtp", "localhost", 24)),
        ("smtp://[::1]:2525", RelayUrl("smtp", "[::1]", 2525)),
        ("smtp://my_host", RelayUrl("smtp", "my_host", 25)),
    ],
)
def test_urls(text, url):
    assert parse_relay_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "gopher://x", "smtp://", "smtp://:25", "smtp://x:0", "smtp://x:65536", "smtp://x:p", "smtp://x:", "lmtp://x",
        "smtp://label@x", "smtp+notls://label@x", "lmtp://label@x:24", "smtp://[::1", "smtp://-x.example",
        "smtp://a..b", f"smtps://{'l' * 64}@x",
    ],
)  # fmt: skip
def test_what_is_no_url(text):
    assert parse_relay_url(text) is None


@pytest.mark.parametrize(
    ("url", "option", "expected"),
    [
        ("", "", ("smtp", "opportunistic", False)),
        ("", "require", ("smtp+tls", "required", True)),
        ("smtp://x", "no-verify", ("smtp+tls", "required", False)),
        ("smtp+tls://x", "", ("smtp+tls", "required", True)),
        ("smtps://x", "", ("smtps", "immediate", True)),
        ("smtps://x", "no-verify", ("smtps", "immediate", False)),
        ("smtp+notls://x", "", ("smtp+notls", "none", False)),
        ("lmtp://x:24", "", ("lmtp", "none", False)),
        ("smtp+notls://x", "require", None),
        ("lmtp://x:24", "no-verify", None),
    ],
)
def test_tls_policy(url, option, expected):
    policy = tls_policy(parse_relay_url(url) if url else None, Relay(name="out", tls=option))
    assert expected == (policy and (policy.scheme, policy.tls, policy.verify))
