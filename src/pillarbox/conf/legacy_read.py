"""smtpd.conf of OpenSMTPD 5.3 to 6.3 → statements that know where they stand, for `legacy` to rewrite.

The tokens are those of `lexer`, with the reserved words of these versions, and each ends somewhere (`end_pos`), so
that whatever is not rewritten can be copied as it was written: comments, quoting, `$macro`. Tokens that came out of one
macro share the place of its use.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lark import Lark, Token, Tree, UnexpectedToken
from lark.lexer import Lexer as LarkLexer

from pillarbox.conf.lexer import EOF, KEYWORDS, NL, NUMBER, STRING, Lexer, LexError, Source
from pillarbox.conf.report import Report

Node = Tree[Token]

_RESERVED = """
    accept alias any as auth auth-optional authenticated backup bounce-warn ca certificate ciphers compression curve
    deliver dhe dhparams disable domain dsn-notify dsn-ret encryption enqueuer expire filter for forward-only from
    headers helo hostname hostnames include inet4 inet6 key limit listen lmtp local maildir mask-source masquerade
    max-message-size max-mta-deferred mbox mda mta no-dsn on pki port queue rcpt-to received-auth recipient reject
    relay scheduler secure sender senders session smtps socket source ssl subaddressing-delimiter table tag tagged tls
    tls-require to userbase verify via virtual
"""
LEGACY_KEYWORDS = {word: "_" + word.upper().replace("-", "_") for word in _RESERVED.split()}
"""Reserved words of any version from 5.3 to 6.3 and their terminals."""

# Behind these stands a name, be it a word that another version reserved.
_BEFORE_NAMES = {
    *("_TABLE", "_LT", "_TAG", "_TAGGED", "_PKI", "_CERTIFICATE", "_INCLUDE", "_HOSTNAME", "_FILTER", "_KEY", "_AS")
}
_WORDS = {terminal: word for word, terminal in LEGACY_KEYWORDS.items()}
_MARKS = {
    STRING: "a word",
    NUMBER: "a number",
    "_LBRACE": "{",
    "_RBRACE": "}",
    "_LT": "<",
    "_GT": ">",
    "_COMMA": ",",
    "_BANG": "!",
    "_EQ": "=",
}
_STATEMENTS = """
    accept bounce-warn ca ciphers curve enqueuer expire filter include limit listen max-message-size max-mta-deferred
    pki queue reject subaddressing-delimiter table
"""
_DIRECTIVES = {LEGACY_KEYWORDS[word] for word in _STATEMENTS.split()}
_TODAY = frozenset(("action", "admd", "bounce", "match", "mda", "mta", "proc", "scheduler", "smtp", "srs"))


class LegacyLexer(Lexer):
    """The lexer, with the words that were reserved then, and the ends of tokens."""

    def token(self) -> Token:
        """The next token; `end_pos` is where it ends in the file that is being read, 0 in the midst of a macro."""
        token = super().token()
        source = self.source
        kind, text = token.type, str(token)
        if (kind == STRING or text in KEYWORDS) and (kind != STRING or not is_quoted(source, token)):
            kind = LEGACY_KEYWORDS.get(text, STRING)
        end = 0 if self._window else source.pos
        return Token(kind, text, token.start_pos, token.line, end_pos=end)


def is_quoted(source: Source, token: Token) -> bool:
    """Whether a token stands in quotes in its file."""
    return source.text[token.start_pos or 0 : (token.start_pos or 0) + 1] in {'"', "'"}


def is_macro(source: Source, token: Token) -> bool:
    """Whether a token came out of a macro: a word never begins with "$"."""
    return source.text.startswith("$", token.start_pos or 0)


@dataclass(slots=True)
class LegacyStatement:
    """One statement: where it stands, its tokens but for the newline, and its tree.

    `spans` are the tokens by the text that they came from: those of one `$macro` together.
    """

    source: Source
    line: int
    tokens: list[Token]
    tree: Node
    spans: list[list[Token]]

    @property
    def kind(self) -> str:
        """The rule of the grammar."""
        return str(self.tree.data)

    @property
    def start(self) -> int:
        """Offset of its first character."""
        return self.tokens[0].start_pos or 0

    @property
    def end(self) -> int:
        """Offset behind its last character."""
        return self.tokens[-1].end_pos or 0


class _Fed(LarkLexer):
    """Lark's custom lexer: what it is asked to parse is already an iterator of tokens."""

    def __init__(self, lexer_conf: object) -> None:
        pass

    def lex(self, data: Iterator[Token]) -> Iterator[Token]:  # type: ignore[override]
        return data


@functools.cache
def legacy_grammar() -> Lark:
    """The parser of legacy.lark, built when it is first needed."""
    return Lark.open_from_package("pillarbox.conf", "legacy.lark", parser="lalr", lexer=_Fed, keep_all_tokens=True)


