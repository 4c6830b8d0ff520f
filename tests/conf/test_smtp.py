"""What is ours about listeners and sessions; what is refused of it is in bad/smtp-settings.conf."""

from pillarbox.conf.build import load_config
from pillarbox.conf.model import Config


def build(text: str) -> Config:
    def read(_path: str) -> str:
        return text

    return load_config(file="smtpd.conf", read=read, macros={}, hostname="mx.example.org", checker=None)


def test_a_listener_that_believes_anybody_is_warned_of_unless_it_is_on_loopback() -> None:
    text = 'listen on {} {}\naction "x" mbox\nmatch for local action "x"\n'
    for where, how, warned in (
        ("eth0", "proxy", True),
        ("192.0.2.1", "proxy-v2", True),
        ("192.0.2.1", "proxy-v2 from 192.0.2.2", False),
        ("127.0.0.2", "proxy-v2", False),
        ("lo", "proxy", False),
        ("eth0", "tag proxy", False),
    ):
        warnings = build(text.format(where, how)).warnings
        assert any("can be any address" in warning for warning in warnings) is warned, (where, how)


def test_our_words_are_words_like_any_other_elsewhere() -> None:
    config = build(
        'table "proxy" { greet-delay }\n'
        "listen on proxy tag greet-delay hostname proxy proxy from <proxy> greet-delay 5s\n"
        "action proxy mbox\nmatch tag proxy from any for domain rate action proxy\n"
    )
    (listener, _) = config.listeners
    assert (listener.interface, listener.tag, listener.hostname) == ("proxy", "greet-delay", "proxy")
    assert (listener.proxy, listener.proxy_from, listener.greet_delay) == (True, "proxy", 5)


def test_the_last_rate_of_a_kind_counts() -> None:
    rates = build(
        "smtp rate mails-per-user 5 1h\nsmtp rate rcpt-per-user 9 1d\nsmtp rate mails-per-user 6 1m\n"
        'action "x" mbox\nmatch for local action "x"\n'
    ).smtp.rates
    assert [(rate.what, rate.count, rate.seconds) for rate in rates] == [
        ("rcpt-per-user", 9, 86400),
        ("mails-per-user", 6, 60),
    ]
