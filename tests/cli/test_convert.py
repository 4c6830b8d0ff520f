"""smtpd-convert as people call it: where output goes, exit statuses, what is left untouched; and the hint to it."""

from pathlib import Path

import pytest

from tests.cli.programs import run

OLD = b"table aliases { a = b }\naccept for local alias <aliases> deliver to mbox\n"
NEW = b'table aliases { a = b }\naction "act_1" mbox alias <aliases>\nmatch for local action "act_1"\n'


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "smtpd.conf"
    path.write_bytes(OLD)
    return path


def test_writes_to_stdout(old: Path) -> None:
    done = run(["smtpd-convert", str(old)])
    assert (done.returncode, done.stdout) == (0, NEW)
    assert done.stderr == b"smtpd-convert: rules: 1, actions: 1, to look at: 0\n"


def test_reads_stdin() -> None:
    done = run(["smtpd-convert", "-"], stdin=OLD)
    assert (done.returncode, done.stdout) == (0, NEW)


def test_writes_to_a_file_with_the_mode_of_the_old_one(old: Path, tmp_path: Path) -> None:
    old.chmod(0o640)
    new = tmp_path / "new.conf"
    done = run(["smtpd-convert", "-o", str(new), str(old)])
    assert (done.returncode, done.stdout, new.read_bytes()) == (0, b"", NEW)
    assert new.stat().st_mode & 0o777 == 0o640
    assert old.read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.conf", "smtpd.conf"]


def test_bytes_that_are_not_utf8_stay_as_they_are() -> None:
    done = run(["smtpd-convert", "-"], stdin=b"# caf\xe9 \xc3\xa9\n" + OLD)
    assert done.stdout == b"# caf\xe9 \xc3\xa9\n" + NEW


def test_does_not_write_over_what_it_reads(old: Path) -> None:
    done = run(["smtpd-convert", "-o", str(old), str(old)])
    assert done.returncode == 2
    assert old.read_bytes() == OLD


def test_attention_is_exit_status_1(tmp_path: Path) -> None:
    done = run(["smtpd-convert", "-"], stdin=b"filter f\n" + OLD)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first.startswith(b"stdin:1: warning: no equivalent: filters")
    assert last.endswith(b"to look at: 1")
    assert done.stdout.endswith(b"# filter f\n" + NEW)


def test_errors_are_exit_status_2_and_nothing_is_written(old: Path, tmp_path: Path) -> None:
    old.write_bytes(b"accept for nowhere\n")
    done = run(["smtpd-convert", "-o", str(tmp_path / "new.conf"), str(old)])
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"{old}:1: syntax error: ".encode())
    assert not (tmp_path / "new.conf").exists()


def test_a_file_that_is_not_there_is_exit_status_2() -> None:
    done = run(["smtpd-convert", "/nonexistent"])
    assert (done.returncode, done.stderr) == (2, b"cannot read /nonexistent: No such file or directory\n")


def test_a_file_that_is_too_large_is_refused_and_not_cut(old: Path, tmp_path: Path) -> None:
    with old.open("ab") as file:
        file.truncate((1 << 26) + 1)
    new = tmp_path / "new.conf"
    for named, said in (([str(old)], str(old)), (["-"], "stdin")):
        with old.open("rb") as stdin:
            done = run(["smtpd-convert", "-o", str(new), *named], stdin=stdin.read())
        assert (done.returncode, done.stderr) == (2, f"cannot read {said}: File too large\n".encode())
    assert not new.exists()


def test_a_file_of_today_goes_out_as_it_came_in() -> None:
    done = run(["smtpd-convert", "-"], stdin=NEW)
    assert (done.returncode, done.stdout) == (0, NEW)
    assert b"left as it is" in done.stderr


def test_follows_includes_into_new_files(old: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.conf"
    rules.write_text("accept from any for any relay\n")
    old.write_bytes(OLD + f'include "{rules}"\n'.encode())
    done = run(["smtpd-convert", str(old)])
    assert done.returncode == 1
    assert b"-r converts it" in done.stderr
    done = run(["smtpd-convert", "-r", str(old)])
    assert (done.returncode, done.stdout) == (0, NEW + f'include "{rules}"\n'.encode())
    assert (tmp_path / "rules.conf.new").read_text() == 'action "act_2" relay\nmatch from any for any action "act_2"\n'
    assert rules.read_text() == "accept from any for any relay\n"


def test_follows_includes_into_a_directory(old: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.conf").write_text("accept from any for any relay\n")
    (tmp_path / "out").mkdir()
    old.write_bytes(OLD + f'include "{tmp_path}/rules.conf"\n'.encode())
    done = run(["smtpd-convert", "-d", str(tmp_path / "out"), str(old)])
    assert (done.returncode, done.stdout) == (0, b"")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rules.conf", "smtpd.conf"]


def test_smtpd_names_it_where_a_file_looks_old(old: Path) -> None:
    done = run(["smtpd", "-n", "-f", str(old)])
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(f"{old}:2: syntax error: ".encode())
    assert f"`smtpd-convert {old}`".encode() in done.stderr.splitlines()[-1]


def test_a_server_that_starts_names_it_too(old: Path, tmp_path: Path) -> None:
    done = run(["smtpd", "-d", "--one-process", "--state", str(tmp_path / "state"), "-f", str(old)])
    assert done.returncode == 1
    assert b"smtpd-convert" in done.stderr.splitlines()[-1]


def test_smtpd_does_not_name_it_where_a_file_is_only_wrong(old: Path) -> None:
    old.write_text('match for any action "nowhere"\n')
    assert b"smtpd-convert" not in run(["smtpd", "-n", "-f", str(old)]).stderr
