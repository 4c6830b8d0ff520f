"""smtpd-filters(7): the lines exchanged with a processor. No I/O, no clock: what is told becomes bytes, bytes answers.

The processor is told about us (`handshake`), says what it wants to hear (`phases`, `events`), is told that (`write`),
and answers in any order (`receive`). What does not fit raises `Violation`, and who talks to it (`filters/processor`)
ends it. Whether an answer fits to what was asked is known there (`filters/asked`).

Versions, as OpenSMTPD 6.6 to 7.8 had them, each with all that came before it:

    0.5  an answer names session and token in the order of the question; before, the token came first
    0.6  tx-mail and tx-rcpt: the result comes before the address
    0.7  link-auth: the result comes before the user's name
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto

from pillarbox import REFERENCE_VERSION
from pillarbox.conf.model import PROTOCOLS
from pillarbox.errors import PillarboxError
from pillarbox.roles.filters import (
    EVENTS,
    MDA,
    MDA_EVENTS,
    SMTP_IN,
    SMTP_OUT,
    Answer,
    Decision,
    Lines,
    Output,
    Phase,
    Question,
    Report,
    Result,
    Said,
    Told,
)

SESSION_TIMEOUT = 300  # seconds: what `config|smtp-session-timeout` says
MAX_LINE = 1 << 20  # bytes that a processor may write without ending a line
MAX_REGISTRATIONS = 1000  # lines; there are a tenth as many things to register
MAX_REFUSAL = 4095  # bytes of a refusal that count: the reference says no more of any reply
MAX_PARAM = 16_384  # bytes of what else a decision says: the reference's own messages hold no more

_REPORTED: dict[str, tuple[str, ...]] = {SMTP_IN: EVENTS, SMTP_OUT: EVENTS, MDA: MDA_EVENTS}
_WITHOUT_FIELDS = frozenset(("link-disconnect", "timeout"))
_ALONE = frozenset((Decision.PROCEED, Decision.JUNK))  # decisions without a parameter
_REFUSALS = frozenset((Decision.REJECT, Decision.DISCONNECT))
_ONE_LINE = str.maketrans({"\n": " ", "\r": " ", "\0": " "})
_ID = rb"([0-9A-Fa-f]{1,16})"
_RESULT = re.compile(rb"filter-result\|" + _ID + rb"\|" + _ID + rb"\|([a-z]*)(?:\|(.*))?", re.DOTALL)
# Lines of one message next to each other, whatever is in them; possessive, so that nothing is kept of each.
_RUN = re.compile(rb"(filter-dataline\|" + _ID + rb"\|" + _ID + rb"\|)(.*+\n(?:\1.*+\n)*+)")
_SAID = re.compile(rb"report\|([0-9]{1,12}\.[0-9]{6})\|smtp-in\|" + _ID + rb"\|(.*)", re.DOTALL)
_SHOWN = 100  # bytes of a line that the log gets


class Violation(PillarboxError):
    """The processor does not speak the protocol; the text says what it did."""


class Heard(Enum):
    """What a processor says about itself."""

    REGISTERED = auto()  # it is ready; or, later, has registered more


def every_event(subsystem: str) -> frozenset[str]:
    """All that may be registered of a subsystem."""
    return frozenset(f"{subsystem} {event}" for event in _REPORTED[subsystem])


class FilterProtocol:
    """One conversation. `phases` and `events` ("smtp-in tx-mail"): what the processor has registered so far, or gets.

    `subsystems`: where the configuration uses it. `unasked`: events that it gets if it registers none at all;
    `ready`: it need not register, since it is there for these alone.
    """

    def __init__(
        self,
        *,
        subsystems: Sequence[str],
        admd: str,
        version: str = PROTOCOLS[-1],
        unasked: frozenset[str] = frozenset(),
        ready: bool = False,
    ) -> None:
        self._subsystems = subsystems
        self._admd = admd
        self._part = bytearray()  # of a line that has not ended
        self._chosen: frozenset[str] = frozenset()
        self.events = unasked
        self.phases: frozenset[str] = frozenset()
        self.ready = ready
        self._introduced = False  # it has said `register|ready`
        self._registrations = 0  # lines
        self._speak(version)

    def _speak(self, version: str) -> None:
        self._version = version
        self._token_first = version < "0.5"
        self._reorder: Mapping[str, Callable[[str], str]] = {
            **({"tx-mail": _address_first, "tx-rcpt": _address_first} if version < "0.6" else {}),
            **({"link-auth": _name_first} if version < "0.7" else {}),
        }

    # -- what it is told

    def handshake(self) -> bytes:
        """What it is told first."""
        values = [
            ("smtpd-version", REFERENCE_VERSION),
            ("protocol", self._version),
            ("smtp-session-timeout", str(SESSION_TIMEOUT)),
            *(("subsystem", subsystem) for subsystem in self._subsystems),
            ("admd", _one_line(self._admd)),
        ]
        return "".join(f"config|{key}|{value}\n" for key, value in values).encode() + b"config|ready\n"

    def write(self, told: Told) -> bytes:
        """The lines that tell it this."""
        if isinstance(told, Lines):
            return self._lines(told)
        return self._report(told) if isinstance(told, Report) else self._question(told)

    def _report(self, report: Report) -> bytes:
        event, text = report.event, _one_line(report.text)
        reorder = self._reorder.get(event)
        if reorder is not None:
            text = reorder(text)
        fields = "" if event in _WITHOUT_FIELDS else f"|{text}"
        head = f"report|{self._version}|{report.time:.6f}|{report.subsystem}|{event}|{report.session:016x}"
        return f"{head}{fields}\n".encode()

    def _question(self, question: Question) -> bytes:
        head = self._head(question.phase, question.session, question.token, question.time)
        return f"{head}{_one_line(question.param)}\n".encode()

    def _head(self, phase: str, session: int, token: int, time: float) -> str:
        return f"filter|{self._version}|{time:.6f}|{SMTP_IN}|{phase}|{session:016x}|{token:016x}|"

    def _lines(self, lines: Lines) -> bytes:
        head = self._head(Phase.DATA_LINE, lines.session, lines.token, lines.time).encode()
        # COMPAT: a CR within a line is not passed on. It goes first: what it leaves may begin with a dot.
        data = lines.data.replace(b"\r", b"").replace(b"\n.", b"\n..")
        if data.startswith(b"."):
            data = b"." + data
        if data:
            data = head + data.removesuffix(b"\n").replace(b"\n", b"\n" + head) + b"\n"
        return data + head + b".\n" if lines.last else data

    # -- what it says

    def receive(self, data: bytes) -> Iterator[Answer | Heard]:
        """What the processor wrote. Raises Violation; what came before it was yielded."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._part += data
            self._check_part()
            return
        block = bytes(self._part) + data[:end] if self._part else data[:end]
        self._part = bytearray(data[end:])
        yield from self._block(block)
        self._check_part()

    def _check_part(self) -> None:
        if len(self._part) > MAX_LINE:
            raise Violation(f"wrote more than {MAX_LINE} bytes without an end of line")

    def _block(self, block: bytes) -> Iterator[Answer | Heard]:
        """Whole lines. Of a run of message lines none is looked at on its own."""
        at = 0
        while at < len(block):
            if self.ready and (run := _RUN.match(block, at)):
                yield self._output(run)
                at = run.end()
                continue
            end = block.index(b"\n", at)
            answer = self._line(block[at:end].removesuffix(b"\r"))
            if answer is not None:
                yield answer
            at = end + 1

    def _output(self, run: re.Match[bytes]) -> Output:
        session, token = self._ids(run[2], run[3])
        data, last = _message(run[4].replace(b"\n" + run[1], b"\n"))
        return Output(session, token, data, last)

    def _ids(self, one: bytes, other: bytes) -> tuple[int, int]:
        first, second = int(one, 16), int(other, 16)
        return (second, first) if self._token_first else (first, second)

    def _line(self, line: bytes) -> Answer | Heard | None:
        if line.startswith(b"register|"):
            return self._register(line)
        if not self.ready:
            raise Violation(f"said something before register|ready: {_shown(line)}")
        if match := _RESULT.fullmatch(line):
            return self._result(match, line)
        if match := _SAID.fullmatch(line):
            return Said(int(match[2], 16), float(match[1]), match[3].decode("utf-8", "replace"))
        raise Violation(f"wrote a line that is none: {_shown(line)}")

    def _result(self, match: re.Match[bytes], line: bytes) -> Result:
        session, token = self._ids(match[1], match[2])
        try:
            decision = Decision(match[3].decode("ascii"))
        except ValueError:
            raise Violation(f"decided what is no decision: {_shown(line)}") from None
        if (match[4] is None) is not (decision in _ALONE):
            raise Violation(f"decided without what belongs to it, or with what does not: {_shown(line)}")
        param = match[4] or b""
        if decision in _REFUSALS:
            param = param[:MAX_REFUSAL]
        elif len(param) > MAX_PARAM:
            raise Violation(f"decided with more than {MAX_PARAM} bytes: {_shown(line)}")
        return Result(session, token, decision, param.decode("utf-8", "replace"))

    def _register(self, line: bytes) -> Heard | None:
        self._registrations += 1
        if self._registrations > MAX_REGISTRATIONS:
            raise Violation(f"registers more than {MAX_REGISTRATIONS} times")
        before = self.events, self.phases
        match line.decode("latin-1").split("|")[1:]:
            case ["ready"]:
                again, self.ready, self._introduced = self._introduced, True, True
                return None if again else Heard.REGISTERED
            case ["report", subsystem, event] if subsystem in _REPORTED:
                self.events = self._chosen = self._chosen | _chosen(event, _REPORTED[subsystem], subsystem, line)
            case ["filter", "smtp-in", phase]:
                self.phases |= _chosen(phase, tuple(Phase), "", line)
            case ["protocol", version] if version in PROTOCOLS and not self._introduced:
                self._speak(version)  # ours
            case _:
                raise Violation(f"registers what there is not: {_shown(line)}")
        return Heard.REGISTERED if self.ready and before != (self.events, self.phases) else None


