"""Rspamd with Debian's configuration, in a folder of its own; it asks a Redis and the sandbox's name server only."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.backends.servers import USER, Database, home, program
from tests.peers.dkimkeys import new_key
from tests.system.server import Server, Wiring, free_port

# What would ask the Internet. The rest is what Debian's configuration makes of a message.
_REMOTE = ["asn", "dmarc", "fuzzy_check", "mid", "phishing", "rbl", "rspamd_update", "spf", "surbl", "whitelist"]
# Text by which the scanner comes to a verdict without weighing anything.
_TEST = "JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
REJECT, ADD_HEADER, REWRITE_SUBJECT = f"X{_TEST}", f"Y{_TEST}", f"Z{_TEST}"


class Rspamd(Database):
    """The scanner answers at `url`; `redis`: the port of its database. It signs for example.org with `key`."""

    def __init__(self, folder: Path, redis: int) -> None:
        rspamd = program("rspamd")
        home(folder)
        port, controller = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.key = new_key(folder / "dkim/example.org.dkim.key", USER)
        files = {
            # Debian's list of top level domains is compiled for a minute where others work, too.
            "options.inc": f'tempdir = "{folder}";\nurl_tld = "{folder}/tlds";\nenable_test_patterns = true;\n'
            'dns { nameserver = ["127.0.0.1"]; timeout = 0.2s; retransmits = 1; }\n',
            "logging.inc": 'type = "console";\n',
            "redis.conf": f'servers = "127.0.0.1:{redis}";\n',
            "worker-normal.inc": f'bind_socket = "127.0.0.1:{port}";\ncount = 1;\n',
            "worker-controller.inc": f'bind_socket = "127.0.0.1:{controller}";\n',
            "worker-proxy.inc": "enabled = false;\n",
            **{f"{module}.conf": "enabled = false;\n" for module in _REMOTE},
        }
        (folder / "tlds").write_text("com\nnet\norg\n")
        (folder / "local.d").mkdir()
        for name, text in files.items():
            (folder / "local.d" / name).write_text(text)
        places = ("LOCAL_CONFDIR", "DBDIR", "RUNDIR", "LOGDIR")
        argv = [rspamd, "-f", "-c", "/etc/rspamd/rspamd.conf", *[f"--var={place}={folder}" for place in places]]
        super().__init__(folder, argv, port=port)


@contextlib.contextmanager
def scanned(folder: Path, wiring: Wiring, command: str) -> Iterator[tuple[Server, int]]:
    """A server that asks this filter about everything, with junk in a folder of its own; and its port."""
    port = free_port()
    config = (
        f'filter "rspamd" proc-exec "{command}"\n'
        f'listen on 127.0.0.1 port {port} hostname mail.example.org filter "rspamd"\n'
        'action "a" maildir junk\nmatch from any for domain "example.org" action "a"\n'
    )
    with Server(folder / "server", config, wiring) as server:
        yield server, port