class LegacyReader:
    """Statements out of a file and what it includes. What cannot be read goes to the report; the next line is tried."""

    def __init__(self, *, name: str, text: str, macros: Mapping[str, str], report: Report) -> None:
        self.lexer = LegacyLexer(name=name, text=text, macros=macros)
        self._report = report
        self._pushed: list[Token] = []

    def statements(self, include: Callable[[LegacyStatement], None]) -> Iterator[LegacyStatement]:
        """All statements in order; `include` is called for each that includes a file, and may tell the lexer to."""
        parse = legacy_grammar().parse
        while True:
            try:
                first = self._next()
                if first.type == EOF:
                    return
                if first.type == NL:
                    continue
                source = self.lexer.source
                tokens = self._collect(first)
            except LexError as error:
                names = self.lexer.macros if error.macro else ()
                self._report.at(error.message, error.source, error.line, error.pos, names=names, near=error.macro)
                continue
            try:
                tree = parse(iter(tokens)).children[0]
            except UnexpectedToken as error:
                self._syntax_error(error, first, source)
                continue
            assert isinstance(tree, Tree)
            statement = LegacyStatement(source, first.line or 0, tokens[:-1], tree, _spans(source, tokens[:-1]))
            if statement.kind == "macro":
                self.lexer.define(str(tokens[0]), str(tokens[2]))
            yield statement
            if statement.kind == "include":
                include(statement)

    def _next(self) -> Token:
        return self._pushed.pop() if self._pushed else self.lexer.token()

    def _collect(self, first: Token) -> list[Token]:
        """The tokens of a statement and a newline: the first one outside of braces."""
        tokens, depth = [first], 0
        while True:
            token = self._next()
            if tokens[0] is first and len(tokens) == 1 and token.type == "_EQ" and first.type != STRING:
                tokens[0] = _as_string(first)  # a macro may be called like a word that another version reserved
            if tokens[-1].type in _BEFORE_NAMES or (tokens[-1].type == "_BANG" and _is_tagged(tokens)):
                token = _as_string(token)
            if token.type == EOF or (token.type == NL and depth <= 0):
                self._pushed += [token] if token.type == EOF else []
                tokens.append(Token.new_borrow_pos(NL, "\n", token))
                return tokens
            if depth > 0 and token.type in _DIRECTIVES and tokens[-1].type == NL:
                self._pushed.append(token)  # braces that nobody closed, and the next statement
                tokens.append(Token.new_borrow_pos(NL, "\n", tokens[-1]))
                return tokens
            if token.type == NL and tokens[-1].type == NL:
                continue
            depth += {"_LBRACE": 1, "_RBRACE": -1}.get(token.type, 0)
            tokens.append(token)
            if tokens[0].type == "_INCLUDE" and len(tokens) == 2 and token.type == STRING:
                # The included file stands in place of these two words.
                return [*tokens, Token.new_borrow_pos(NL, "\n", token)]

    def _syntax_error(self, error: UnexpectedToken, first: Token, source: Source) -> None:
        token = error.token if error.token.type != "$END" else first
        unknown = first.type == STRING and set(error.expected) == {"_EQ"}
        at = first if unknown else token
        message = _unknown(first) if unknown else _explain(token, set(error.expected))
        self._report.at(message, source, at.line or 0, at.start_pos or 0)


_MACRO = re.compile(r"\$[A-Za-z0-9_]*")


def _spans(source: Source, tokens: list[Token]) -> list[list[Token]]:
    """Tokens that share one place, which is a macro's use, together; all of them end where it does."""
    spans: list[list[Token]] = []
    for token in tokens:
        if spans and spans[-1][0].start_pos == token.start_pos:
            spans[-1].append(token)
        else:
            spans.append([token])
    for span in spans:
        end = span[-1].end_pos
        if not end:  # blanks follow in the macro's text
            use = _MACRO.match(source.text, span[0].start_pos or 0)
            end = use.end() if use else span[0].start_pos
        for token in span:
            token.end_pos = end
    return spans


def _as_string(token: Token) -> Token:
    return Token.new_borrow_pos(STRING, str(token), token) if token.type in _WORDS else token


def _is_tagged(tokens: list[Token]) -> bool:
    return len(tokens) > 1 and tokens[-2].type == "_TAGGED"


def _unknown(token: Token) -> str:
    text = str(token)
    if text in _TODAY:
        return f'syntax error: "{text}" belongs to today\'s grammar: one file cannot be in both'
    near = Report.nearest(text, [_WORDS[terminal] for terminal in _DIRECTIVES])
    return f'syntax error: unknown directive "{text[:60]}"{near}'


def _explain(token: Token, expected: set[str]) -> str:
    text = str(token)
    wanted = sorted(name for e in expected if (name := _WORDS.get(e) or _MARKS.get(e)))
    here = "; here may stand " + " or ".join(wanted) if 0 < len(wanted) <= 6 else ""
    if token.type in {NL, EOF}:
        return f"syntax error: the line ends too early{here}"
    near = "" if token.type in _WORDS else Report.nearest(text, [_WORDS[e] for e in expected if e in _WORDS])
    shown = text if text.isprintable() else repr(text)[1:-1]
    return f'syntax error: unexpected "{shown[:60]}"{near or here}'
