"""Tokens → trees, a statement at a time, going on behind every error.

`statements` yields each statement's tree as soon as its line is complete, so that what it defines (a macro, an
include) is known to the lexer when it reads the next. What a statement means is `build`'s.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from lark import Lark, Token, Tree, UnexpectedToken
from lark.lexer import Lexer as LarkLexer

from pillarbox.conf.lexer import EOF, KEYWORDS, NL, NUMBER, OTHER, STRING, Lexer, LexError, Skimmed, Source
from pillarbox.conf.report import Report

Node = Tree[Token]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its tree, and the file that it stands in."""

    tree: Node
    source: Source
    line: int


class _Fed(LarkLexer):
    """Lark's custom lexer: what it is asked to parse is already an iterator of tokens."""

    def __init__(self, lexer_conf: object) -> None:
        pass

    def lex(self, data: Iterator[Token]) -> Iterator[Token]:  # type: ignore[override]
        return data


@functools.cache
def grammar() -> Lark:
    """The parser of grammar.lark: about 70 ms to build, so it is built once and when it is first needed."""
    return Lark.open_from_package("pillarbox.conf", "grammar.lark", parser="lalr", lexer=_Fed, keep_all_tokens=True)


class Parser:
    """Statements out of a lexer. Syntax errors go to the report; the next line is tried then."""

    def __init__(self, *, lexer: Lexer, report: Report) -> None:
        self._lexer = lexer
        self._report = report
        self._pushed: list[Token] = []
        self._depth = 0
        self._name = ""  # the second word: what the statement declares, if it declares something

    def statements(self) -> Iterator[Statement]:
        """All statements that can be read, in order."""
        parse = grammar().parse
        while True:
            self._depth = 0
            try:
                first = self._next()
                if first.type == EOF:
                    return
                if first.type == NL:
                    continue
                source, line = self._lexer.source, first.line or 0
                tree = parse(self._statement(first))
            except UnexpectedToken as error:
                self._syntax_error(error, first, source)
            except LexError as error:
                names = self._lexer.macros if error.macro else ()
                self._report.at(error.message, error.source, error.line, error.pos, names=names, near=error.macro)
                self._skip_block()
            else:
                statement = tree.children[0]
                assert isinstance(statement, Tree)
                yield Statement(statement, source, line)

    def _next(self) -> Token:
        return self._pushed.pop() if self._pushed else self._lexer.token()

    def _statement(self, first: Token) -> Iterator[Token]:
        """Tokens up to the newline that ends the statement: the first one outside of braces."""
        second = self._next()
        if first.type == STRING and first == "dns" and second.type == STRING and second == "resolver":
            # Ours, and words like any other elsewhere: names that OpenSMTPD's users chose must stay names.
            first, second = Token.new_borrow_pos("_DNS", "dns", first), Token.new_borrow_pos("_RESOLVER", "", second)
        self._pushed.append(second)
        self._name = str(second)
        yield first
        if first.type == "_INCLUDE" and second.type == STRING:
            # The included file stands in place of these two words: what follows them is read after it.
            yield self._pushed.pop()
            yield Token.new_borrow_pos(NL, "\n", second)
            return
        recent = [second.type]  # the types of the last tokens
        options = _Options(first)
        while True:
            token = self._next()
            if self._depth == 0:
                token = options.see(token)
            if self._depth > 0 and token.type in _SEPARATORS and not self._pushed:
                skimmed = self._skim(recent, token.type)
                if skimmed:
                    token = Skimmed(token, skimmed)
                elif token.type == NL:
                    while (following := self._next()).type == NL:
                        pass
                    self._pushed.append(following)
            self._depth += _BRACES.get(token.type, 0)
            recent = [*recent[-2:], token.type]
            yield token
            if token.type == EOF or (token.type == NL and self._depth <= 0):
                return

    def _skim(self, recent: list[str], separator: str) -> list[str]:
        """Elements that need not pass the parser: between two of their kind they change nothing in its state."""
        if recent[-1:] != [STRING]:
            return []
        return self._lexer.skim(pairs=recent[-2:-1] in (["_EQ"], ["_ARROW"]), separator=separator)

    def _syntax_error(self, error: UnexpectedToken, first: Token, source: Source) -> None:
        token = error.token if error.token.type != "$END" else first
        expected = set(error.expected)
        # A line that begins with a word could only have been a macro's definition.
        unknown = first.type == STRING and expected == {"_EQ"}
        at = first if unknown else token
        message = _unknown(first) if unknown else _explain(token, expected)
        if first.type in _WORDS and self._name == "=":
            message, at = f'syntax error: "{first}" is a keyword; a macro needs another name', first
        self._report.at(message, source, at.line or 0, at.start_pos or 0)
        self._report.broken(str(first), self._name, first.line or 0)
        if token is not first and token.type in _DIRECTIVES and self._begins_line(token, source):
            self._pushed.append(token)  # a statement that was never finished, and then the next one
            return
        self._lexer.expanding = False
        if token.type not in _LINE_ENDS:
            self._skip_line()
        self._skip_block()
        self._lexer.expanding = True

    def _begins_line(self, token: Token, source: Source) -> bool:
        pos = token.start_pos or 0
        start = source.text.rfind("\n", 0, pos) + 1
        return pos - start < 256 and not source.text[start:pos].strip(" \t")

    def _skip_line(self) -> None:
        """To the end of the line, counting braces."""
        while True:
            try:
                token = self._next()
            except LexError:
                continue  # one message for a line is enough
            if token.type in _LINE_ENDS:
                return
            self._depth += _BRACES.get(token.type, 0)

    def _skip_block(self) -> None:
        """Lines of the braces that an error is in: until they close, or one that can only be a new statement."""
        while self._depth > 0:
            try:
                token = self._next()
            except LexError:
                continue
            if token.type in _DIRECTIVES or token.type == EOF:
                self._pushed.append(token)
                return
            if token.type != NL:
                self._depth += _BRACES.get(token.type, 0)
                self._skip_line()


