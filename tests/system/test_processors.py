"""Whole servers with filters as programs: started as their users, started again, kept over a reload, shown."""

import os
import pwd
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.filters.rig import SCRIPT
from tests.system.server import Result, Server, Wiring, free_port, kill, wait_for

CONFIG = """\
{filters}
listen on 127.0.0.1 port {port} hostname mail.test
action "local" maildir "{folder}/mail" user alice
match from local for local action "local"
"""


def make_server(folder: Path, wiring: Wiring, *filters: str) -> Server:
    config = CONFIG.format(filters="\n".join(filters), port=free_port(), folder=folder)
    return Server(folder, config, wiring, ["-P", "mda"])


def processor(folder: Path, name: str, modes: str = "good", options: str = "") -> str:
    """A `filter … proc-exec` that counts its starts in a file that anybody may write."""
    counter = folder / f"starts-{name}"
    counter.touch()
    counter.chmod(0o666)
    script = shutil.copy(SCRIPT, folder)  # where its user may read it
    return f'filter "{name}" proc-exec "{sys.executable} {script} {modes} {counter}" {options}'


def shown(server: Server) -> dict[str, dict[str, str]]:
    """What `smtpctl show filters` says: by name, the state and the `key=value`s."""
    answer = server.ctl("show", "filters")
    assert answer.exit == 0, answer
    rows: dict[str, dict[str, str]] = {}
    for line in answer.out.splitlines():
        name, state, *rest = line.partition(" command=")[0].split()
        rows[name] = {"state": state} | dict(field.split("=", 1) for field in rest)
    return rows


def states(server: Server) -> dict[str, str]:
    return {name: row["state"] for name, row in shown(server).items()}


def started(folder: Path, name: str) -> int:
    return (folder / f"starts-{name}").stat().st_size


def test_processors_run_as_their_users_and_end_with_the_server(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring, processor(folder, "f"), processor(folder, "g", options="user daemon")) as server:
        rows = shown(server)
        assert states(server) == {"f": "running", "g": "running"}
        assert rows["f"]["phases"] == "*" and rows["f"]["events"] == "smtp-in/*"
        uids = {name: Path(f"/proc/{row['pid']}").stat().st_uid for name, row in rows.items()}
        if os.geteuid() == 0:
            assert uids == {"f": pwd.getpwnam("_smtpd").pw_uid, "g": pwd.getpwnam("daemon").pw_uid}
    for row in rows.values():
        assert not Path(f"/proc/{row['pid']}").exists()


def test_a_program_that_is_not_there_makes_the_start_and_a_reload_fail(folder: Path, wiring: Wiring) -> None:
    broken = make_server(folder, wiring, 'filter "f" proc-exec "/nonexistent/filter"')
    broken.launch()
    assert broken.process is not None
    assert broken.process.wait(20) != 0
    assert f"{broken.conf}:1: processor f: /nonexistent/filter: no such program" in broken.log()
    config = broken.config
    with make_server(folder, wiring, processor(folder, "f")) as server:
        pid = shown(server)["f"]["pid"]
        server.conf.write_text(config)
        failed = server.ctl("reload")
        assert failed.exit == 1
        assert f"{server.conf}:1: processor f: /nonexistent/filter: no such program" in failed.err
        assert shown(server)["f"]["pid"] == pid


def test_a_processor_that_dies_is_started_again_and_restarted_on_request(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring, processor(folder, "f")) as server:
        kill(int(shown(server)["f"]["pid"]), signal.SIGKILL)
        assert wait_for(lambda: shown(server)["f"]["restarts"] == "1" and states(server) == {"f": "running"}, 15)
        pid = shown(server)["f"]["pid"]
        assert server.ctl("restart", "filter", "f") == Result(0, "command succeeded\n", "")
        assert wait_for(lambda: states(server) == {"f": "running"} and shown(server)["f"]["pid"] != pid, 15)
        assert server.ctl("restart", "filter", "g").exit == 1
        assert started(folder, "f") == 3
        assert "f: killed by SIGKILL" in server.log()


