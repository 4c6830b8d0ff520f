"""Mail left while no server ran: what is taken, what is not, and as whom."""

import asyncio
import io
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from pillarbox.control.offline import (
    ACCEPTED,
    LATER,
    REFUSED,
    RETURNED,
    BadFile,
    Leftover,
    Limits,
    OfflineMail,
    Result,
    SendmailChild,
    find_leftovers,
    open_leftover,
    read_arguments,
)
from pillarbox.log import Log
from tests.control.memory import serving, state_directory

NOW = 1_700_000_000.0
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for files of several users")


class Submissions:
    """Takes what would be given to sendmail."""

    def __init__(self, result: Result = Result(ACCEPTED, "")) -> None:  # noqa: B008 - immutable
        self.result = result
        self.taken: list[tuple[int, list[str], bytes]] = []

    async def __call__(self, owner: pwd.struct_passwd, arguments: list[str], file: int) -> Result:
        self.taken.append((owner.pw_uid, arguments, os.read(file, 1 << 20)))
        return self.result


class Place:
    """An offline directory and a log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = io.StringIO()
        self.log = Log(self.output)

    def leave(self, name: str, text: str = "-f|a@b|c@d\nSubject: x\n\nx\n", *, uid: int | None = None) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        if uid is not None:
            os.chown(path, uid, uid)
        return path

    def sweep(self, submit: Submissions, limits: Limits | None = None) -> int:
        mail = OfflineMail(
            directory=str(self.directory), submit=submit, log=self.log, now=lambda: NOW, uid=os.getuid(), limits=limits
        )
        return asyncio.run(mail.sweep())

    def find(self, limits: Limits | None = None) -> list[Leftover]:
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            return find_leftovers(directory, limits=limits or Limits(), now=NOW, log=self.log)
        finally:
            os.close(directory)

    def why_not(self, name: str) -> str:
        directory = os.open(self.directory, os.O_RDONLY)
        status = os.lstat(self.directory / name)
        try:
            with pytest.raises((BadFile, OSError)) as caught:
                open_leftover(directory, Leftover(name, status.st_uid, status.st_ino, status.st_size))
            return str(caught.value)
        finally:
            os.close(directory)


@pytest.fixture
def place() -> Iterator[Place]:
    with state_directory() as state:
        yield Place(state / "offline")


def test_a_message_is_submitted_with_its_arguments_and_removed(place: Place) -> None:
    path = place.leave("1.abc")
    submit = Submissions()
    assert place.sweep(submit) == 1
    assert submit.taken == [(os.getuid(), ["-f", "a@b", "c@d"], b"Subject: x\n\nx\n")]
    assert not path.exists()


def test_drafts_are_left_until_they_are_old(place: Place) -> None:
    young, old = place.leave(".1.abc"), place.leave(".0.abc")
    os.utime(young, (NOW - 60, NOW - 60))
    os.utime(old, (NOW - 90_000, NOW - 90_000))
    assert place.sweep(Submissions()) == 0
    assert young.exists()
    assert not old.exists()


def test_links_fifos_and_folders_are_not_opened(place: Place) -> None:
    place.leave("real")
    os.link(place.directory / "real", place.directory / "second")
    os.symlink("/etc/passwd", place.directory / "symbolic")
    os.mkfifo(place.directory / "pipe")
    (place.directory / "folder").mkdir()
    assert "other names" in place.why_not("second")
    assert "symbolic links" in place.why_not("symbolic")
    assert "not a regular file" in place.why_not("pipe")
    assert "not a regular file" in place.why_not("folder")
    submit = Submissions()
    assert place.sweep(submit) == 0
    assert submit.taken == []
    assert len(list(place.directory.iterdir())) == 5


def test_what_others_can_read_or_write_is_not_from_sendmail(place: Place) -> None:
    place.leave("1.abc").chmod(0o640)
    assert "mode 0640" in place.why_not("1.abc")


def test_a_file_exchanged_after_it_was_found_is_not_opened(place: Place) -> None:
    place.leave("1.abc")
    (found,) = place.find()
    place.leave("2.abc")
    os.rename(place.directory / "2.abc", place.directory / "1.abc")
    directory = os.open(place.directory, os.O_RDONLY)
    with pytest.raises(BadFile, match="exchanged"):
        open_leftover(directory, found)
    os.close(directory)


@pytest.mark.parametrize("text", ["", "no line end", "a\0b\nx\n", "x" * 70_000 + "\n"])
def test_files_without_a_line_of_arguments_stay_and_are_told_once(place: Place, text: str) -> None:
    path = place.leave("1.abc", text)
    mail = OfflineMail(
        directory=str(place.directory), submit=Submissions(), log=place.log, now=lambda: NOW, uid=os.getuid()
    )
    assert [asyncio.run(mail.sweep()) for _ in range(3)] == [0, 0, 0]
    assert path.exists()
    assert place.output.getvalue().count("1.abc") == 1


def test_no_arguments_are_no_arguments(place: Place) -> None:
    path = place.leave("1.abc", "\nTo: x\n")
    with path.open("rb") as file:
        assert read_arguments(file.fileno()) == []
        assert os.read(file.fileno(), 100) == b"To: x\n"


def test_what_becomes_of_a_message_decides_about_its_file(place: Place) -> None:
    for verdict in (LATER, RETURNED, REFUSED):
        place.leave(f"1.{verdict}")
        place.sweep(Submissions(Result(verdict, "550 no")))
        for path in place.directory.glob("1.*"):
            assert verdict == LATER
            path.unlink()
    assert [path.name for path in place.directory.iterdir()] == [".refused.1.refused"]
    assert place.sweep(Submissions()) == 0


def test_each_user_is_limited_in_files_and_bytes(place: Place) -> None:
    for number in range(5):
        place.leave(f"{number}.abc")
    assert len(place.find(Limits(files=3))) == 3
    assert "2 more messages" in place.output.getvalue()
    size = place.find()[0].size
    assert len(place.find(Limits(octets=2 * size))) == 2
    assert len(place.find(Limits(octets=size // 2))) == 1, "one that is larger than the limit is not stuck for ever"


@AS_ROOT
def test_each_message_is_submitted_as_its_owner(place: Place) -> None:
    nobody = pwd.getpwnam("nobody")
    place.leave("1.abc", uid=nobody.pw_uid)
    submit = Submissions()
    assert place.sweep(submit) == 1
    assert submit.taken[0][0] == nobody.pw_uid


@AS_ROOT
def test_files_of_users_that_are_gone_stay(place: Place) -> None:
    path = place.leave("1.abc", uid=64999)
    assert place.sweep(Submissions()) == 0
    assert path.exists()
    assert "nobody known" in place.output.getvalue()


@AS_ROOT
def test_a_server_that_is_not_roots_takes_only_its_own(place: Place) -> None:
    place.leave("1.abc", uid=pwd.getpwnam("nobody").pw_uid)
    mail = OfflineMail(directory=str(place.directory), submit=Submissions(), log=place.log, now=lambda: NOW, uid=12345)
    assert asyncio.run(mail.sweep()) == 0


def submit_for_real(state: Path, text: str, *, uid: int | None = None) -> tuple[Place, int]:
    place = Place(state / "offline")
    place.leave("1.abc", text, uid=uid)
    child = SendmailChild(state=str(state), as_root=os.geteuid() == 0)
    mail = OfflineMail(directory=str(place.directory), submit=child, log=place.log, now=time.time, uid=os.getuid())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return place, runner.run(mail.sweep())


def test_the_child_is_sendmail_and_submits_over_the_socket() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    uid = nobody if os.geteuid() == 0 else None
    with serving() as server:
        place, accepted = submit_for_real(server.state, "-f|off@x.example|c@d\nSubject: off\n\n.x\n", uid=uid)
        assert accepted == 1, place.output.getvalue()
        ((session, body),) = server.messages
        assert session.uid == (nobody if uid is not None else os.getuid())
        assert "MAIL FROM:<off@x.example>" in session.commands
        assert body.endswith(b"Subject: off\r\n\r\n.x\r\n")
        assert list(place.directory.iterdir()) == []


def test_a_child_without_a_server_leaves_the_file_where_it_is() -> None:
    with state_directory() as state:
        place, accepted = submit_for_real(state, "c@d\nSubject: off\n\nx\n")
        assert accepted == 0
        assert [path.name for path in place.directory.iterdir()] == ["1.abc"]


def test_a_temporary_no_keeps_the_message_and_a_bad_one_is_put_aside() -> None:
    with serving() as server:
        server.reply("RCPT", "451 4.3.0 later")
        place, accepted = submit_for_real(server.state, "c@d\nSubject: off\n\nx\n")
        assert accepted == 0
        assert "451 4.3.0 later" in place.output.getvalue()
        assert (place.directory / "1.abc").exists()
        place, accepted = submit_for_real(server.state, "-Z\nSubject: off\n\nx\n")
        assert [path.name for path in place.directory.iterdir()] == [".refused.1.abc"]
