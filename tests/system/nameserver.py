"""A real name server (dnsmasq) on port 53 of the sandbox's loopback, which is what its resolv.conf names."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAM = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
MISSING = "" if PROGRAM else "dnsmasq is not installed (tools/setup peers, as root)"


@contextlib.contextmanager
def name_server(folder: Path, zone: Sequence[str]) -> Iterator[None]:
    """Serve a zone in dnsmasq's own syntax; other names are refused. Raises AssertionError where it does not start."""
    assert PROGRAM, MISSING
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "dnsmasq.conf"
    fixed = ["port=53", "listen-address=127.0.0.1", "bind-interfaces", "no-resolv", "no-hosts", "user=root", "pid-file"]
    config.write_text("\n".join([*fixed, *zone, ""]))
    process = subprocess.Popen(
        [PROGRAM, "--keep-in-foreground", f"--conf-file={config}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        end = time.monotonic() + 10
        while not _listens():
            assert process.poll() is None, f"dnsmasq ended: {process.communicate()[0]!r}"
            assert time.monotonic() < end, "dnsmasq does not listen"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _listens() -> bool:
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return any(row[1] == "0100007F:0035" for row in rows)