def test_a_processor_that_cannot_live_is_left_down_and_the_server_runs_on(folder: Path, wiring: Wiring) -> None:
    modes = ",".join([*["dies_when_ready"] * 5, "good"])
    with make_server(folder, wiring, processor(folder, "f", modes)) as server:
        assert wait_for(lambda: states(server) == {"f": "down"}, 20)
        assert 'is left down: look at what it says above, then "smtpctl restart filter f"' in server.log()
        assert server.ctl("restart", "filter", "f").exit == 0
        assert wait_for(lambda: states(server) == {"f": "running"}, 15)


def test_a_reload_keeps_what_stays_starts_what_is_new_and_ends_what_goes(folder: Path, wiring: Wiring) -> None:
    stays, goes, comes = (processor(folder, name) for name in ("stays", "goes", "comes"))
    with make_server(folder, wiring, stays, goes) as server:
        before = shown(server)
        server.conf.write_text(server.config.replace(goes, comes).replace(stays, f"\n\n{stays}"))
        assert server.ctl("reload").exit == 0
        assert states(server)["comes"] == "running"
        assert wait_for(lambda: set(shown(server)) == {"stays", "comes"}, 30)
        assert shown(server)["stays"] == {**before["stays"], "since": shown(server)["stays"]["since"]}
        assert not Path(f"/proc/{before['goes']['pid']}").exists()
        assert started(folder, "stays") == 1


def test_the_first_processor_may_come_with_a_reload(folder: Path, wiring: Wiring) -> None:
    with make_server(folder, wiring) as server:
        assert shown(server) == {}
        assert server.ctl("restart", "filter", "f").exit == 1
        server.conf.write_text(server.config + processor(folder, "f") + "\n")
        assert server.ctl("reload").exit == 0
        assert states(server) == {"f": "running"}
        server.conf.write_text(server.config)
        assert server.ctl("reload").exit == 0
        assert wait_for(lambda: shown(server) == {}, 30)


def role(server: Server) -> int:
    """The process of the filter role; 0: there is none."""
    arguments = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in server.pids()}
    return next((pid for pid, argv in arguments.items() if argv[-3:-2] == [b"filter"]), 0)


@pytest.mark.usefixtures("machine")
def test_the_role_takes_no_memory_before_there_is_a_processor(folder: Path) -> None:
    with make_server(folder, Wiring.MANY) as server:
        assert role(server) == 0
        server.conf.write_text(server.config + processor(folder, "f") + "\n")
        assert server.ctl("reload").exit == 0
        assert role(server) != 0


@pytest.mark.usefixtures("machine")
def test_a_filter_role_that_dies_comes_back_with_its_processors(folder: Path) -> None:
    with make_server(folder, Wiring.MANY, processor(folder, "f")) as server:
        pid = int(shown(server)["f"]["pid"])
        kill(role(server), signal.SIGKILL)
        assert wait_for(lambda: server.ctl("show", "filters").exit == 0 and started(folder, "f") == 2, 20)
        assert wait_for(lambda: states(server) == {"f": "running"}, 20)
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("machine")
def test_a_filter_role_that_dies_in_a_reload_leaves_the_old_configuration_in_use(folder: Path) -> None:
    old, new = processor(folder, "old"), processor(folder, "new", "slow")
    with make_server(folder, Wiring.MANY, old) as server, ThreadPoolExecutor(1) as pool:
        server.conf.write_text(server.config.replace(old, new))
        reloading = pool.submit(server.ctl, "reload")
        assert wait_for(lambda: started(folder, "new") == 1, 15)
        kill(role(server), signal.SIGKILL)
        assert reloading.result().exit == 1
        assert "reload: nothing has changed, configuration 0 stays in use" in server.log()
        assert wait_for(lambda: server.ctl("show", "filters").exit == 0 and states(server) == {"old": "running"}, 20)
        assert wait_for(lambda: server.ctl("reload").exit == 0, 30, every=0.5)
        assert wait_for(lambda: states(server) == {"new": "running"}, 30)
