"""Each file in legacy/ becomes exactly what stands beside it, and today's parser takes it."""

import json
import re
from pathlib import Path

import pytest

from pillarbox.conf.build import load_config
from pillarbox.conf.legacy import Conversion, convert_config, is_legacy
from pillarbox.errors import ConfigError

LEGACY = Path(__file__).parent / "legacy"
RECORDED = json.loads((Path(__file__).parents[1] / "corpus/migration/cases.json").read_text())


def convert(text: str, *, follow: bool = False, files: dict[str, str] | None = None, **macros: str) -> Conversion:
    there = {"smtpd.conf": text, **(files or {})}

    def read(path: str) -> str:
        if path not in there:
            raise FileNotFoundError(2, "No such file or directory", path)
        return there[path]

    return convert_config(file="smtpd.conf", read=read, macros=macros, hostname="mx.example.org", follow=follow)


def converted(text: str, **more: str) -> str:
    return convert(text, **more).files["smtpd.conf"]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        convert(text)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(p.stem for p in LEGACY.glob("*.old")))
def test_becomes_what_stands_beside_it(name: str) -> None:
    conversion = convert((LEGACY / f"{name}.old").read_text())
    new = conversion.files["smtpd.conf"]
    assert new == (LEGACY / f"{name}.new").read_text()
    assert "".join(f"{remark}\n" for remark in conversion.remarks) == (LEGACY / f"{name}.said").read_text()
    load_config(file="new", read=lambda path: new, macros={}, hostname="h", checker=None)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_recorded_pairs_become_what_was_recorded_letter_by_letter(case: dict[str, list[str]]) -> None:
    old, new = (re.sub(r"@PORT(\d)@", r"252\1", "\n".join(case[key]) + "\n") for key in ("old", "new"))
    lines = [line for line in converted(old).splitlines(keepends=True) if not line.startswith("#")]
    assert "".join(lines) == new


def test_a_file_of_today_is_left_alone() -> None:
    today = 'action "a" mbox # x\nmatch for local action "a"\n'
    conversion = convert(today)
    assert (conversion.files["smtpd.conf"], conversion.changed, conversion.complete) == (today, False, True)


def test_a_file_in_both_grammars_is_refused_where_they_meet() -> None:
    said = refused('accept for local deliver to mbox\nmatch for local action "a"\n')
    assert said == (
        'smtpd.conf:2: syntax error: "match" belongs to today\'s grammar: one file cannot be in both\n'
        '    match for local action "a"\n'
        "    ^"
    )


def test_every_error_is_named() -> None:
    said = refused(
        "table a { x\naccept for any relay via tls://\naccept from any from any for any\nlisten on lo prot 25\n"
        "listen on lo auth\naccept for any deliver to lmtp x\naccept for any relay via smtp://h verify\n"
        "accept for any userbase <a> relay\naccept expire 1x\n"
    )
    lines = [line.split(":")[1] for line in said.splitlines() if line.startswith("smtpd.conf:")]
    assert lines == list("123456789")


def test_unknown_tables_and_pki_are_named_with_the_nearest() -> None:
    assert 'no such table: alias; did you mean "aliases"?' in refused(
        "table aliases { a = b }\naccept for local alias <alias> deliver to mbox\n"
    )
    assert "pki name not found: mx2" in refused(
        'pki mx1 certificate "/c" key "/k"\nlisten on lo tls pki mx2\naccept for any relay\n'
    )


@pytest.mark.parametrize("word", ["helo", "ssl", "headers", "source", "action", "match", "host", "smtp", "data"])
def test_names_may_be_words_that_another_version_reserved(word: str) -> None:
    new = converted(f'{word} = "lo"\ntable {word} {{ a = b }}\nlisten on ${word} tag {word}\n'
                    f"accept tagged {word} alias <{word}> deliver to mbox\n")  # fmt: skip
    config = load_config(file="new", read=lambda path: new, macros={}, hostname="h", checker=None)
    assert config.tables[word].entries == (("a", "b"),)
    assert config.listeners[0].interface == "lo"
    assert config.listeners[0].tag == word


def test_macros_of_the_command_line_are_known() -> None:
    assert converted("accept for domain $d deliver to mbox\n", d="example.org") == (
        'action "act_1" mbox\nmatch for domain $d action "act_1"\n'
    )


