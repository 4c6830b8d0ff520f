"""A server of two listeners, whose mail goes through a filter at the one and not at the other, and clients of both that
note every answer and how long it took: what a filter that misbehaves must not do to either.
"""

import asyncio
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.load import read_maildir
from tests.system.server import Server, Wiring, free_port, wait_for
from tests.system.test_crash import account

PATIENCE = 30.0  # seconds: an answer that is later is none
TIMEOUT = 3.0  # seconds that the filter has for an answer
CLIENTS = 3  # of each listener
A_SESSION = 4  # messages
DEFINED = {"220", "250", "354", "221", "451", "421"}
PROGRAM = Path(__file__).with_name("faulty_filter.py")
_BODY = b"A line of the usual length, as they are in most of the messages.\r\n"


@dataclass
class Visits:
    """What the clients of one listener saw.

    `unsure`: messages whose answer did not come because the server was hurt, where that is allowed (`hurt`).
    """

    hurt: bool = False
    codes: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each answer
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest answer took."""
        return max(self.seconds, default=0.0)

    @property
    def median(self) -> float:
        """Seconds that half of the answers took at most."""
        return statistics.median(self.seconds)


class Client:
    """Delivers numbered messages to one port, session after session. `number` is unique in a test."""

    def __init__(self, visits: Visits, number: int, port: int, size: int) -> None:
        self.visits, self.number, self.port, self.size = visits, number, port, size

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop."""
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self._fault(f"connect: {error}")
                await asyncio.sleep(0.1)
                continue
            try:
                await self._session(reader, writer, stop)
            except (OSError, EOFError, TimeoutError) as error:
                self._fault(f"{type(error).__name__}: {error}")
            finally:
                writer.close()
            await asyncio.sleep(0.02)

    def _fault(self, text: str) -> None:
        if not self.visits.hurt:
            self.visits.faults.append(f"{self.number}: {text}")

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
        say = Dialogue(self.visits, reader, writer)
        if await say("") != "220" or await say("EHLO client.bench.test") != "250":
            return
        for _ in range(A_SESSION):
            if stop.is_set() or await self._message(say) == "421":
                break
            await asyncio.sleep(0.02)
        await say("QUIT")

    async def _message(self, say: "Dialogue") -> str:
        number = f"{self.number}.{next(self.visits.numbers)}"
        for line in ("MAIL FROM:<sender@client.bench.test>", "RCPT TO:<local@bench.test>", "DATA"):
            code = await say(line)
            if code not in ("250", "354"):
                return code if code == "421" else await say("RSET")
        text = f"From: <sender@client.bench.test>\r\nSubject: {number}\r\n\r\n".encode()
        self.visits.unsure.add(number)
        code = await say(text + _BODY * (self.size // len(_BODY)) + b".")
        self.visits.unsure.discard(number)
        if code == "250":
            self.visits.acknowledged.add(number)
        return code


class Dialogue:
    """Sends lines and awaits the reply to each: its code."""

    def __init__(self, visits: Visits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._visits, self._reader, self._writer = visits, reader, writer

    async def __call__(self, line: str | bytes) -> str:
        """Raises TimeoutError after PATIENCE, IncompleteReadError where there is none."""
        began = time.monotonic()
        if line:
            self._writer.write((line.encode() if isinstance(line, str) else line) + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            while (reply := await self._reader.readuntil(b"\r\n"))[3:4] == b"-":
                pass
        self._visits.seconds.append(time.monotonic() - began)
        code = reply[:3].decode("latin-1")
        self._visits.codes[code] += 1
        if code not in DEFINED:
            self._visits.faults.append(f"{reply!r} to {line[:40]!r}")
        return code


@dataclass
class Site:
    """The configuration, the file that tells the filter what to do, and what was delivered."""

    folder: Path
    wiring: Wiring
    mark: str = "1"
    options: str = f"timeout {TIMEOUT:.0f}s"  # of the filter
    more: str = ""
    port: int = field(default_factory=free_port)
    plain: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.mail = self.folder / "mail"
        self.mail.mkdir()
        os.chown(self.mail, account().pw_uid, account().pw_gid)
        self.program = self.folder / PROGRAM.name
        self.program.write_text(PROGRAM.read_text())
        self.orders = self.folder / "orders"
        self.order("")
        self.server = Server(self.folder / "server", self.text(), self.wiring, dispatchers=2)

    def text(self) -> str:
        """The configuration."""
        return f"""\
filter "f" proc-exec "/usr/bin/python3 {self.program} {self.orders} {self.mark}" {self.options}
{self.more}listen on 127.0.0.1 port {self.port} hostname mail.bench.test filter "f"
listen on 127.0.0.1 port {self.plain} hostname mail.bench.test
action "local" maildir "{self.mail}/Maildir" virtual {{ "@" = "{account().pw_name}" }}
match from any for domain "bench.test" action "local"
"""

    def order(self, text: str) -> None:
        """Tell the filter, whole or not at all."""
        new = self.orders.with_suffix(".new")
        new.write_text(text)
        new.rename(self.orders)

    def filters(self) -> list[int]:
        """The pids of the filter, of its shell too."""
        return [pid for pid in self.server.pids() if str(self.program) in arguments(pid)]

    def resident(self) -> float:
        """Megabytes that the server's own processes have resident."""
        filters = self.filters()
        return sum(_resident(pid) for pid in self.server.pids() if pid not in filters)

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait for it."""
        assert wait_for(condition, seconds, every=0.05), self.server.log()[-3000:]

    def says(self, text: str, since: int = 0) -> bool:
        """Is it in the log?"""
        return text in self.server.log()[since:]


@contextmanager
def site(folder: Path, wiring: Wiring, **options: Any) -> Iterator[Site]:
    """One that runs."""
    made = Site(folder, wiring, **options)
    with made.server:
        yield made


def arguments(pid: int) -> str:
    """The command line of a process, "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)
    except OSError:
        return 0.0


@dataclass
class Load:
    """The clients of both listeners."""

    filtered: Visits = field(default_factory=Visits)
    plain: Visits = field(default_factory=Visits)

    async def gets(self, count: int, visits: Visits, seconds: float = 60.0) -> bool:
        """Wait until so many more messages are accepted at a listener."""
        return await _more(lambda: len(visits.acknowledged), count, seconds)

    async def is_told(self, code: str, seconds: float = 60.0) -> bool:
        """Wait until clients whose mail is filtered are told a code once more."""
        return await _more(lambda: self.filtered.codes[code], 1, seconds)


async def _more(count: Callable[[], int], more: int, seconds: float) -> bool:
    wanted, end = count() + more, time.monotonic() + seconds
    while count() < wanted:
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


@asynccontextmanager
async def load(it: Site, *, hurt: bool = False, size: int = 4096) -> AsyncIterator[Load]:
    """Clients at both listeners until the end of the block."""
    made, stop = Load(Visits(hurt), Visits(hurt)), asyncio.Event()
    ways = [(made.filtered, it.port), (made.plain, it.plain)] * CLIENTS
    async with asyncio.TaskGroup() as group:
        for number, (visits, port) in enumerate(ways):
            group.create_task(Client(visits, number, port, size).run(stop))
        try:
            yield made
        finally:
            stop.set()


def check(it: Site, made: Load, *, slowest: float = TIMEOUT + 12.0) -> None:
    """Every answer was a defined one and in time; nothing that was acknowledged is lost, nothing is there twice."""
    log = it.server.log()[-3000:]
    assert not made.filtered.faults + made.plain.faults, (made.filtered.faults[:3], made.plain.faults[:3], log)
    assert made.filtered.slowest < slowest, (made.filtered.slowest, log)
    acknowledged = made.filtered.acknowledged | made.plain.acknowledged
    it.until(lambda: acknowledged <= read_maildir(it.mail / "Maildir").arrived.keys(), 60)
    arrived = read_maildir(it.mail / "Maildir").arrived
    assert all(count == 1 for count in arrived.values()), [item for item in arrived.items() if item[1] > 1]
    refused = arrived.keys() - acknowledged - made.filtered.unsure - made.plain.unsure
    assert not refused, f"delivered although it was refused: {sorted(refused)[:5]}"


def unnoticed(made: Load) -> None:
    """The clients of the other listener were served as ever."""
    assert not made.plain.codes.keys() & {"451", "421"}, made.plain.codes
    assert made.plain.slowest < 5.0, made.plain.slowest
    assert made.plain.median < 0.5, made.plain.median
