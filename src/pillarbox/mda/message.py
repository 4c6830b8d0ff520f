"""A message as a delivery child sees it: trace lines in front, LF line ends, its body perhaps still with the queue."""

import re
from collections.abc import Callable, Iterable, Iterator

from pillarbox.mail.envelope import Result
from pillarbox.mail.headers import header_end, iterate_fields, unfold
from pillarbox.mda.wire import CHUNK, Job

_HEADER_MAX = 256 * 1024  # bytes in which the header is looked at; what is behind it is body to us
EX_TEMPFAIL = 75


class Failure(Exception):
    """A delivery that ended without success: what the agent reports. `text` is what `show queue` prints."""

    def __init__(self, result: Result, text: str = "", sysexit: int = 0) -> None:
        super().__init__(text)
        self.result, self.text, self.sysexit = result, text, sysexit


def quoted(program: str, text: str) -> str:
    """A reason in the form in which the last line of a program's output is shown."""
    return f'"{program}: {text}"'


def failure(program: str, text: str, sysexit: int = EX_TEMPFAIL) -> Failure:
    """What a program of the reference would have said before it ended with `sysexit` (71 and 75 are temporary)."""
    result = Result.TEMPFAIL if sysexit in (71, EX_TEMPFAIL) else Result.PERMFAIL
    return Failure(result, quoted(program, text), sysexit)


class Message:
    """One job's message. `fetch(offset)` gives the next piece of a body that did not come with the job."""

    def __init__(self, job: Job, fetch: Callable[[int], bytes]) -> None:
        self.job = job
        self._fetch = fetch
        self._start = job.body
        if not job.body:
            self._load_header()
        end = header_end(self._start)
        self.header = self._start if end < 0 else self._start[:end]

    def trace(self) -> bytes:
        """The lines in front: Return-Path (RFC 5321 §4.4; none for the null sender) and Delivered-To."""
        job = self.job
        lines = f"Return-Path: <{job.sender}>\n" if job.sender else ""
        lines += f"Delivered-To: {job.rcpt or job.dest}\n"
        return lines.encode("utf-8", "surrogateescape")

    def check_loop(self) -> None:
        """Raise Failure(LOOP) where the message was delivered to this address before."""
        dest = self.job.dest.encode("utf-8", "surrogateescape").lower()
        for name, field in iterate_fields(self.header):
            if name == b"delivered-to" and unfold(field).lower() == dest:
                raise Failure(Result.LOOP, "Loop detected")

    def is_junk(self) -> bool:
        """Has a filter, or a server before us, marked it as spam?"""
        wanted = (b"x-spam: yes", b"x-spam-flag: yes")
        return any(field.rstrip(b"\r\n").lower() in wanted for _, field in iterate_fields(self.header))

    def chunks(self) -> Iterator[bytes]:
        """The message in local form, trace lines first; ends in a newline. Failure where the body is cut short."""
        yield self.trace()
        last = b"\n"
        for piece in _with_newlines(self._pieces()):
            last = piece[-1:]
            yield piece
        if last != b"\n":
            yield b"\n"

    def _pieces(self) -> Iterator[bytes]:
        yield self._start
        at = len(self._start)
        while at < self.job.size:
            piece = self._next(at)
            at += len(piece)
            yield piece

    def _load_header(self) -> None:
        while header_end(self._start) < 0 and len(self._start) < min(self.job.size, _HEADER_MAX):
            self._start += self._next(len(self._start))

    def _next(self, at: int) -> bytes:
        piece = self._fetch(at)
        if not piece or len(piece) > min(CHUNK, self.job.size - at):
            raise Failure(Result.TEMPFAIL, "Error reading body")
        return piece


def _with_newlines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """CRLF becomes LF, also where a piece ends between the two."""
    held = b""
    for piece in pieces:
        data = held + piece
        held = b"\r" if data.endswith(b"\r") else b""
        data = data[: len(data) - len(held)].replace(b"\r\n", b"\n")
        if data:
            yield data
    if held:
        yield held


_FROM = re.compile(rb"(?<=\n)From ")
_FROM_AFTER_EMPTY = re.compile(rb"(?<=\n\n)From ")


def escape_from(chunks: Iterable[bytes], *, after_empty_only: bool) -> Iterator[bytes]:
    """Put `>` before lines that begin with "From ", which would begin a message in an mbox file.

    `after_empty_only`: as the system mailboxes have it; otherwise each such line.
    """
    pattern = _FROM_AFTER_EMPTY if after_empty_only else _FROM
    before, tail = b"\n\n", b""
    for chunk in _and_end(chunks):
        data = before + tail + chunk
        # The last five bytes wait: a "From " may be cut by the end of the chunk.
        cut = len(data) if not chunk else max(2, len(data) - 5)
        out, at = b"", 2
        for found in pattern.finditer(data):
            if 2 <= found.start() < cut:  # others were escaped before, or will be
                out += data[at : found.start()] + b">"
                at = found.start()
        out += data[at:cut]
        before, tail = data[cut - 2 : cut], data[cut:]
        if out:
            yield out


def _and_end(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks that are not empty, then an empty one."""
    for chunk in chunks:
        if chunk:
            yield chunk
    yield b""
