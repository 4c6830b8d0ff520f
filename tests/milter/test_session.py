"""A session beside a milter that answers with any bytes: every question has an answer in time, and no line is lost."""

import asyncio
import tempfile
import time
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.milter.client import Deadlines, Milter, parse_address
from pillarbox.milter.dialogue import Outcome, Verdict
from pillarbox.milter.facts import Facts
from pillarbox.milter.macros import Macros
from pillarbox.milter.session import Policy, Session, Trouble
from tests.milter.scripted import CONTINUE, PROGRESS, SKIP, body, numbered, options, packet

LINES = [b"Received: by x with ESMTP id 0abc", b"Subject: x", b"", b"one", b"two"]
ANSWERS = st.lists(
    st.one_of(
        st.just(CONTINUE),
        st.sampled_from([PROGRESS, SKIP, packet(b"a"), packet(b"r"), packet(b"d"), packet(b"4"), packet(b"q", b"why")]),
        st.sampled_from(
            [packet(b"a")[:-2], packet(b"h", b"X", b"y"), numbered(b"m", 1, b"Subject", b""), body(b"new")]
        ),
        st.binary(max_size=30),
        st.binary(max_size=30).map(lambda data: packet(data[:1] or b"y", data[1:])),
    ),
    max_size=3,
).map(b"".join)


class Answering:
    """A milter that gives each thing it is told one of these answers; then it hangs, or hangs up."""

    def __init__(self, answers: list[bytes], *, hangs: bool) -> None:
        self._answers = answers
        self._hangs = hangs

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        answers = iter(self._answers)
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4))
                told = await reader.readexactly(length)
                if told[:1] in b"DAQ":
                    continue
                answer = next(answers, None)
                if answer is None and self._hangs:
                    continue
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


async def all_of_it(address: str) -> tuple[list[Verdict], list[list[bytes]]]:
    """Two messages in one session."""
    facts = Facts("mail.example.org")
    facts.connected("client.example.net", "pass", "192.0.2.1:4711", "192.0.2.25:25")
    session = Session(
        milter=Milter(address=parse_address(address), deadlines=Deadlines(0.1, 0.1, 0.1), most=1, limit=1000),
        names=Macros({}),
        facts=facts,
        policy=Policy(answer=0.3),
        trouble=Trouble(),
        now=lambda: datetime.now(UTC),
    )
    verdicts = [await session.connect()]
    facts.identified("EHLO", "client")
    verdicts.append(await session.helo())
    messages = []
    for _ in range(2):
        verdicts += [await session.mail("a@b"), await session.rcpt("c@d"), await session.data()]
        if facts.transaction:
            facts.transaction.msgid = "0abc"
        given = [line for each in LINES for line in session.line(each)]
        messages.append([*given, *await session.end()])
        verdicts.append(session.commit())
        session.reset()
    session.disconnect()
    return verdicts, messages


@settings(max_examples=40, deadline=None)
@given(st.lists(ANSWERS, max_size=12), st.booleans(), st.booleans())
def test_any_answers_of_a_milter_leave_every_question_answered(
    answers: list[bytes], negotiates: bool, hangs: bool
) -> None:
    async def inside(path: str) -> tuple[list[Verdict], list[list[bytes]]]:
        milter = Answering([options(), *answers] if negotiates else answers, hangs=hangs)
        async with await asyncio.start_unix_server(milter.serve, path):
            async with asyncio.timeout(20):
                return await all_of_it(f"unix:{path}")

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        verdicts, messages = asyncio.run(inside(f"{folder}/m.sock"))
        assert time.monotonic() - began < 10
    for verdict in verdicts:
        assert verdict.outcome in (Outcome.CONTINUE, Outcome.ACCEPT) or verdict.reply[0] in "45"
    for lines, commit in zip(messages, (verdicts[5], verdicts[9]), strict=True):
        refused = commit.outcome in (Outcome.REFUSE, Outcome.DISCONNECT)
        assert lines == LINES if refused else LINES[0] in lines
