"""`smtpctl explain` as people call it: its options, its exit status, its output, and the example of its manual.

`python -m tests.cli.test_explain` writes the example anew.
"""

import json
import re
from pathlib import Path

import pytest

from pillarbox.cli.explained import Style, explained_lines
from pillarbox.roles.explain import Explanation, Session
from tests.cli.programs import lines, run
from tests.control.memory import serving

MANUAL = Path(__file__).parents[2] / "docs/explain.md"
BLOCK = r"<!-- example: {} -->\n```\n(.*?)```"


def explain(*arguments, folder, **options):
    """(status, lines of stdout, lines of stderr) in a folder with the manual's configuration."""
    (folder / "smtpd.conf").write_text(block("smtpd.conf"))
    done = run(["smtpctl", "explain", *arguments], cwd=folder, **options)
    return done.returncode, lines(done.stdout), lines(done.stderr)


def block(name: str) -> str:
    found = re.search(BLOCK.format(re.escape(name)), MANUAL.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def command() -> list[str]:
    found = re.search(r"`smtpctl explain (.* --rcpt .*)` prints", MANUAL.read_text())
    assert found is not None
    return found[1].split()


def test_the_example_of_the_manual_is_what_the_program_prints(tmp_path: Path) -> None:
    status, out, errors = explain(*command(), folder=tmp_path)
    assert (status, errors) == (0, [])
    assert out == block("output").split("\n")[:-1]


def test_json_is_documented(tmp_path: Path) -> None:
    """Every name in the document is in the manual."""
    status, out, _ = explain(*command(), "--json", folder=tmp_path)
    assert status == 0

    def names(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from names(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from names(inner)

    text = MANUAL.read_text().partition("## JSON")[2]
    assert {name for name in names(json.loads("\n".join(out))) if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    ("arguments", "status", "last"),
    [
        (["--rcpt", "nobody@example.org"], 1, "Refused: 550 Invalid recipient: <nobody@example.org>"),
        (["--rcpt", "a b@example.org"], 1, "Refused: 501 5.1.3 Recipient address syntax error"),
        (["--rcpt", "x@y.example"], 0, "Accepted, 1 envelope: 250 2.1.5 Destination address valid: Recipient ok"),
        (["--src", "198.51.100.7", "--rcpt", "x@y.example"], 1, "Refused: 550 Invalid recipient: <x@y.example>"),
        (["--src", "[192.0.2.9]", "--rcpt", "<x@y.example>"], 0, "Accepted, 1 envelope: 250 2.1.5 "),
    ],
)
def test_the_exit_status_says_whether_it_is_accepted(tmp_path: Path, arguments, status, last) -> None:
    found, out, errors = explain("-f", "smtpd.conf", *arguments, folder=tmp_path)
    assert (found, errors) == (status, [])
    assert out[-1].startswith(last)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--src", "here"], "not an IP address: here"),
        (["-f", "smtpd.conf", "--tag", "x"], 'no listener has the tag "x"'),
        (["-f", "missing.conf"], "cannot read missing.conf"),
        (["--rcpt", "x@example.org"], "smtpctl: smtpd doesn't seem to be running"),
    ],
)
def test_what_has_no_answer_is_status_2(tmp_path: Path, arguments, said) -> None:
    status, out, errors = explain(*arguments, folder=tmp_path)
    assert (status, out) == (2, [])
    assert said in errors[-1]


def test_it_is_typed_in_full_and_not_offered() -> None:
    with serving() as server:
        done = run(["smtpctl", "expl"], state=server.state)
    assert done.returncode == 255
    assert b"explain" not in done.stderr


@pytest.mark.parametrize(
    ("statements", "asked"),
    [
        ('action "a" relay\nmatch from any for domain <far> action "a"', True),
        ('action "a" maildir userbase <far>\nmatch from any for any action "a"', True),
        ('action "a" maildir alias <far>\nmatch from any for any action "a"', True),
        ('action "a" relay domain <far>\nmatch from any for any action "a"', True),
        ('action "a" relay\nmatch for any action "a"\nmatch from any for domain <far> action "a"', False),
    ],
)
def test_what_a_program_would_say_is_unknown_without_a_server(tmp_path: Path, statements, asked) -> None:
    (tmp_path / "p.conf").write_text(f"table far prog:/etc/far\n{statements}\n")
    status, out, errors = explain("-f", "p.conf", "--rcpt", "a@x.example", folder=tmp_path)
    assert errors == []
    assert status == (2 if asked else 0)
    assert ("Not seen: table far: only a server can ask its program" in out) is asked


def test_maps_on_disk_are_asked_without_a_server_too(tmp_path: Path) -> None:
    (tmp_path / "doms").write_text("x.example\n")
    (tmp_path / "al").write_text("a: b@y.example\n")
    made = [
        run(["makemap", "-t", "set", "-o", "doms.db", "doms"], cwd=tmp_path),
        run(["makemap", "-t", "aliases", "-o", "al.db", "al"], cwd=tmp_path),
    ]
    assert [done.returncode for done in made] == [0, 0], made
    (tmp_path / "d.conf").write_text(
        f"table doms db:{tmp_path}/doms.db\ntable al db:{tmp_path}/al.db\n"
        'action "in" maildir alias <al>\naction "out" relay\n'
        'match for domain <doms> action "in"\nmatch for any action "out"\n'
    )
    status, out, errors = explain("-f", "d.conf", "--rcpt", "a@x.example", folder=tmp_path)
    assert (status, errors) == (0, [])
    assert f'         yes for domain <doms>: x.example is in "doms" (db:{tmp_path}/doms.db)' in out
    assert f"   table <al> (db:{tmp_path}/al.db): alias a -> b@y.example" in out


def test_macros_of_the_command_line_count(tmp_path: Path) -> None:
    (tmp_path / "m.conf").write_text('action "a" relay\nmatch for domain $d action "a"\n')
    status, out, errors = explain("-f", "m.conf", "-D", "d=x.example", "--rcpt", "a@x.example", folder=tmp_path)
    assert (status, errors) == (0, [])
    assert any('for domain "x.example"' in line for line in out)


def test_no_colour_where_there_is_no_terminal_and_some_where_there_is() -> None:
    session = Session(
        sender="",
        rcpt="a@b",
        address="::1",
        local=True,
        hostname="",
        helo="",
        username="u",
        authenticated=True,
        tls=True,
        tag="T",
        listener="x",
    )
    explanation = Explanation(
        verdict="refused", reply="550 no", session=session, members=(), envelopes=(), left_out=3, unknown=("that",)
    )
    plain = list(explained_lines(explanation, Style()))
    coloured = list(explained_lines(explanation, Style(colour=True)))
    assert plain == [
        "From    <>",
        "To      <a@b>",
        "Client  ::1, of this host, no HELO, authenticated as u, TLS, tag T",
        "",
        "Not seen: that",
        "Left out: 3 more steps or envelopes",
        "Refused: 550 no",
    ]
    assert "\x1b[31mRefused: 550 no\x1b[0m" in coloured
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in coloured] == plain


def write_example(folder: Path) -> None:
    """Write what the program prints into the manual."""
    status, out, errors = explain(*command(), folder=folder)
    assert status == 0, errors
    pattern = re.compile(BLOCK.format("output"), re.DOTALL)
    new = "<!-- example: output -->\n```\n" + "\n".join(out) + "\n```"
    MANUAL.write_text(pattern.sub(lambda _: new, MANUAL.read_text()))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        write_example(Path(name))
