"""makemap and newaliases as people call them."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.programs import lines, run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as newaliases does")
CONFIG = 'listen on lo\ntable {table}\naction "a" maildir alias <aliases>\nmatch for local action "a"\n'


def said(result):
    return result.returncode, lines(result.stdout), lines(result.stderr)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("layout", [[], ["-d", "hash"], ["-d", "btree"]])
def test_what_was_put_in_comes_out(tmp_path: Path, layout: list[str]) -> None:
    source = write(tmp_path / "map", "".join(f"Key{n}: value {n}\n" for n in range(500)))
    assert said(run(["makemap", *layout, source])) == (0, [], [])
    status, out, err = said(run(["makemap", "-U", f"{source}.db"]))
    assert (status, sorted(out), err) == (0, sorted(f"key{n}\tvalue {n}" for n in range(500)), [])


def test_it_reads_its_input_and_writes_where_it_is_told(tmp_path: Path) -> None:
    target = str(tmp_path / "out.db")
    assert said(run(["makemap", "-t", "set", "-o", target, "-"], stdin=b"a b\n")) == (0, [], [])
    assert said(run(["makemap", "-U", target])) == (0, ["a b\t<set>"], [])


def test_it_answers_to_the_options_of_sendmail_s(tmp_path: Path) -> None:
    assert said(run(["makemap", "hash", str(tmp_path / "virtusertable")], stdin=b"a\tb\n")) == (0, [], [])
    assert said(run(["makemap", "-U", str(tmp_path / "virtusertable.db")])) == (0, ["a\tb"], [])
    assert said(run(["makemap", "btree", str(tmp_path / "x.db")], stdin=b"a\tb\n")) == (0, [], [])
    assert sorted(os.listdir(tmp_path)) == ["virtusertable.db", "x.db"]


def test_an_empty_map_is_made_and_told(tmp_path: Path) -> None:
    source = write(tmp_path / "map", "# nothing\n")
    assert said(run(["makemap", source])) == (0, [], [f"makemap: warning: empty map created: {source}.db"])
    assert said(run(["makemap", "-U", f"{source}.db"])) == (0, [], [])


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("a b\nalone\n", [], "makemap: {map}:2: invalid entry"),
        ("a b\nA c\n", [], "makemap: {map}:2: duplicate entry for a"),
        ("a: |x, y z\n", ["-t", "aliases"], "makemap: {map}:1: invalid entry"),
        ("a b\n", ["-t", "bogus"], "makemap: unsupported type 'bogus'"),
        ("a b\n", ["-d", "dbm"], "makemap: unsupported DB type 'dbm'"),
    ],
)
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, text: str, options: list[str], error: str) -> None:
    source = write(tmp_path / "map", text)
    write(tmp_path / "map.db", "old")
    assert said(run(["makemap", *options, source])) == (1, [], [error.format(map=source)])
    assert (tmp_path / "map.db").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["map", "map.db"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no")
    assert said(run(["makemap", nowhere])) == (1, [], [f"makemap: stat: {nowhere}: No such file or directory"])
    assert said(run(["makemap", "-U", nowhere])) == (1, [], [f"makemap: dbopen: {nowhere}: No such file or directory"])
    assert said(run(["makemap", str(tmp_path)])) == (1, [], [f"makemap: {tmp_path}: Is a directory"])
    text = write(tmp_path / "map", "a b\n")
    assert said(run(["makemap", "-U", text])) == (1, [], [f"makemap: dbopen: {text}: not a Berkeley DB file"])


def test_a_source_that_is_locked_is_not_read(tmp_path: Path) -> None:
    source = write(tmp_path / "map", "a b\n")
    with open(source, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert said(run(["makemap", source])) == (1, [], [f"makemap: {source} is locked"])


@pytest.mark.parametrize("arguments", [[], ["-h"], ["a", "b", "c"], ["-o", "x", "a", "b"]])
def test_usage(arguments: list[str]) -> None:
    usage = "usage: makemap [-U] [-d dbtype] [-o dbfile] [-t type] file"
    assert said(run(["makemap", *arguments])) == (1, [], [usage])


def test_an_unknown_option_is_named() -> None:
    assert lines(run(["makemap", "-x"]).stderr)[0] == "makemap: invalid option -- 'x'"
    assert lines(run(["makemap", "-d"]).stderr)[0] == "makemap: option requires an argument -- 'd'"


@needs_root
def test_newaliases_finds_the_file_in_the_configuration(tmp_path: Path) -> None:
    """Of a db table too, which need not be there yet."""
    aliases = write(tmp_path / "aliases", "root: alice\npostmaster: root, bob@example.org\n")
    for table in (f"aliases file:{aliases}", f"aliases db:{aliases}.db"):
        config = write(tmp_path / "smtpd.conf", CONFIG.format(table=table))
        assert said(run(["newaliases", "-f", config])) == (0, [f"{aliases}: 2 aliases"], [])
        dump = sorted(lines(run(["makemap", "-U", f"{aliases}.db"]).stdout))
        assert dump == ["postmaster\troot, bob@example.org", "root\talice"]
        os.unlink(f"{aliases}.db")


@needs_root
def test_newaliases_says_what_is_wrong_with_the_configuration(tmp_path: Path) -> None:
    config = write(tmp_path / "smtpd.conf", CONFIG.format(table="aliases file:/nowhere"))
    result = run(["newaliases", "-f", config])
    assert (result.returncode, result.stdout) == (1, b"")
    assert lines(result.stderr)[0].startswith(f"{config}:2: invalid configuration file /nowhere for table aliases")


@needs_root
def test_newaliases_needs_aliases_from_a_file(tmp_path: Path) -> None:
    config = write(tmp_path / "smtpd.conf", CONFIG.format(table="aliases { a = b }"))
    assert said(run(["newaliases", "-f", config])) == (
        1, [], [f'newaliases: table "aliases" of {config} comes from no file'],
    )  # fmt: skip


@needs_root
def test_the_old_ways_to_make_aliases(tmp_path: Path) -> None:
    aliases = write(tmp_path / "aliases", "root: alice\n")
    done = (0, [f"{aliases}: 1 aliases"], [])
    assert said(run(["makemap", "-bi", "-O", f"AliasFile={aliases}"])) == done
    assert said(run(["makemap", "-U", f"{aliases}.db"])) == (0, ["root\talice"], [])


@needs_root
def test_newaliases_is_for_root() -> None:
    assert said(run(["newaliases"], user=65534)) == (1, [], ["newaliases: need root privileges"])
    assert said(run(["newaliases", "x"])) == (1, [], ["usage: newaliases [-f file]"])


def test_smtpctl_answers_to_their_names(tmp_path: Path) -> None:
    """As the reference's does, of which they are links."""
    started = "import sys; from pillarbox.cli.smtpctl import main; sys.argv[0] = {!r}; sys.exit(main())"
    for name in ("makemap", "newaliases"):
        done = subprocess.run([sys.executable, "-c", started.format(name), "-h"], capture_output=True, check=False)
        assert (done.returncode, done.stderr.startswith(f"usage: {name} ".encode())) == (1, True)
