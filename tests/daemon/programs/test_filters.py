"""Programs of filters between parent and filter role: which are started, as whom, and what makes a start fail."""

import asyncio
import grp
import io
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Proc
from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.programs.filters import FilterPrograms, check_processors, full_command
from pillarbox.daemon.programs.handed import HandedPrograms
from pillarbox.daemon.programs.programs import Programs
from pillarbox.errors import ConfigError, TempFail
from pillarbox.log import Log

NOBODY = Account("nobody", 65534, 65534)


def parent(*procs: Proc, as_root: bool = False, log: Log | None = None) -> FilterPrograms:
    config = Config(hostname="h", generation=1, procs={p.name: p for p in procs})
    account = (lambda: NOBODY) if as_root else None
    programs = Programs(account=account, log=log or Log(io.StringIO()), says_end=False)
    return FilterPrograms(configs={1: config}.get, programs=programs, account=account)


def executable(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def said(programs: FilterPrograms, name: str = "f") -> str:
    """What a processor writes until it ends."""
    role = HandedPrograms()
    programs.hand = lambda token, connection: role.add(token, connection.dup())
    program = role.program(
        lambda token: programs.start_processor(1, 1, name, token), lambda grace: programs.stop_processor(1, grace)
    )
    with await program.start() as connection:
        assert program.pid > 0
        connection.setblocking(False)
        text = b""
        while part := await asyncio.get_running_loop().sock_recv(connection, 4096):
            text += part
    await program.stop(5)
    return text.decode()


def test_a_command_is_the_shell_s(folder: Path) -> None:
    executable(folder / "my-filter", 'echo "$0 $#" "$@"')
    programs = parent(Proc(name="f", command=f"{folder}/my-filter -x 'two words' $((1+1))"))
    assert asyncio.run(said(programs)) == f"{folder}/my-filter 3 -x two words 2\n"


def test_the_shell_does_not_stay(folder: Path) -> None:
    programs = parent(Proc(name="f", command="/bin/sh -c 'echo $$; ps -o ppid= -p $$'"))
    _, parents = asyncio.run(said(programs)).split()
    assert int(parents) == os.getpid()


def test_without_a_slash_it_is_a_program_with_ours_or_the_reference_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(folder / "filter-mine", "echo here")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert full_command(Proc(name="f", command="filter-mine -a 'b c'")) == f"{folder}/filter-mine -a 'b c'"
    assert full_command(Proc(name="f", command="no-such-filter -a")).endswith("/no-such-filter -a")
    assert full_command(Proc(name="f", command="no-such-filter -a")).startswith("/")


def test_filter_can_start_nothing_but_processors_of_a_configuration() -> None:
    programs = parent(Proc(name="f", command="/bin/true"))
    for generation, name in ((1, "g"), (2, "f")):
        with pytest.raises(TempFail, match="no such processor"):
            asyncio.run(programs.start_processor(1, generation, name, 7))


WHOAMI = "/bin/sh -c 'id -u; id -g; id -G; pwd; ls /'"


@pytest.mark.usefixtures("machine")
def test_a_processor_runs_as_its_user_and_group_and_in_no_other_group(folder: Path) -> None:
    user = pwd.getpwnam("daemon")
    group = grp.getgrnam("mail")
    whole = Proc(name="f", command=WHOAMI, user="daemon", group="mail")
    assert asyncio.run(said(parent(whole, as_root=True))).split()[:4] == [
        str(user.pw_uid),
        str(group.gr_gid),
        str(group.gr_gid),
        "/",
    ]
    only_user = Proc(name="f", command=WHOAMI, user="daemon")
    assert asyncio.run(said(parent(only_user, as_root=True))).split()[:3] == [str(user.pw_uid), *[str(user.pw_gid)] * 2]
    only_group = Proc(name="f", command=WHOAMI, group="mail")
    assert asyncio.run(said(parent(only_group, as_root=True))).split()[:2] == ["65534", str(group.gr_gid)]
    assert asyncio.run(said(parent(Proc(name="f", command=WHOAMI), as_root=True))).split()[:2] == ["65534", "65534"]


@pytest.mark.usefixtures("machine")
def test_a_processor_may_have_a_root_of_its_own(folder: Path) -> None:
    root = folder / "root"
    for program in ("/bin/sh", "/usr/bin/id"):
        copy_into(root, program)
    proc = Proc(name="f", command="/bin/sh -c 'id -u; id -G; pwd; echo /*'", user="daemon", chroot=str(root))
    user = pwd.getpwnam("daemon")
    uid, groups, cwd, *top = asyncio.run(said(parent(proc, as_root=True))).split()
    assert (uid, groups, cwd) == (str(user.pw_uid), str(user.pw_gid), "/")
    assert set(top) == {f"/{path.name}" for path in root.iterdir()}


def copy_into(root: Path, program: str) -> None:
    """A program and the libraries that it needs."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", listed)):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


@pytest.mark.usefixtures("machine")
def test_a_root_that_is_not_there_is_said(folder: Path) -> None:
    stream = io.StringIO()
    proc = Proc(name="f", command="/bin/true", chroot=f"{folder}/nowhere")
    assert asyncio.run(said(parent(proc, as_root=True, log=Log(stream)))) == ""
    assert f"f: {folder}/nowhere: No such file or directory" in stream.getvalue()
    assert "f: exited with 1" in stream.getvalue()


@pytest.mark.parametrize(
    ("proc", "fault"),
    [
        (
            Proc(name="f", command="/nonexistent/filter -x", line=7),
            "c:7: processor f: /nonexistent/filter: no such program",
        ),
        (Proc(name="f", command="/etc/passwd", line=7), "c:7: processor f: /etc/passwd is not executable"),
        (Proc(name="f", command="/etc", line=7), "c:7: processor f: /etc is not executable"),
        (Proc(name="f", command="/bin/sh 'x", line=7), "c:7: processor f: /bin/sh 'x: No closing quotation"),
        (Proc(name="f", command="no-such-filter", line=7), "no-such-filter: no such program"),
        (Proc(name="f", command="/bin/sh", user="no-such-user", line=7), "c:7: processor f: no user no-such-user"),
        (Proc(name="f", command="/bin/sh", group="no-such-group", line=7), "c:7: processor f: no group no-such-group"),
        (Proc(name="f", command="/bin/sh", chroot="/nonexistent", line=7), "/nonexistent/bin/sh: no such program"),
        (Proc(name="f", command="/x", line=7, file="included"), "included:7: processor f: /x: no such program"),
    ],
)
def test_what_cannot_be_started_is_refused_with_its_place(proc: Proc, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_processors(Config(hostname="h", file="c", procs={"f": proc}), as_root=True)
    assert fault in str(caught.value)


def test_what_can_be_started_passes(folder: Path) -> None:
    procs = [
        Proc(name="a", command="/bin/sh -c 'read line'", user="daemon", group="mail"),
        Proc(name="b", command="/bin/$SHELL"),
        Proc(name="c", command="/bin/sh", chroot="/"),
    ]
    check_processors(Config(hostname="h", procs={p.name: p for p in procs}), as_root=True)
    elsewhere = Proc(name="d", command="/bin/sh", user="no-such-user", chroot="/nonexistent")
    check_processors(Config(hostname="h", procs={"d": elsewhere}), as_root=False)  # it is whoever we are
