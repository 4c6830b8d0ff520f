"""What the runner takes for the same log of a filter, and what it does not."""

import json
import random
import re

import pytest

from tests.corpus.runner.cases import HERE
from tests.corpus.runner.filters import dialogue
from tests.corpus.runner.text import fill

_CASES = {case["id"]: case for case in json.loads((HERE / "filter/cases.json").read_text()) if case["filter_log"]}
_IDS = re.compile(r"<(id|msgid)(\d+)>")


def seen(recorded: list[str], seed: int) -> list[str]:
    """A recorded log as another run of a server would make it."""
    chance = random.Random(seed)
    ids: dict[str, str] = {}

    def one(found: re.Match[str]) -> str:
        width = 16 if found[1] == "id" else 8
        return ids.setdefault(found[0], f"{chance.getrandbits(width * 4) | 0xA << (width - 1) * 4:0{width}x}")

    text = [
        _IDS.sub(one, line.replace("7.8.0-portable", "7.8.0").replace("OpenSMTPD", "Pillarbox")) for line in recorded
    ]
    now = iter(range(len(text)))
    text = [line.replace("<ts>", f"1764142819.{next(now):06}").replace("<port>", "45678") for line in text]
    return [fill(line.replace("<size>", "307").replace("<tls>", "TLSv1.3:TLS_AES_256_GCM_SHA384:256")) for line in text]


@pytest.mark.parametrize("case", _CASES.values(), ids=str)
def test_a_log_is_the_same_with_other_ids_times_and_ports(case: dict[str, list[str]]) -> None:
    log = case["filter_log"]
    assert not dialogue("log", seen(log, 1), log, varies=bool(case.get("order_varies")))


def test_an_answer_to_another_session_is_a_difference() -> None:
    log = _CASES["chain-both-proceed"]["filter_log"]
    got = seen(log, 1)
    at = next(n for n, line in enumerate(got) if line.startswith("> filter-result|"))
    got[at] = got[at].replace(got[at].split("|")[1], "a123456789abcdef")
    assert "recorded" in dialogue("log", got, log)


@pytest.mark.parametrize("at", [7, 12, -1])
def test_a_line_that_is_missing_or_comes_too_early_is_a_difference(at: int) -> None:
    log = _CASES["report-all-events-simple-message"]["filter_log"]
    got = seen(log, 1)
    line = got.pop(at)
    assert dialogue("log", got, log)
    got.insert(at - 1, line)
    assert dialogue("log", got, log)


def test_ehlo_may_offer_more_and_not_less() -> None:
    log = _CASES["report-all-events-simple-message"]["filter_log"]
    got = seen(log, 1)
    at = next(n for n, line in enumerate(got) if "|250-DSN" in line)
    got.insert(at, got[at].replace("DSN", "PIPELINING"))
    assert not dialogue("log", got, log)
    del got[at + 1]
    assert dialogue("log", got, log)


def test_recipients_in_another_order_are_the_same_only_where_the_recording_says_so() -> None:
    log = _CASES["smtp-out-report-events"]["filter_log"]
    got = seen(log, 1)
    first, second = (next(n for n, line in enumerate(got) if f"RCPT TO:<{name}@" in line) for name in ("two", "alice"))
    got[first : second + 4] = got[second : second + 4] + got[first:second]
    assert not dialogue("log", got, log, varies=True)
    assert dialogue("log", got, log)
