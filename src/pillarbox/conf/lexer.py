"""Text → tokens: macros, includes, quoting, continuation, comments, numbers, keywords.

The rules are the reference's, which are those of yacc-era configuration files: a word is a run of characters, a
keyword is a keyword wherever it stands, and a macro's text is lexed again together with what follows it. `parser`
takes the tokens statement by statement, so that a macro or an include of one statement is in force for the next.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lark import Token

_RESERVED = """
    action admd alias any auth auth-optional backup bounce bypass ca cert chain chroot ciphers commit
    compression connect data data-line dhe disconnect domain ehlo encryption expand-only fcrdns filter for
    forward-only from group helo helo-src host hostname hostnames include inet4 inet6 junk key limit listen lmtp
    local mail-from maildir mask-src masquerade match max-deferred max-message-size mbox mda mta mx no-dsn
    no-verify noop on phase pki port proc proc-exec protocols proxy-v2 queue quit rcpt-to rdns received-auth
    recipient regex reject relay report rewrite rset scheduler senders smtp smtp-in smtp-out smtps socket src
    srs sub-addr-delim table tag tagged tls tls-require ttl user userbase verify virtual warn-interval wrapper
"""
KEYWORDS = {word: "_" + word.upper().replace("-", "_") for word in _RESERVED.split()}
"""Reserved words (the reference's table, those that no rule uses included) and their terminals."""

STRING, NUMBER, NL, OTHER, EOF = "STRING", "NUMBER", "_NL", "_OTHER", "_EOF"
_PUNCTUATION = {
    "\n": NL,
    "{": "_LBRACE",
    "}": "_RBRACE",
    "<": "_LT",
    ">": "_GT",
    ",": "_COMMA",
    "!": "_BANG",
    "=": "_EQ",
}

MAX_TOKEN = 8094  # bytes: the reference's token buffer
MAX_DEPTH = 100  # includes within includes; the reference runs out of descriptors
MAX_INCLUDES = 10_000
MAX_EXPANSION = 1 << 22  # characters that macros may add in all, so that a small file cannot cost gigabytes

_WORD_CHARS = r"A-Za-z0-9\"$%&'*+\-./:;?@\[\]^_`|~"  # ASCII letters, digits, and punctuation without (){}<>!=#,
_COMMON = re.compile(
    rf'[ \t]*(?:(?P<word>[A-Za-z0-9:_][{_WORD_CHARS}]*+(?!\\))|"(?P<string>[^"\\\n\x00]*)"|(?P<mark>[\n{{}}<>,!]))'
)
_BLANK = re.compile(r"(?:[ \t]|\\[ \t\n])*+")
_COMMENT = re.compile(r"#(?:[^\\\n]++|\\[\s\S])*+\\?")
_MACRO = re.compile(r"\$([A-Za-z0-9_]*)")
_WORD = re.compile(rf"[A-Za-z0-9:_](?:[{_WORD_CHARS}]++|\\[{_WORD_CHARS}\\\n])*+")
_UNESCAPE = re.compile(r"\\(?:\n|([\s\S]))")
_NUMBER = re.compile(r"-?[0-9]+(?=[ \t\n\r\v\f),/}=]|\Z)")
_QUOTED = {
    '"': re.compile(r'"(?:[^"\\\x00]++|\\"|\\)*+'),
    "'": re.compile(r"'(?:[^'\\\x00]++|\\'|\\)*+"),
}
_QUOTED_ESCAPE = {
    '"': re.compile(r'\\([" \t])|\\?\n'),
    "'": re.compile(r"\\([' \t])|\\?\n"),
}
_WINDOW = 256  # characters of the file that are lexed together with a macro's text, at first


class Skimmed(Token):
    """A separator within braces, and the `elements` behind it that were not parsed one by one."""

    __slots__ = ("elements",)
    elements: list[str]

    def __new__(cls, separator: Token, elements: list[str]) -> "Skimmed":
        """A separator that carries elements."""
        made: Skimmed = super().__new__(  # type: ignore[assignment]  # lark says Token, and it is one of cls
            cls, separator.type, str(separator), separator.start_pos, separator.line
        )
        made.elements = elements
        return made


class LexError(Exception):
    """No token here; `line` and `pos` say where, `macro` which one is unknown. The lexer stands at the line's end."""

    def __init__(self, message: str, source: "Source", line: int, pos: int, macro: str = "") -> None:
        super().__init__(message)
        self.message, self.source, self.line, self.pos, self.macro = message, source, line, pos, macro


class Source:
    """One file that is being read: `pos` is the next character, `line` its line."""

    __slots__ = ("ended", "line", "name", "pos", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.pos, self.line, self.ended = 0, 1, False


class Match(NamedTuple):
    """What `scan` found: a token's type, its text, where it began and where the next one may begin."""

    type: str
    text: str
    start: int
    end: int


class _Bad(Exception):
    """`scan` found no token at `pos`."""

    def __init__(self, message: str, pos: int) -> None:
        super().__init__(message)
        self.message, self.pos = message, pos


def scan(text: str, pos: int) -> Match:
    """The token at or after `pos`. A macro comes as type "$" with its name. Raises `_Bad`."""
    found = _COMMON.match(text, pos)
    if found is None:
        return _scan_rare(text, pos)
    kind = found.lastgroup
    if kind == "word":
        return _word(text, found["word"], found.start("word"), found.end())
    if kind == "string":
        value = found["string"]
        start = found.start("string") - 1
        return Match(STRING, _limited(value, start), start, found.end())
    mark = found["mark"]
    return Match(_PUNCTUATION[mark], mark, found.end() - 1, found.end())


def word_of(written: str) -> str | None:
    """The word that a text is read as; None where it is not one, or more than that."""
    try:
        found = scan(written, 0)
    except _Bad:
        return None
    return found.text if found.type == STRING and found.end == len(written) else None


def _scan_rare(text: str, pos: int) -> Match:
    pos = _BLANK.match(text, pos).end()  # type: ignore[union-attr]  # it matches the empty string too
    if text[pos : pos + 1] == "\\":  # outside quotes it only disappears
        pos += 1
    char = text[pos : pos + 1]
    if char == "#":
        pos = _COMMENT.match(text, pos).end()  # type: ignore[union-attr]
        char = text[pos : pos + 1]
    if char in {'"', "'"}:
        return _quoted(text, pos, char)
    if char == "$" and (macro := _MACRO.match(text, pos)):
        return Match("$", macro[1], pos, macro.end())
    if number := _NUMBER.match(text, pos):
        return _number(text, number[0], pos, number.end())
    if word := _WORD.match(text, pos):
        return _word(text, _UNESCAPE.sub(lambda m: m[1] or "", word[0]), pos, word.end())
    if text.startswith("=>", pos):
        return Match("_ARROW", "=>", pos, pos + 2)
    if not char:
        return Match(EOF, "", pos, len(text))
    return Match(_PUNCTUATION.get(char, OTHER), char, pos, pos + 1)


def _word(text: str, word: str, start: int, end: int) -> Match:
    if "0" <= word[0] <= "9":
        digits = _NUMBER.match(word + text[end : end + 1])
        if digits is not None:
            return _number(text, digits[0], start, end - len(word) + digits.end())
    keyword = KEYWORDS.get(word)
    if keyword is not None:
        return Match(keyword, word, start, end)
    return Match(STRING, _limited(word, start), start, end)


def _number(text: str, digits: str, start: int, end: int) -> Match:
    # Twenty digits are more than 64 bits hold; int() of a longer run would not be linear.
    sign, significant = (-1 if digits[0] == "-" else 1), digits.lstrip("-").lstrip("0")
    value = sign * int(significant or "0") if len(significant) <= 20 else None
    if value is None or not -(1 << 63) <= value < 1 << 63:
        fault = "too small" if digits[0] == "-" else "too large"
        raise _Bad(f'"{digits[:40]}" invalid number: {fault}', start)
    return Match(NUMBER, str(value), start, end)


def _quoted(text: str, pos: int, quote: str) -> Match:
    found = _QUOTED[quote].match(text, pos)
    assert found is not None
    end = found.end()
    if end >= len(text):
        raise _Bad("reached end of file while parsing quoted string", pos)
    if text[end] == "\0":
        raise _Bad("syntax error: NUL in a quoted string", end)
    inner = text[pos + 1 : end]
    if "\\" in inner or "\n" in inner:
        inner = _QUOTED_ESCAPE[quote].sub(lambda m: m[1] or "", inner)
    return Match(STRING, _limited(inner, pos), pos, end + 1)


def _limited(value: str, pos: int) -> str:
    if len(value) * 4 > MAX_TOKEN and len(value.encode("utf-8", "surrogatepass")) > MAX_TOKEN:
        raise _Bad("string too long", pos)
    return value


_SIMPLE = rf'(?:(?P<{{0}}>[A-Za-z0-9:_][{_WORD_CHARS}]*+(?!\\))|"(?P<{{0}}_string>[^"\\\n\x00]*)")'
_NEXT = r'(?=[A-Za-z0-9:_"])'
_BEHIND = {"_COMMA": rf"[ \t]*+,[ \t\n]*+{_NEXT}", NL: rf"[ \t]*+\n[ \t\n]*+{_NEXT}"}
_ELEMENTS = {sep: re.compile(rf"[ \t\n]*+{_SIMPLE.format('word')}{behind}") for sep, behind in _BEHIND.items()}
_PAIRS = {
    sep: re.compile(rf"[ \t\n]*+{_SIMPLE.format('word')}[ \t]*+=>?[ \t]*+{_SIMPLE.format('value')}{behind}")
    for sep, behind in _BEHIND.items()
}


def _simple(text: str, unit: "re.Match[str]", name: str) -> str | None:
    """An element that `skim` found; None where it is a keyword, a number or very long."""
    value = unit[f"{name}_string"]
    if value is None:
        value = unit[name]
        if value in KEYWORDS or ("0" <= value[0] <= "9" and _NUMBER.match(text, unit.start(name))):
            return None
    return value if len(value) * 4 <= MAX_TOKEN else None


class Lexer:
    """A stream of tokens over a file, the files that it includes, and the macros that it defines."""

    def __init__(self, *, name: str, text: str, macros: Mapping[str, str]) -> None:
        """`macros` are those of the command line: a definition in the file does not replace them."""
        self._files = [Source(name, text)]
        self._fixed = macros
        self._macros: dict[str, str] = dict(macros)
        self._included = 0
        self._expanded = 0
        self.expanding = True  # off while the rest of a wrong line is skipped
        self._window = ""  # a macro's text and what follows it in the file
        self._at = self._value_end = self._use = (
            0  # next character in the window; end of the macro; its use in the file
        )

    @property
    def source(self) -> Source:
        """The file that is being read."""
        return self._files[-1]

    @property
    def macros(self) -> Mapping[str, str]:
        """All that are defined by now."""
        return self._macros

    def define(self, name: str, value: str) -> None:
        """`name = value`; a macro of the command line keeps its value."""
        if name not in self._fixed:
            self._macros[name] = value

    def include(self, path: str, read: Callable[[str], str]) -> None:
        """Go on reading in `path`, then here again. Raises OSError, or LookupError where includes go in circles."""
        if any(file.name == path for file in self._files):
            raise LookupError(f"{path} includes itself")
        if len(self._files) >= MAX_DEPTH or self._included >= MAX_INCLUDES:
            raise LookupError("too many includes")
        self._included += 1
        self._files.append(Source(path, read(path)))

    def token(self) -> Token:
        """The next token; EOF again and again at the end. Raises LexError, having skipped to the line's end."""
        while True:
            if self._window:
                token = self._token_of_macro()
                if token is not None:
                    return token
                continue
            source = self.source
            try:
                found = scan(source.text, source.pos)
            except _Bad as bad:
                raise self._fail(bad.message, bad.pos) from None
            if found.type == EOF:
                end = self._end_of_file()
                if end is not None:
                    return end
            elif found.type == "$" and self.expanding:
                self._advance(found.start)
                source.pos = found.end
                self._expand(found.text, found.start)
            else:
                return self._take(source, found)

    def skim(self, *, pairs: bool, separator: str) -> list[str]:
        """Elements of a list, or keys and values, that stand next, as far as they are simple and not the last.

        Each is a word or a string without backslash, with a separator of this type (comma, newline) behind it and
        another one after that; whatever else comes is left to `token`. It is for long lists: ten times as fast.
        """
        if self._window:
            return []
        source, found = self.source, list[str]()
        text, pos, pattern = source.text, source.pos, (_PAIRS if pairs else _ELEMENTS)[separator]
        while unit := pattern.match(text, pos):
            for name in ("word", "value") if pairs else ("word",):
                simple = _simple(text, unit, name)
                if simple is None:
                    break
                found.append(simple)
            else:
                pos = unit.end()
                continue
            break
        if pairs and len(found) % 2:
            found.pop()
        self._advance(pos)
        return found

    def skip_line(self) -> None:
        """Stand before the end of this line; a continued line is one line."""
        self._window = ""
        source = self.source
        stop = _REST.match(source.text, source.pos)
        assert stop is not None
        self._advance(stop.end())

    def _take(self, source: Source, found: Match) -> Token:
        kind, value, start, end = found
        if start > source.pos:  # a continued line, or a comment
            source.line += source.text.count("\n", source.pos, start)
        line = source.line
        if kind == NL:
            source.line = line + 1
        elif end - start > len(value):  # only quotes and backslashes hide newlines
            source.line += source.text.count("\n", start, end)
        source.pos = end
        return Token(kind, value, start, line)

    def _advance(self, pos: int) -> None:
        source = self.source
        source.line += source.text.count("\n", source.pos, pos)
        source.pos = pos

    def _end_of_file(self) -> Token | None:
        """A newline that the file may lack, then on in the file that included it; EOF after the outermost."""
        source = self.source
        self._advance(len(source.text))
        if not source.ended:
            source.ended = True
            return Token(NL, "\n", source.pos, source.line)
        if len(self._files) > 1:
            self._files.pop()
            return None
        return Token(EOF, "", source.pos, source.line)

    def _fail(self, message: str, pos: int, macro: str = "") -> LexError:
        source = self.source
        line = source.line + source.text.count("\n", source.pos, pos)
        self._advance(pos)
        if "end of file" in message:
            self._window = ""
            self._advance(len(source.text))
        else:
            self.skip_line()
        return LexError(message, source, line, pos, macro)

    def _expand(self, name: str, use: int) -> None:
        value = self._macros.get(name)
        if value is None:
            raise self._fail(f"macro '{name[:60]}' not defined", use, name)
        self._expanded += len(value)
        if self._expanded > MAX_EXPANSION:
            raise self._fail("macros expand to too much text", use)
        if value:
            self._use, self._at, self._value_end = use, 0, len(value)
            source = self.source
            self._window = value + source.text[source.pos : source.pos + _WINDOW]

    def _token_of_macro(self) -> Token | None:
        """The next token that begins in the macro's text (it may end in the file's); None when there is none left.

        A macro's text is not searched for macros: "$" is then a character like any other.
        """
        source = self.source
        text, size = self._window, self._value_end
        taken = len(text) - size  # how much of the file is in the window
        whole = source.pos + taken >= len(source.text)
        try:
            found = scan(text, self._at)
        except _Bad as bad:
            if not whole and "quoted" in bad.message:
                self._grow(taken)
                return None
            raise self._fail(bad.message, self._use) from None
        if found.type == "$":
            found = Match(OTHER, "$", found.start, found.start + 1)
        if found.end >= len(text) and not whole:
            self._grow(taken)
            return None
        if found.start >= size or found.type == EOF:
            self._window = ""  # only blanks or a comment were left of the macro
            self._advance(source.pos + max(0, found.start - size))
            return None
        if found.end >= size:
            self._window = ""
            self._advance(source.pos + found.end - size)
        self._at = found.end
        return Token(found.type, found.text, self._use, source.line)

    def _grow(self, taken: int) -> None:
        source = self.source
        end = source.pos + max(2 * taken, _WINDOW)
        self._window = self._window[: self._value_end] + source.text[source.pos : end]


_REST = re.compile(r"(?:[^\\\n]++|\\[\s\S])*+\\?")
