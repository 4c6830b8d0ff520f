"""System mailboxes, in a sandbox where /var/mail may be written."""

import fcntl
import os
import threading
import time

import pytest

from pillarbox.conf.model import Local
from pillarbox.mail.envelope import Result
from pillarbox.mda import mailers
from pillarbox.mda.message import Failure
from tests.mda.support import GID, UID, deliver

pytestmark = pytest.mark.usefixtures("machine")
MBOX = Local(name="a", method="mbox")


@pytest.fixture(autouse=True)
def clean():
    for user in ("alice", "root"):
        for name in (user, f"{user}.lock"):
            if os.path.lexists(f"/var/mail/{name}"):
                os.unlink(f"/var/mail/{name}")


def messages(user: str) -> list[str]:
    with open(f"/var/mail/{user}", encoding="ascii") as file:
        return [text.partition("\n")[2] for text in file.read().split("From s@x.example ")[1:]]


def test_mailbox_is_made_for_its_user_and_appended_to():
    outcomes, _, _ = deliver(lambda w: w.order(1, "a"), lambda w: w.order(2, "a"), a=MBOX)
    assert [o.result for o in outcomes] == [Result.OK] * 2
    found = os.stat("/var/mail/alice")
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (UID, GID, 0o600)
    first, second = messages("alice")
    assert first == second
    assert first.endswith("\nhello\nFrom here\n\n>From there\n\n")
    assert not os.path.exists("/var/mail/alice.lock")


def test_mailbox_of_root_is_written_without_its_rights():
    outcomes, _, _ = deliver(lambda w: w.order(1, "a", uid=0, gid=0, user="root", home="/root"), a=MBOX)
    assert outcomes[0].result is Result.OK
    assert os.stat("/var/mail/root").st_uid == 0
    assert len(messages("root")) == 1


def test_command_of_root_is_refused_even_with_mbox():
    order = {"uid": 0, "gid": 0, "user": "root", "mda_exec": "id > /var/mail/x"}
    outcomes, _, _ = deliver(lambda w: w.order(1, "a", **order), a=MBOX)
    assert outcomes[0].errorline == "MDA not allowed to deliver to: root"


@pytest.mark.parametrize("user", ["../alice", ".alice", ""])
def test_name_that_is_no_file_name_is_refused(user):
    outcomes, _, _ = deliver(lambda w: w.order(1, "a", user=user), a=MBOX)
    assert outcomes[0].result is Result.PERMFAIL


def test_link_is_not_followed(tmp_path):
    os.symlink("/etc/passwd", "/var/mail/alice")
    outcomes, _, _ = deliver(lambda w: w.order(1, "a"), a=MBOX)
    assert outcomes[0].result is Result.TEMPFAIL
    with open("/etc/passwd", encoding="utf-8") as file:
        assert "s@x.example" not in file.read()


def test_lock_of_another_program_is_waited_for():
    with open("/var/mail/alice", "wb") as held:
        os.chown("/var/mail/alice", UID, GID)
        fcntl.lockf(held, fcntl.LOCK_EX)
        threading.Timer(0.5, held.close).start()
        begin = time.monotonic()
        outcomes, _, _ = deliver(lambda w: w.order(1, "a"), a=MBOX)
    assert outcomes[0].result is Result.OK
    assert time.monotonic() - begin > 0.4


def test_lock_file_left_behind_is_removed():
    with open("/var/mail/alice.lock", "wb"):
        os.utime("/var/mail/alice.lock", (0, 0))
    outcomes, _, _ = deliver(lambda w: w.order(1, "a"), a=MBOX)
    assert outcomes[0].result is Result.OK


def test_failure_of_a_mailbox_names_it():
    with pytest.raises(Failure, match="unknown name"):
        mailers.mailbox_path("a/b")