class _Options:
    """Words of one statement that are options of ours: elsewhere they are words like any other."""

    def __init__(self, first: Token) -> None:
        self._seen = [first.type]

    def see(self, token: Token) -> Token:
        """The next token, as what it is here."""
        if token.type == STRING:
            terminal = self._option(str(token))
            token = Token.new_borrow_pos(terminal, str(token), token) if terminal else token
        self._seen.append(token.type)
        return token

    def _option(self, word: str) -> str:
        before = self._seen[-1]
        if self._seen[0] == "_LISTEN":
            # After an option that wants a word it is one; `auth` wants none: a list of one word has no passwords.
            terminal = _LISTEN_WORDS.get(word, "")
            return terminal if (before in _AUTHS if terminal == "_PAM" else before not in _LISTEN_WANTS) else ""
        if self._seen[:3] == ["_PROC", STRING, STRING] or self._seen[:4] == ["_FILTER", STRING, "_PROC_EXEC", STRING]:
            if before == "_FAIL":
                return "_OPEN" if word == "open" else ""
            return "" if before in _PROC_WANTS else _PROC_WORDS.get(word, "")
        return ""


_LISTEN_WORDS = {
    "pam": "_PAM",
    "mechanisms": "_MECHANISMS",
    "tokens": "_TOKENS",
    "proxy": "_PROXY",
    "greet-delay": "_GREET_DELAY",
    "unlimited": "_UNLIMITED",
}
_AUTHS = {"_AUTH", "_AUTH_OPTIONAL"}
_WANTING = "on port filter tag ciphers protocols pki ca hostname hostnames senders from"
_LISTEN_WANTS = {*(KEYWORDS[word] for word in _WANTING.split()), "_MECHANISMS", "_TOKENS", "_LT", "_GREET_DELAY"}
_PROC_WORDS = {"timeout": "_TIMEOUT", "fail": "_FAIL", "protocol": "_PROTOCOL"}
_PROC_WANTS = {"_USER", "_GROUP", "_CHROOT", "_TIMEOUT", "_PROTOCOL"}
_LINE_ENDS = {NL, EOF}
_SEPARATORS = {NL, "_COMMA"}
_BRACES = {"_LBRACE": 1, "_RBRACE": -1}
_STATEMENTS = "action admd bounce ca filter include listen match mda mta pki proc queue report scheduler smtp srs table"
_DIRECTIVES = {KEYWORDS[word] for word in _STATEMENTS.split()}
_WORDS = {terminal: word for word, terminal in KEYWORDS.items()} | {"_OPEN": "open"}
_MARKS = {"_LBRACE": "{", "_RBRACE": "}", "_LT": "<", "_GT": ">", "_COMMA": ",", "_BANG": "!", "_EQ": "="}
_OLD = {  # words of the grammar before 6.4
    "accept": "match … action",
    "bounce-warn": "bounce warn-interval",
    "certificate": "pki",
    "deliver": "action",
    "expire": "ttl",
    "limit": "smtp limit, mta limit, mda limit or scheduler limit",
    "sender": "mail-from",
    "recipient": "rcpt-to",
    "tagged": "tag",
    "secure": "tls or smtps",
    "via": "relay host",
}


def _unknown(token: Token) -> str:
    text = str(token)
    if text in _OLD:
        return _old(text)
    near = Report.nearest(text, [_WORDS[terminal] for terminal in _DIRECTIVES])
    return f'syntax error: unknown directive "{text[:60]}"{near}'


def _old(text: str) -> str:
    return f'syntax error: "{text}" belongs to the grammar of before 6.4; now it is {_OLD[text]}'


def _explain(token: Token, expected: set[str]) -> str:
    """`syntax error`, as the reference says, and then what is wrong here."""
    text = str(token)
    if token.type in _LINE_ENDS and {"_ACTION", "_REJECT"} <= expected:
        return 'syntax error: the line ends too early; a match ends with an action, or with "reject"'
    if token.type in _LINE_ENDS:
        return f"syntax error: the line ends too early{_wanted(expected)}"
    if token.type == NUMBER and STRING in expected:
        return f"syntax error: {text} is a number here; write a name made of digits in quotes"
    if text in _OLD:
        return _old(text)
    if token.type in _WORDS and expected <= {STRING, NL}:
        return f'syntax error: "{text}" is a keyword; write it in quotes where it is a name'
    near = "" if token.type in _WORDS else Report.nearest(text, [_WORDS[e] for e in expected if e in _WORDS])
    if near:
        return f'syntax error: unexpected "{text[:60]}"{near}'
    if text == "$":
        return 'syntax error: unexpected "$"; a macro stands only where a word may, and not in the text of another one'
    if token.type == OTHER:
        shown = text if text.isprintable() else repr(text)[1:-1]
        hint = "; a word that begins so is written in quotes" if STRING in expected and text.isprintable() else ""
        hint = "; lines end with LF, not CR LF" if text == "\r" else hint
        return f'syntax error: unexpected "{shown}"{hint}'
    return f'syntax error: unexpected "{text[:60]}"{_wanted(expected)}'


def _wanted(expected: set[str]) -> str:
    names = sorted(_WORDS.get(e) or _MARKS.get(e) or ("a word" if e == STRING else "") for e in expected)
    if NUMBER in expected:
        names.append("a number")
    names = [name for name in names if name]
    if not names or len(names) > 6:
        return ""
    return "; here may stand " + " or ".join(names)