def _chosen(name: str, known: Sequence[str], subsystem: str, line: bytes) -> set[str]:
    if name != "*" and name not in known:
        raise Violation(f"registers what there is not: {_shown(line)}")
    chosen = set(known) if name == "*" else {name}
    return {f"{subsystem} {event}" for event in chosen} if subsystem else {str(phase) for phase in chosen}


def _message(lines: bytes) -> tuple[bytes, bool]:
    """Message lines as we have them, and whether they end the message; what a processor writes behind that is nothing.

    A dot at the beginning of a line goes, whether or not it was doubled: so does the reference.
    """
    # As the reference at a line's end; within one, a CR that is sent on is somebody's end of line (smuggling).
    lines = lines.replace(b"\r", b"")
    end = 0 if lines.startswith(b".\n") else lines.find(b"\n.\n") + 1
    last = end > 0 or lines.startswith(b".\n")
    if last:
        lines = lines[:end]
    lines = lines.removeprefix(b".").replace(b"\n.", b"\n")
    return lines.replace(b"\n", b"\r\n"), last


def _one_line(text: str) -> str:
    return text.translate(_ONE_LINE) if "\n" in text or "\r" in text or "\0" in text else text


def _address_first(text: str) -> str:
    """tx-mail and tx-rcpt before 0.6."""
    msgid, _, rest = text.partition("|")
    result, _, address = rest.partition("|")
    return f"{msgid}|{address}|{result}"


def _name_first(text: str) -> str:
    """link-auth before 0.7."""
    result, _, name = text.partition("|")
    return f"{name}|{result}"


def _shown(line: bytes) -> str:
    """As much of a line as the log may have."""
    text = line[:_SHOWN].decode("utf-8", "replace")
    return f'"{text}"' + (" …" if len(line) > _SHOWN else "")
