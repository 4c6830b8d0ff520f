"""The programs that a wrapper runs, as processes of an ordinary user."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.mda.support import AS_ROOT, GID, UID, read_tree

MESSAGE = b"Delivered-To: a@b\nSubject: x\n\nFrom here\nbody\n"


@pytest.fixture
def home():
    path = tempfile.mkdtemp(prefix="pillarbox-mail-")
    os.chmod(path, 0o755)
    os.chown(path, UID, GID)
    yield Path(path)
    shutil.rmtree(path)


def run(program: str, *arguments: str, home: Path, as_root: bool = False, **env: str) -> subprocess.CompletedProcess:
    code = f"import sys; sys.argv[0] = 'mail'; from pillarbox.mda.programs import {program}; {program}()"
    who = {} if not AS_ROOT or as_root else {"user": UID, "group": GID, "extra_groups": []}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=MESSAGE,
        capture_output=True,
        env={"HOME": str(home), **env},
        cwd="/",
        timeout=20,
        check=False,
        **who,
    )


def test_maildir_is_filled(home):
    assert run("maildir", home=home).returncode == 0
    assert run("maildir", "-j", f"{home}/%{{user.username}}", home=home).returncode == 0
    found = read_tree(str(home))
    assert list(found.values()) == [MESSAGE] * 2
    assert sorted(Path(name).parts[0] for name in found) == ["%{user.username}", "Maildir"]


def test_mboxfile_is_appended_to(home):
    assert run("mboxfile", "-f", "s@x", f"{home}/box", home=home).returncode == 0
    first, _, rest = (home / "box").read_bytes().partition(b"\n")
    assert first.startswith(b"From s@x ")
    assert rest == MESSAGE.replace(b"From here", b">From here") + b"\n"


def test_failure_is_told_in_the_exit_status(home):
    got = run("lmtp", "-d", "127.0.0.1:1", "-u", home=home, USER="alice", SENDER="s@x")
    assert (got.returncode, got.stderr) == (75, b"mail.lmtp: connect\n")
    got = run("maildir", "relative", home=home)
    assert (got.returncode, got.stderr) == (1, b"mail.maildir: Invalid argument\n")
    got = run("maildir", "a", "b", home=home)
    assert (got.returncode, got.stderr) == (1, b"mail.maildir: only one maildir is allowed\n")


@pytest.mark.skipif(not AS_ROOT, reason="needs root to be refused")
def test_root_is_refused(home):
    got = run("maildir", home=home, as_root=True)
    assert (got.returncode, got.stderr) == (1, b"mail.maildir: may not be executed as root\n")
