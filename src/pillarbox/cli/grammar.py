"""The argument grammar of smtpctl(8): patterns of words and parameters, words by unambiguous prefix.

A pattern is `pause mta from <addr> for <str>`. Patterns that begin alike share a path in a tree; where nothing fits,
the continuations of the last place that did are listed in the order of the patterns.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

Value: TypeAlias = int | str
Handler: TypeAlias = Callable[[list[Value]], int]


class NoCommand(Exception):
    """The arguments are no command; its text is what to print on stderr."""


class _Node:
    __slots__ = ("children", "handler", "listed", "token")

    def __init__(self, token: str = "", listed: bool = True) -> None:
        self.token = token
        self.listed = listed
        self.children: list[_Node] = []
        self.handler: Handler | None = None


class Grammar:
    """All commands of one program."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, pattern: str, handler: Handler, *, listed: bool = True) -> None:
        """A command; one that is not `listed` must be written out and is not offered (ours, not the reference's)."""
        node = self._root
        for token in pattern.split():
            found = next((child for child in node.children if child.token == token), None)
            if found is None:
                found = _Node(token, listed)
                node.children.append(found)
            node = found
        node.handler = handler

    def run(self, arguments: Sequence[str]) -> int:
        """Carry out the command, handing its parameters on; raises `NoCommand`."""
        node, path, values = self._root, list[str](), list[Value]()
        for argument in arguments:
            step = _step(node, argument)
            if step is None:
                raise NoCommand(_possibilities(node, path))
            node, value = step
            path.append(node.token)
            if value is not None:
                values.append(value)
        if node.handler is None:
            raise NoCommand(_possibilities(node, path))
        return node.handler(values)


def _step(node: _Node, argument: str) -> tuple[_Node, Value | None] | None:
    """The child that an argument leads to: what fits exactly, in order, else the only word that it begins."""
    for child in node.children:
        if not child.token.startswith("<"):
            if child.token == argument:
                return child, None
            continue
        value = _parse(child.token, argument)
        if value is not None:
            return child, value
    words = [c for c in node.children if c.listed and not c.token.startswith("<") and c.token.startswith(argument)]
    return (words[0], None) if len(words) == 1 else None


def _possibilities(node: _Node, path: list[str]) -> str:
    lines = [" ".join((*path, child.token)) for child in node.children if child.listed]
    return "\n".join(("possibilities are:", *lines)) if lines else "invalid command"


def _parse(kind: str, text: str) -> Value | None:
    """A parameter's value, None where the text is not one."""
    match kind:
        case "<str>":
            return text
        case "<msgid>":
            return _hexadecimal(text, 8)
        case "<evpid>":
            return _hexadecimal(text, 16)
        case "<routeid>":
            number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
            return number if 1 <= number < 1 << 63 else None
        case "<addr>":
            import ipaddress  # noqa: PLC0415 - for one command

            try:
                return str(ipaddress.ip_address(text))
            except ValueError:
                return None
    raise ValueError(kind)


def _hexadecimal(text: str, digits: int) -> int | None:
    """An id of so many digits; 0 is none."""
    if len(text) != digits or not set(text) <= set("0123456789abcdefABCDEF"):
        return None
    return int(text, 16) or None
