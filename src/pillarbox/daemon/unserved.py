"""What a configuration may ask for and this version does not do yet. `smtpd -n` accepts it, the server does not start.

Going on without would harm: a queue that should be encrypted lies open on disk. What is merely missing (compression) is
no reason to stay down.
"""

from collections.abc import Iterator

from pillarbox.conf.model import Config
from pillarbox.errors import ConfigError, Problem


def refuse_unserved(config: Config) -> None:
    """Raise ConfigError naming each of them."""
    problems = list(_problems(config))
    if problems:
        raise ConfigError(problems)


def _problems(config: Config) -> Iterator[Problem]:
    if config.queue.encryption or config.queue.encryption_ask:
        yield _problem(config, "queue encryption", 0)


def _problem(config: Config, what: str, line: int) -> Problem:
    return Problem(f"{what} is not there yet in this version: the server does not start without it", config.file, line)
