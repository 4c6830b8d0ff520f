"""Addresses out of a From, To, Cc or Bcc field (RFC 5322 §3.4), as `sendmail -t` needs them: only what is delivered to.

More tolerant than the grammar: what people and programs write between the addresses does not matter.
"""

from collections.abc import Iterator


class BadAddress(ValueError):
    """A quote, comment or escape that never ends."""


def parse_addresses(text: str) -> list[str]:
    """The addresses of an unfolded field body; display names, comments and groups' names are left out.

    `Ann <a@x>, list: b@x, c;` gives a@x, b@x, c. Raises `BadAddress`.
    """
    found: list[str] = []
    bare = ""  # outside of angle brackets: a display name, until it turns out to be the address
    bracketed: str | None = None
    for item in _tokens(text):
        if bracketed is not None:
            if item == ">":
                found.append(bracketed)
                bracketed, bare = None, ""
            else:
                bracketed += item
        elif item == "<":
            bracketed = ""
        elif item == ":":  # a group's name ends
            bare = ""
        elif item in (",", ";"):
            found.append(bare)
            bare = ""
        else:
            bare += item
    found.append(bare if bracketed is None else bracketed)
    return [address for address in found if address]


def _tokens(text: str) -> Iterator[str]:
    """Quoted strings whole, other characters one by one, without comments and white space."""
    position = 0
    while position < len(text):
        start = position
        match text[position]:
            case "(":
                position = _comment_end(text, position)
                continue
            case '"':
                position = _quote_end(text, position)
            case "\\":
                position += 2
                if position > len(text):
                    raise BadAddress("syntax error in address")
            case _:
                position += 1
        if not (item := text[start:position]).isspace():
            yield item


def _quote_end(text: str, start: int) -> int:
    """Behind the quoted string that begins here."""
    position = start + 1
    while position < len(text):
        if text[position] == '"':
            return position + 1
        position += 2 if text[position] == "\\" else 1
    raise BadAddress("syntax error in address")


def _comment_end(text: str, start: int) -> int:
    """Behind the comment that begins here; comments nest."""
    depth = 0
    position = start
    while position < len(text):
        c = text[position]
        if c == "\\":
            position += 1
        elif c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
            if not depth:
                return position + 1
        position += 1
    raise BadAddress("syntax error in address")