def test_a_macro_of_several_words_is_written_out_only_where_it_has_to_be() -> None:
    assert converted('opts = "tag X port 26"\nlisten on lo $opts\naccept for any relay\n').splitlines()[1] == (
        "listen on lo $opts"
    )
    assert converted('all = "for any relay"\naccept from any $all\n').splitlines()[1:] == [
        'action "act_1" relay',
        'match from any for any action "act_1"',
    ]


def test_a_macro_that_goes_on_in_the_file_stays() -> None:
    assert 'match from src $net/24 for any action "act_1"' in converted(
        'net = "10.0.0.0"\naccept from source $net/24 for any relay\n'
    )


def test_actions_stand_above_the_comment_of_the_first_rule() -> None:
    assert converted("listen on lo\n\n# one\n# two\naccept for any relay\n") == (
        'listen on lo\n\naction "act_1" relay\n\n# one\n# two\nmatch for any action "act_1"\n'
    )
    assert (
        converted("# the file\naccept for any relay")
        == '# the file\naction "act_1" relay\nmatch for any action "act_1"'
    )


def test_includes_are_left_and_named_where_they_are_old() -> None:
    files = {"rules": "accept for local deliver to mbox\n", "tables": "table a { x = y }\nm = 'any'\n"}
    conversion = convert('include "tables"\ninclude "rules"\naccept for $m alias <a> deliver to mbox\n', files=files)
    assert list(conversion.files) == ["smtpd.conf"]
    assert conversion.files["smtpd.conf"].startswith('include "tables"\ninclude "rules"\naction "act_1" mbox')
    assert [remark.line for remark in conversion.remarks] == [2]
    assert not conversion.complete


def test_includes_are_followed_with_actions_numbered_through() -> None:
    files = {"rules": "accept for local deliver to mbox\n", "tables": "table a { x = y }\n"}
    conversion = convert('include "tables"\ninclude "rules"\naccept for any relay\n', files=files, follow=True)
    assert dict(conversion.files) == {
        "smtpd.conf": 'include "tables"\ninclude "rules"\naction "act_2" relay\nmatch for any action "act_2"\n',
        "rules": 'action "act_1" mbox\nmatch for local action "act_1"\n',
    }
    assert conversion.complete


def test_an_include_that_is_missing_is_told() -> None:
    conversion = convert('include "/there"\naccept for local alias <unknown> deliver to mbox\n')
    assert "failed to include file /there: No such file or directory" in str(conversion.remarks[0])
    assert not conversion.complete


@pytest.mark.parametrize(
    ("text", "old"),
    [
        ("accept for any relay", True),
        ("  reject from any for any", True),
        ("pki x certificate /y", True),
        ("limit mta max-conn-per-host 2", True),
        ("listen on lo port 25 secure", True),
        ('accept = "x"', False),
        ("# accept for any relay", False),
        ('match for any action "x"', False),
        ("listen on lo # secure", False),
    ],
)
def test_old_files_are_told_by_their_look(text: str, old: bool) -> None:
    assert is_legacy(f"table x {{ a }}\n{text}\n") is old


def test_what_becomes_a_comment_cannot_swallow_the_next_line() -> None:
    new = converted('filter f \\\n "x" \\\n "y"\naccept for any relay\n')
    assert 'match for any action "act_1"' in new
    load_config(file="new", read=lambda path: new, macros={}, hostname="h", checker=None)


_HEAD = """\
table aliases { a = b }
table maps { a = b }
table addrs { "a@b" }
table nets { 10.0.0.0 }
pki mx.example.org certificate "/c" key "/k"
"""
_ROWS = re.findall(r"^\| (`[^|]*`) \| (`[^|]*`) \|$", (LEGACY.parents[2] / "docs/convert.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("old", "new"), [(old.strip("`"), new.split("<br>")) for old, new in _ROWS])
def test_the_manual_says_what_becomes_what(old: str, new: list[str]) -> None:
    lines = converted(_HEAD + old + "\n").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    found = [lines.index(line.strip("`")) for line in new]
    assert found == sorted(found)


def test_the_manual_has_rows() -> None:
    assert len(_ROWS) > 30
