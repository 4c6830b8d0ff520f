"""A message on its way through the data-line filters of a chain: each filter's output is the next one's input.

What goes in may be cut anywhere; what goes to a processor are whole lines. What comes out waits to be taken. Both are
bounded: `room` says when more may be fed, and a processor is not read on while nobody takes what it made.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from pillarbox.filters.outbox import Outbox, Unanswered
from pillarbox.roles.filters import WHOLE_MESSAGE

READY = 128 * 1024  # bytes that came out, at which somebody is told (`on_output`)
FULL = 1024 * 1024  # bytes that came out, above which no more are read from the processor


class Stage(msgspec.Struct, frozen=True):
    """A filter that sees the message: its name, its processor, and the token of its lines."""

    name: str
    box: Outbox
    token: int


class MessageStream:
    """One message. `prefix`: whole lines that stand before what the client sends; `most`: bytes that may come out.

    `failed` tells why the message cannot be taken, as soon as that is so, and `broken` by whose fault: a filter's name.
    """

    def __init__(self, *, session: int, stages: Sequence[Stage], prefix: bytes, most: int) -> None:
        self.failed = ""
        self.broken = ""
        self.on_output: Callable[[], None] | None = None
        self.session = session
        self._most = most
        self._made = 0
        self._carry = prefix  # and then what there is of a line that is not complete
        self._out: list[bytes] = []
        self._size = 0  # bytes in it
        self._ended = False  # the client's message is complete
        self._complete = False  # and so is what was made of it
        self._due = 0.0  # when that has to be so; 0: not known yet
        self._moved = asyncio.Event()  # something came out of a filter, was taken, or it failed
        self._flows = [_Flow(self, index, stage) for index, stage in enumerate(stages)]
        for flow in self._flows:
            try:
                flow.stage.box.open_flow(session, flow.stage.token, flow)
            except Unanswered as error:
                self.fail(flow.stage.name, str(error))
                break

    # --- in ---------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Some of the client's message."""
        if self.failed:
            return
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._carry += data
            return
        whole = self._carry + data[:cut] if self._carry else data[:cut]
        self._carry = data[cut:]
        self._flows[0].send(whole, last=False)

    def end(self, data: bytes = b"") -> None:
        """The last of it."""
        if self._ended or self.failed:
            return
        self._ended = True
        whole = self._carry + data
        if whole and not whole.endswith(b"\n"):
            whole += b"\r\n"  # of a message that is refused, the rest is not here
        self._flows[0].send(whole, last=True)

    @property
    def full(self) -> bool:
        """Does the rest have to wait?"""
        return not self.failed and any(flow.stage.box.full for flow in self._flows)

    async def room(self) -> None:
        """Wait until more may be fed; a filter that does not read in time fails the message."""
        for stage in [flow.stage for flow in self._flows]:
            try:
                async with asyncio.timeout(stage.box.patience):
                    await stage.box.room()
            except TimeoutError:
                self.fail(stage.name, f"it did not read for {stage.box.processor.timeout:g} s")
                return

    # --- out --------------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What came out so far."""
        data = b"".join(self._out)
        self._clear()
        return data

    async def more(self) -> bytes:
        """What comes out next; b"" where that was all, or it failed.

        Each filter has its time for a sign of life, and all of them `WHOLE_MESSAGE` for the rest, or that time.
        """
        now, patience = asyncio.get_running_loop().time, max(flow.stage.box.patience for flow in self._flows)
        whole = max(WHOLE_MESSAGE, patience)
        self._due = self._due or now() + whole
        while not (self._complete or self.failed) and (not self._out or now() >= self._due):
            self._moved.clear()
            try:
                async with asyncio.timeout_at(min(now() + patience, self._due)):
                    await self._moved.wait()
            except TimeoutError:
                silent = next(flow.stage for flow in self._flows if not flow.done)
                late = now() >= self._due
                why = f"no end within {whole:g} s" if late else f"no answer within {silent.box.processor.timeout:g} s"
                self.fail(silent.name, why)
        return self.take()

    def close(self) -> None:
        """The session is over: filters hear that, and no end of a message that had none."""
        self.failed = self.failed or "the session is over"
        self._clear()

    def abandon(self) -> None:
        """The message is not wanted, and the session goes on."""
        if not self._complete:
            self.fail("", "the message is not wanted any more")

    def fail(self, name: str, reason: str) -> None:
        """The message cannot be taken: a filter's fault. Those that have begun to read it get an end of it."""
        if self.failed:
            return
        self.failed, self.broken = reason, name
        self._clear()
        for flow in self._flows:
            flow.give_up()

    def uncertain(self) -> list[int]:
        """The tokens with which something of this message may still come."""
        return [flow.stage.token for flow in self._flows if not flow.clean]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._out.clear()
        self._size = 0
        self._moved.set()

    def passed(self, index: int, data: bytes, *, last: bool) -> None:
        """A filter said this: it is for the next one, or for us."""
        self._moved.set()
        if self.failed:
            return
        if index + 1 < len(self._flows):
            # Answers must not wait for processors to read, who may wait for answers: who has too much of them loses.
            following = self._flows[index + 1]
            if following.stage.box.overflows:
                self.fail(following.stage.name, "it does not read what is sent to it")
            else:
                following.send(data, last=last)
            return
        self._made += len(data)
        if self._made > self._most:
            self.fail(self._flows[index].stage.name, f"it makes more than {self._most} bytes of a message")
            return
        if data:
            self._out.append(data)
            self._size += len(data)
        self._complete = last
        if self._size > READY and self.on_output is not None:
            self.on_output()

    async def drained(self) -> None:
        """Return when what came out was taken."""
        while self._size > FULL and not self.failed:
            self._moved.clear()
            await self._moved.wait()


class _Flow:
    """One filter's part; a `Flow` of its processor. `done`: the filter has said its last.

    `clean`: nothing of the message can come any more, because all of it had been told by then.
    """

    def __init__(self, stream: MessageStream, index: int, stage: Stage) -> None:
        self.stage = stage
        self.done = False
        self._stream = stream
        self._index = index
        self._life = stage.box.processor.life
        self._begun = self._ended = False
        self.clean = False

    def send(self, data: bytes, *, last: bool) -> None:
        """Give this to the filter, which may have said its last already."""
        if self._ended or self.stage.box.processor.life != self._life:
            return
        self._begun, self._ended = True, last
        self.stage.box.lines(self._stream.session, self.stage.token, data, last=last)

    def give_up(self) -> None:
        """Nobody wants what it makes of the message; the next one of the session waits until it has done this one."""
        if self._begun:
            self.send(b"", last=True)
        else:
            self.stage.box.forget_flow(self._stream.session, self.stage.token)

    def put(self, data: bytes, *, last: bool) -> None:
        """See `Flow`."""
        if not self.done:
            self.done, self.clean = last, last and self._ended
            self._stream.passed(self._index, data, last=last)

    def fail(self, reason: str) -> None:
        """See `Flow`."""
        self._stream.fail(self.stage.name, reason)

    async def drained(self) -> None:
        """See `Flow`."""
        await self._stream.drained()
