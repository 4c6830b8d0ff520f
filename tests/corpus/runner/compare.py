"""Compares what was seen with what was recorded. Every function returns "" or what is wrong, in one line."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.corpus.runner.text import numbered, plain, recorded, renumbered

# What programs and people rely on in a delivery status notification. Its other words and its MIME form are ours.
_DSN_ESSENCE = re.compile(
    r"(Subject|From|To|Return-Path|Delivered-To|Received|Reporting-MTA|Final-Recipient|Action|Status): "
    r"|\S+@\S+: |\tfor "
)


def dialog(seen: Sequence[Mapping[str, Any]], want: Sequence[Mapping[str, Any]]) -> str:
    """The replies of one session, and whether the server closed."""
    lines, wanted = _reply_lines(seen, numbered), _reply_lines(want, renumbered)
    for number, step in enumerate(want):
        what = f"step {number} {str(step.get('send', next(iter(step), '')))[:60]!r}"
        if number >= len(seen):
            return f"{what}: the server had closed; recorded {wanted[number]}"
        got = seen[number]
        for key in ("refused", "tls_ok", "unexpected"):
            if got.get(key) != step.get(key):
                return f"{what}: {key} is {got.get(key)}, recorded {step.get(key)}"
        if "expect" in step and not _same_replies(lines[number], wanted[number]):
            return f"{what}: {lines[number]}, recorded {wanted[number]}"
        if bool(got.get("closed")) != bool(step.get("closed")):
            return f"{what}: closed is {bool(got.get('closed'))}, recorded {bool(step.get('closed'))}"
    return ""


def _reply_lines(steps: Sequence[Mapping[str, Any]], normalise: Any) -> list[list[list[str]]]:
    """Per step its replies as lists of lines, ids numbered across the session."""
    shape = [[[r] if isinstance(r, str) else list(r) for r in step.get("expect", [])] for step in steps]
    flat = iter(normalise(line for replies in shape for reply in replies for line in reply))
    return [[[next(flat) for _ in reply] for reply in replies] for replies in shape]


def _same_replies(seen: list[list[str]], want: list[list[str]]) -> bool:
    return len(seen) == len(want) and all(map(_same_reply, seen, want))


def _same_reply(seen: list[str], want: list[str]) -> bool:
    if len(want) > 1 and want[0].startswith("250-") and any(line.endswith("HELP") for line in want):  # EHLO
        return seen[:1] == want[:1] and {line[4:] for line in want} <= {line[4:] for line in seen}
    return seen == want


def log(text: str, want: Iterable[str], words: Iterable[str]) -> str:
    """The lines of sessions (`<id> smtp …`) that begin with one of `words`, as multisets: ids are not told apart."""
    pattern = re.compile(rf"<id> (?:{'|'.join(words)}) ")
    got = Counter(line for line in map(plain, text.splitlines()) if pattern.match(line))
    wanted = Counter(line for line in map(recorded, want) if pattern.match(line))
    return _difference("log", got, wanted)


def queue(seen: Sequence[Mapping[str, Any]], want: Sequence[Mapping[str, Any]], *, varies: bool = False) -> str:
    """Queued messages, in any order: their lines, and the fields of their envelopes."""
    got = sorted(map(_seen_message, seen), key=_sort_key)
    wanted = sorted(map(_recorded_message, want), key=_sort_key)
    if len(got) != len(wanted):
        return f"{len(got)} messages are queued, recorded {len(wanted)}: {[m['envelopes'] for m in got]}"
    for one, other in zip(got, wanted, strict=True):
        if bad := _envelopes(one["envelopes"], other["envelopes"]):
            return bad
        if other["message"] and (bad := lines("message", one["message"], other["message"], varies=varies)):
            return bad
    return ""


def _seen_message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "message": _without_free_text(numbered(message["message"])),
        "envelopes": sorted(({k: plain(v) for k, v in e.items()} for e in message["envelopes"]), key=str),
    }


def _recorded_message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "message": _without_free_text(renumbered(_unfolded(message.get("message", [])))),
        "envelopes": sorted(({k: recorded(v) for k, v in e.items()} for e in message["envelopes"]), key=str),
    }


def _unfolded(text: Iterable[str]) -> list[str]:
    return [re.sub(r"<(.)\*(\d+)>", lambda m: m[1] * int(m[2]), line) for line in text]


def _without_free_text(text: list[str]) -> list[str]:
    """A delivery status notification is compared by what is in `_DSN_ESSENCE`, anything else whole."""
    if not any(line.startswith("From: Mailer Daemon <MAILER-DAEMON@") for line in text):
        return text
    return sorted(line for line in text if _DSN_ESSENCE.match(line))


def _envelopes(seen: Sequence[Mapping[str, str]], want: Sequence[Mapping[str, str]]) -> str:
    if len(seen) != len(want):
        return f"envelopes {seen}, recorded {want}"
    for got, wanted in zip(seen, want, strict=True):
        for field, value in wanted.items():
            if got.get(field) != value:
                return f"envelope to {wanted.get('dest')}: {field} is {got.get(field)!r}, recorded {value!r}"
    return ""


def _sort_key(message: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return [f"{e.get('type')} {e.get('sender')} {e.get('dest')}" for e in message["envelopes"]], message["message"]


def lines(what: str, seen: Sequence[str], want: Sequence[str], *, varies: bool = False) -> str:
    """Two texts line by line; as multisets where the recording says that the order varies."""
    if varies:
        return _difference(what, Counter(_anonymous(seen)), Counter(_anonymous(want)))
    for number, (one, other) in enumerate(zip(seen, want, strict=False), 1):
        if one != other:
            return f"{what} line {number}: {one!r}, recorded {other!r}"
    if len(seen) != len(want):
        return f"{what}: {len(seen)} lines, recorded {len(want)}: {(seen[len(want) :] or want[len(seen) :])[:3]}"
    return ""


def files(seen: Mapping[str, Sequence[Mapping[str, Any]]], want: Mapping[str, Any], *, varies: bool = False) -> str:
    """Files after a delivery: names, modes, lines. Several under one random name are compared in any order."""
    if set(seen) != set(want):
        return f"files {sorted(seen)}, recorded {sorted(want)}"
    for name, wanted in want.items():
        got = sorted(((f["mode"], _without_free_text(numbered(f["lines"]))) for f in seen[name]), key=str)
        texts = ((f["mode"], renumbered(_unfolded(f["lines"]))) for f in wanted)
        expected = sorted(((mode, _without_free_text(text)) for mode, text in texts), key=str)
        if len(got) != len(expected):
            return f"{name}: {len(got)} files, recorded {len(expected)}"
        for one, other in zip(got, expected, strict=True):
            if one[0] != other[0]:
                return f"{name}: mode {one[0]}, recorded {other[0]}"
            if bad := lines(name, one[1], other[1], varies=varies):
                return bad
    return ""


def sessions(seen: Mapping[str, Sequence[Sequence[str]]], want: Mapping[str, Any], *, varies: bool = False) -> str:
    """What scripted servers were told."""
    for number, wanted in want.items():
        got = seen.get(number, [])
        if len(got) != len(wanted):
            return f"sink {number}: {len(got)} sessions, recorded {len(wanted)}: {got}"
        pairs = zip(sorted(map(numbered, got)), sorted(map(renumbered, wanted)), strict=True)
        for one, other in pairs:
            got_lines, wanted_lines = _plain_dsn(one), _plain_dsn(_unfolded(other))
            if bad := lines(f"sink {number}", got_lines, wanted_lines, varies=varies):
                return bad
    return ""


def transactions(sessions: Iterable[Sequence[str]]) -> list[list[str]]:
    """What was sent, message by message, whichever session it went by: from each MAIL to what follows its end."""
    found: list[list[str]] = []
    for session in sessions:
        inside = False
        for line in session:
            if line.startswith("C: MAIL "):
                found.append([])
                inside = True
            elif line.startswith(("C: QUIT", "CLOSE:")):
                inside = False
            if inside:
                found[-1].append(line)
    return found


def _plain_dsn(session: list[str]) -> list[str]:
    """A session with the free text of a notification left out of the message it carries."""
    if not any(line.startswith("C: From: Mailer Daemon <MAILER-DAEMON@") for line in session):
        return session
    start, end = session.index("C: DATA") + 2, session.index("C: .")
    kept = sorted(f"C: {line[3:]}" for line in session[start:end] if _DSN_ESSENCE.match(line[3:]))
    return session[:start] + kept + session[end:]


def _anonymous(text: Iterable[str]) -> list[str]:
    return [re.sub(r"<(id|msgid)\d+>", r"<\1>", line) for line in text]


def _difference(what: str, seen: Counter[str], want: Counter[str]) -> str:
    extra, missing = seen - want, want - seen
    if not extra and not missing:
        return ""
    return f"{what}: not recorded {sorted(extra.elements())[:3]}, missing {sorted(missing.elements())[:3]}"
