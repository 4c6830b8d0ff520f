"""One rule for where things are, for the server and for those who look for it."""

import socket
from pathlib import Path

import pytest

from pillarbox import places


def test_what_is_given_comes_first() -> None:
    environ = {"PILLARBOX_STATE": "/env", "HOME": "/home/a"}
    assert places.server_state("/given", environ=environ, uid=0) == "/given"
    assert places.server_state(None, environ=environ, uid=0) == "/env"
    assert places.config_file("x.conf", environ=environ, uid=0) == "x.conf"


def test_root_and_users_have_places_of_their_own() -> None:
    assert places.server_state(None, environ={}, uid=0) == "/var/spool/pillarbox"
    assert places.server_state(None, environ={"HOME": "/h"}, uid=7) == "/h/.local/state/pillarbox"
    assert places.server_state(None, environ={"HOME": "/h", "XDG_STATE_HOME": "/s"}, uid=7) == "/s/pillarbox"
    assert (
        places.server_state(None, environ={"HOME": "/h", "XDG_STATE_HOME": "s"}, uid=7) == "/h/.local/state/pillarbox"
    )
    assert places.config_file(None, environ={"HOME": "/h"}, uid=7) == "/h/.config/pillarbox/smtpd.conf"


def test_a_user_without_a_server_of_their_own_means_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, own = tmp_path / "system", tmp_path / "own/pillarbox"
    own.mkdir(parents=True)
    monkeypatch.setattr(places, "SYSTEM_STATE", str(system))
    environ = {"XDG_STATE_HOME": str(tmp_path / "own")}
    assert places.client_state(None, environ=environ, uid=7) == str(own)
    system.mkdir()
    assert places.client_state(None, environ=environ, uid=7) == str(system)
    (own / "smtpd.sock").touch()
    assert places.client_state(None, environ=environ, uid=7) == str(own)


def test_a_socket_with_a_long_path_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / ("x" * 120)
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(state)
        listener.bind("smtpd.sock")
        listener.listen()
        places.connect(places.control_socket(str(state)), 5).close()


def test_the_host_name_comes_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailname, hosts = tmp_path / "mailname", tmp_path / "hosts"
    monkeypatch.setattr(socket, "gethostname", lambda: "mx")
    hosts.write_text("127.0.0.1 localhost\n192.0.2.1 mx.example.org mx # this one\n")
    assert places.host_name(mailname=str(mailname), hosts=str(hosts)) == "mx.example.org"
    assert places.host_name(mailname=str(mailname), hosts=str(mailname)) == "mx"
    mailname.write_text("# the name\n\nmail.example.org\n")
    assert places.host_name(mailname=str(mailname), hosts=str(hosts)) == "mail.example.org"
