"""The lexer's rules: words, quoting, continuation, numbers, macros, includes."""

import pytest

from pillarbox.conf.lexer import EOF, MAX_TOKEN, NL, Lexer, LexError


def tokens(text: str, macros: dict[str, str] | None = None) -> list[tuple[str, str]]:
    lexer = Lexer(name="smtpd.conf", text=text, macros=macros or {})
    found = []
    while (token := lexer.token()).type != EOF:
        if token.type != NL:
            found.append((token.type, str(token)))
    return found


def words(text: str, macros: dict[str, str] | None = None) -> list[str]:
    return [text for _, text in tokens(text, macros)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen", [("_LISTEN", "listen")]),
        ('"listen"', [("STRING", "listen")]),
        ("Listen", [("STRING", "Listen")]),
        ("25", [("NUMBER", "25")]),
        ("-25", [("NUMBER", "-25")]),
        ("-0025", [("NUMBER", "-25")]),
        ("0" * 5000, [("NUMBER", "0")]),
        ("25x", [("STRING", "25x")]),
        ("25/tcp", [("NUMBER", "25"), ("_OTHER", "/"), ("STRING", "tcp")]),
        ("25}", [("NUMBER", "25"), ("_RBRACE", "}")]),
        ("127.0.0.1", [("STRING", "127.0.0.1")]),
        ("::1", [("STRING", "::1")]),
        ("-x", [("_OTHER", "-"), ("STRING", "x")]),
        ("a=b", [("STRING", "a"), ("_EQ", "="), ("STRING", "b")]),
        ("a => b", [("STRING", "a"), ("_ARROW", "=>"), ("STRING", "b")]),
        ("<d>", [("_LT", "<"), ("STRING", "d"), ("_GT", ">")]),
        ("!tls", [("_BANG", "!"), ("_TLS", "tls")]),
        ("@x", [("_OTHER", "@"), ("STRING", "x")]),
        ("smtp+tls://label@host:25", [("STRING", "smtp+tls://label@host:25")]),
        ("a\r\n", [("STRING", "a"), ("_OTHER", "\r")]),
        ("é", [("_OTHER", "é")]),
        ("a b # c d\ne", [("STRING", "a"), ("STRING", "b"), ("STRING", "e")]),
        ("", []),
        ("\\", []),
    ],
)
def test_words_keywords_numbers_and_marks(text: str, expected: list[tuple[str, str]]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r'"a\"b"', 'a"b'),
        (r"'a\'b'", "a'b"),
        (r'"a\'b"', r"a\'b"),
        (r'"a\ b"', "a b"),
        ('"a\\\tb"', "a\tb"),
        (r'"a\nb"', r"a\nb"),
        (r'"a\\b"', r"a\\b"),
        ('"a\nb"', "ab"),
        ('"a\\\nb"', "ab"),
        ('"a#b"', "a#b"),
        ('"$x"', "$x"),
        ("'a\"b'", 'a"b'),
    ],
)
def test_quoted_strings_keep_all_but_their_own_escapes(text: str, expected: str) -> None:
    assert tokens(text) == [("STRING", expected)]


def test_unquoted_backslash_disappears() -> None:
    assert words(r"a\b \c a\\b") == ["ab", "c", r"a\b"]


def test_backslash_newline_joins_lines_words_and_numbers() -> None:
    assert tokens("a\\\nb 2\\\n5 \\\n c") == [("STRING", "ab"), ("NUMBER", "25"), ("STRING", "c")]


def test_a_comment_goes_on_behind_a_backslash() -> None:
    assert words("# one \\\ntwo\nthree") == ["three"]


def test_tokens_know_their_line() -> None:
    lexer = Lexer(name="f", text='a \\\n b\n"c\nd" e\n# x \\\n y\nf', macros={})
    lines = {}
    while (token := lexer.token()).type != EOF:
        if token.type != NL:
            lines[str(token)] = token.line
    assert lines == {"a": 1, "b": 2, "cd": 3, "e": 4, "f": 7}


def test_macros_are_lexed_again_with_what_follows() -> None:
    macros = {"host": "127.0.0.1", "two": "a, b", "empty": "", "open": '"a', "dollar": "$x", "hash": "a #"}
    assert words("$host:25", macros) == ["127.0.0.1:25"]
    assert words("$two c", macros) == ["a", ",", "b", "c"]
    assert words("$empty x $empty", macros) == ["x"]
    assert words('$open b" c', macros) == ["a b", "c"]
    assert words("$dollar", macros) == ["$", "x"]
    assert words("$hash b\nc", macros) == ["a", "c"]
    assert words("x$host", macros) == ["x$host"]
    assert words("$host." + "a" * 1000 + " b", macros) == ["127.0.0.1." + "a" * 1000, "b"]


def test_a_macro_of_the_command_line_is_not_replaced() -> None:
    lexer = Lexer(name="f", text="$a $b", macros={"a": "1x"})
    lexer.define("a", "2x")
    lexer.define("b", "2x")
    assert [str(lexer.token()), str(lexer.token())] == ["1x", "2x"]


def test_an_included_file_stands_in_its_place() -> None:
    lexer = Lexer(name="f", text="a c", macros={})
    lexer.token()
    lexer.include("g", lambda path: "b1\nb2" if path == "g" else "")
    seen = []
    while (token := lexer.token()).type != EOF:
        seen.append((str(token), lexer.source.name, token.line))
    assert seen == [("b1", "g", 1), ("\n", "g", 1), ("b2", "g", 2), ("\n", "g", 2), ("c", "f", 1), ("\n", "f", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"abc', "reached end of file while parsing quoted string"),
        ('"a\0b"', "syntax error"),
        ("$none", "macro 'none' not defined"),
        ("9" * 30, "invalid number: too large"),
        ("-" + "9" * 30, "invalid number: too small"),
        ("a" * (MAX_TOKEN + 1), "string too long"),
        ('"' + "é" * (MAX_TOKEN // 2 + 1) + '"', "string too long"),
    ],
)
def test_what_is_no_token_is_said_and_the_next_line_is_read(text: str, message: str) -> None:
    lexer = Lexer(name="f", text=text + "\nnext", macros={})
    with pytest.raises(LexError, match=message) as caught:
        lexer.token()
    assert caught.value.line == 1
    rest = [lexer.token() for _ in range(3)]
    assert any(str(token) == "next" for token in rest) or '"abc' in text


def test_the_longest_string_is_accepted() -> None:
    assert words('"' + "a" * MAX_TOKEN + '"') == ["a" * MAX_TOKEN]
