"""`smtp NAME …`: what is set about sessions and is ours. The names are words like any other elsewhere."""

from collections.abc import Callable

from pillarbox.conf.draft import Draft, Node, Wrong, token, values, word
from pillarbox.conf.lexer import NUMBER
from pillarbox.conf.model import RATES, Rate
from pillarbox.conf.values import limit, parse_delay

MAX_TARPIT = 60  # seconds; RFC 5321 §4.5.3.2: clients wait five minutes for a reply
LINE_MIN, LINE_MAX = 998, 65535  # RFC 5321 §4.5.3.1.6, and what the server can take
BARE_NEWLINE = ("reject", "normalize")


def build_smtp_setting(draft: Draft, node: Node) -> None:
    """`smtp rate`, `smtp tarpit`, …"""
    name = word(node)
    build = _SETTINGS.get(name)
    if build is None:
        names = (*_SETTINGS, "limit", "ciphers", "max-message-size", "sub-addr-delim")
        raise Wrong(token(node), f"invalid smtp keyword: {name}", names=names, near=name)
    build(draft, node)


def short_time(node: Node, index: int, name: str, most: int) -> int:
    """The time at `index`, in seconds; `most` of them at most."""
    text = word(node, index)
    try:
        seconds = parse_delay(text)
    except ValueError:
        fault = f"invalid {name}: {text}; a time is a number and s, m, h or d"
        raise Wrong(token(node, index), fault) from None
    if seconds > most:
        raise Wrong(token(node, index), f"{name} is too long: {most} seconds at most")
    return seconds


def _arguments(node: Node, usage: str, *kinds: str) -> None:
    """Are the values behind the name of these types?"""
    given = [value.type for value in values(node)[1:]]
    if given != list(kinds):
        raise Wrong(token(node), f"syntax error: {word(node)} is written {usage}")


def _rate(draft: Draft, node: Node) -> None:
    _arguments(node, "smtp rate WHAT NUMBER TIME", "STRING", NUMBER, "STRING")
    what, count = word(node, 1), limit(word(node, 2))
    if what not in RATES:
        raise Wrong(token(node, 1), f"invalid rate keyword: {what}", names=RATES, near=what)
    if not count:
        raise Wrong(token(node, 2), "a rate is one at least")
    rate = Rate(what=what, count=count, seconds=short_time(node, 3, "time", _DAY))
    others = tuple(known for known in draft.get("smtp").rates if known.what != what)
    draft.change("smtp", rates=(*others, rate))


def _time(field: str, most: int) -> Callable[[Draft, Node], None]:
    def build(draft: Draft, node: Node) -> None:
        _arguments(node, f"smtp {word(node)} TIME", "STRING")
        draft.change("smtp", **{field: short_time(node, 1, word(node), most)})

    return build


def _bare_newline(draft: Draft, node: Node) -> None:
    _arguments(node, "smtp bare-newline reject|normalize", "STRING")
    how = word(node, 1)
    if how not in BARE_NEWLINE:
        raise Wrong(token(node, 1), f"invalid bare-newline keyword: {how}", names=BARE_NEWLINE, near=how)
    draft.change("smtp", bare_newline=how)


def _max_line_length(draft: Draft, node: Node) -> None:
    _arguments(node, "smtp max-line-length NUMBER", NUMBER)
    length = int(word(node, 1))
    if not LINE_MIN <= length < LINE_MAX:
        raise Wrong(token(node, 1), f"invalid max-line-length: from {LINE_MIN} to {LINE_MAX - 1}")
    draft.change("smtp", max_line_length=length)


_DAY = 86400
_SETTINGS: dict[str, Callable[[Draft, Node], None]] = {
    "rate": _rate,
    "tarpit": _time("tarpit", MAX_TARPIT),
    "bare-newline": _bare_newline,
    "max-line-length": _max_line_length,
    "max-data-time": _time("max_data_time", _DAY),
}
