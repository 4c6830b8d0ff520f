"""What a running server says about its configuration."""

from pathlib import Path

import pytest

from tests.system.server import Server, Wiring, free_port, run

CONFIG = """\
at = "port {port}"
srs key "top secret"
table big {{ {entries} }}
listen on 127.0.0.1 $at tag LAN  # the office
action "out" relay srs helo "mx.example.org"
match from any for domain <big> action "out"
"""


def test_show_config_prints_what_runs_in_canonical_form(folder: Path, wiring: Wiring) -> None:
    entries = ", ".join(f"domain{number}.example" for number in range(20_000))
    config = CONFIG.format(port=free_port(), entries=entries)
    with Server(folder, config, wiring) as server:
        shown = server.ctl("show", "config")
        assert (shown.exit, shown.err) == (0, "")
        assert 'srs key "top secret"' in shown.out
        assert shown.out.endswith('\nmatch from any for domain <big> action "out"\n')
        again = folder / "again.conf"
        again.write_text(shown.out)
        assert run(["smtpd", "-n", "-v", "-f", str(again)]).out == shown.out


@pytest.mark.usefixtures("machine")
def test_show_config_is_not_for_everybody(folder: Path) -> None:
    config = CONFIG.format(port=free_port(), entries="a.example")
    with Server(folder, config, Wiring.ONE) as server:
        denied = run(["smtpctl", "--state", str(server.state), "show", "config"], user="nobody")
        assert (denied.exit, denied.out) == (1, "")


def test_warnings_are_in_the_log_of_a_server_that_starts(folder: Path) -> None:
    config = CONFIG.format(port=free_port(), entries="a.example") + 'table nobody { "x" }\n'
    with Server(folder, config, Wiring.ONE) as server:
        assert f'warn: {server.conf}:7: nothing reads table "nobody"' in server.log()
