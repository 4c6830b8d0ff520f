"""What CPU time reading a configuration takes, and writing it: `python bench/config.py`.

Large in the ways that files grow: a table of 100,000 entries in the file, 10,000 rules, and five megabytes of each kind
of line. Each is measured at a quarter of its size too: four times the text may cost about four times as long.
"""

import gc
import time
from collections.abc import Callable
from functools import partial

from pillarbox.conf.build import load_config
from pillarbox.conf.format import format_config
from pillarbox.conf.model import Config
from pillarbox.daemon.check import Machine
from pillarbox.errors import ConfigError

ACTIONS = 'listen on lo\naction "local" mbox\naction "out" relay\n'


def entries(count: int) -> str:
    lines = "".join(f"\thost{n}.example.org,\n" for n in range(count))
    return f'table t {{\n{lines}\tlast }}\n{ACTIONS}match for domain <t> action "local"\nmatch for any action "out"\n'


def pairs(count: int) -> str:
    lines = "".join(f'\t"user{n}@example.org" = "mailbox{n}",\n' for n in range(count))
    return (
        f'table t {{\n{lines}\tlast = last }}\n{ACTIONS}action "v" maildir virtual <t>\nmatch for local action "v"\n'
        'match for any action "out"\nmatch from socket action "local"\n'
    )


def rules(count: int) -> str:
    lines = "".join(
        f'match from src 10.{n >> 8 & 255}.{n & 255}.0/24 for domain {{ a{n}.example, b{n}.example }} action "local"\n'
        for n in range(count)
    )
    return f'{ACTIONS}{lines}match for any action "out"\n'


def actions(count: int) -> str:
    made = "".join(f'action "a{n}" relay host smtp+tls://mx{n}.example.org:25 ttl 2d\n' for n in range(count))
    used = "".join(f'match for domain d{n}.example action "a{n}"\n' for n in range(count))
    return f"listen on lo\n{made}{used}"


def comments(count: int) -> str:
    return "# nothing to see here, but sixty characters that have to be read\n" * count + "listen on lo\nmatch reject\n"


def broken(count: int) -> str:
    return "match for domain <nothing> rejct\n" * count


SHAPES: dict[str, tuple[Callable[[int], str], int]] = {
    "a list of 100,000 entries": (entries, 100_000),
    "a mapping of 100,000 entries": (pairs, 100_000),
    "10,000 rules": (rules, 10_000),
    "5 MB of a list": (entries, 215_000),
    "5 MB of rules": (rules, 60_000),
    "5 MB of actions and rules": (actions, 47_000),
    "5 MB of comments": (comments, 77_000),
    "5 MB of errors": (broken, 151_000),
}


def load(text: str) -> Config | None:
    try:
        return load_config(file="c", read=lambda _: text, macros={}, hostname="mx.example.org", checker=Machine())
    except ConfigError as error:
        assert len(error.problems) > 1000, error
        return None


def measure(run: Callable[[], object]) -> float:
    gc.collect()
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    load("match reject\n")  # builds the grammar
    for name, (make, count) in SHAPES.items():
        text, quarter = make(count), make(count // 4)
        small, whole = measure(partial(load, quarter)), measure(partial(load, text))
        config = load(text)
        wrote = f"   written in {measure(partial(format_config, config)):5.2f} s" if config else ""
        print(f"{name:<30} {len(text) / 1e6:5.1f} MB   read in {whole:5.2f} s (a quarter: {small:5.2f}){wrote}")


if __name__ == "__main__":
    main()
