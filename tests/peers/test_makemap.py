"""Maps go from the real makemap to us and from ours to the real OpenSMTPD, in either layout."""

import random
import smtplib
import subprocess
from pathlib import Path

import pytest

from bench.servers import PORT, OpenSMTPD
from pillarbox.tables.berkeley import read_database
from pillarbox.tables.database import Database
from tests.peers.programs import opensmtpd, opensmtpd_program
from tests.system.server import BIN

pytestmark = pytest.mark.usefixtures("machine", "homes")
LAYOUTS = ["hash", "btree"]


def theirs(*args: str) -> "subprocess.CompletedProcess[bytes]":
    """The real makemap, with the group that its package gives it."""
    argv = [opensmtpd_program("makemap"), *args]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False, group="opensmtpq")


def ours(*args: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([BIN / "makemap", *args], capture_output=True, timeout=60, check=False)


def opened(path: Path) -> Database:
    data = path.read_bytes()
    return read_database(lambda offset, size: data[offset : offset + size], len(data))


def entries(count: int, *, long: bool) -> dict[str, str]:
    """Of all lengths: some have pages of their own, and some begin alike for longer than a page is."""
    chosen = random.Random(count)
    lengths = [1, 30, 300, 1000, 1010, 1025, 4070, 9000] if long else [1, 5, 30]
    keys = {f"{n}{'k' * chosen.choice(lengths)}{n}" for n in range(count)}
    keys |= {f"{'p' * 5000}{n}" for n in range(3)} if long else set()
    return {key: "v" * chosen.choice(lengths) for key in keys}


def write(path: Path, wanted: dict[str, str]) -> str:
    path.write_text("".join(f"{key}\t{value}\n" for key, value in wanted.items()))
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("count", "long"), [(0, False), (1, False), (40, False), (700, True), (20_000, False)])
def test_maps_of_the_real_makemap_are_read(folder: Path, layout: str, count: int, long: bool) -> None:
    opensmtpd()
    wanted = entries(count, long=long)
    source = write(folder / "map", wanted)
    assert theirs("-d", layout, source).returncode == 0
    database = opened(folder / "map.db")
    stored = {f"{key}\0".encode(): f"{value}\0".encode() for key, value in wanted.items()}
    assert dict(database.items()) == stored
    assert all(database.get(key) == value for key, value in stored.items())
    assert database.get(b"no such key\0") is None
    dumped = ours("-U", f"{source}.db").stdout
    assert sorted(dumped.splitlines()) == sorted(theirs("-d", layout, "-U", f"{source}.db").stdout.splitlines())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("count", "long"), [(0, False), (1, False), (40, False), (700, True), (20_000, False)])
def test_the_real_makemap_reads_ours(folder: Path, layout: str, count: int, long: bool) -> None:
    opensmtpd()
    wanted = entries(count, long=long)
    source = write(folder / "map", wanted)
    assert ours("-d", layout, source).returncode == 0
    dumped = theirs("-d", layout, "-U", f"{source}.db")
    assert (dumped.returncode, dumped.stderr) == (0, b"")
    assert sorted(dumped.stdout.decode().splitlines()) == sorted(f"{k}\t{v}" for k, v in wanted.items())


def test_small_maps_are_shown_in_the_same_order(folder: Path) -> None:
    """Scripts compare what `makemap -U` prints."""
    opensmtpd()
    source = write(folder / "map", {f"user{n}": str(n) for n in range(60)})
    ours("-o", str(folder / "ours.db"), source)
    theirs("-o", str(folder / "theirs.db"), source)
    shown = {ours("-U", str(folder / name)).stdout for name in ("ours.db", "theirs.db")}
    assert shown == {theirs("-U", str(folder / "theirs.db")).stdout}


class WithMaps(OpenSMTPD):
    """The real server on maps that we made."""

    def setup(self) -> None:
        super().setup()
        maps = {"domains": ("set", "maps.example\n"), "aliases": ("aliases", "Team: alice, bob\n")}
        for name, (kind, text) in maps.items():
            (self.folder / name).write_text(text)
            assert ours("-t", kind, str(self.folder / name)).returncode == 0
        self.conf.write_text(
            "".join(f"table {name} db:{self.folder / name}.db\n" for name in maps)
            + f"listen on 127.0.0.1 port {PORT}\n"
            + 'action "a" maildir alias <aliases>\nmatch from any for domain <domains> action "a"\n'
        )


def test_the_real_server_looks_up_in_ours(folder: Path) -> None:
    opensmtpd()
    server = WithMaps(folder / "peer", deliver=False)
    server.start()
    try:
        with smtplib.SMTP("127.0.0.1", PORT, timeout=20) as client:
            client.ehlo()
            client.mail("s@client.example.net")
            codes = [client.rcpt(f"{rcpt}.example")[0] for rcpt in ("TEAM@maps", "gone@maps", "team@other")]
        assert codes == [250, 550, 550], server.log()
    finally:
        server.stop()
