"""What is fuzzed: functions of bytes that raise where a promise of the protocol core is broken.

The first promise of all is that it does not matter how the input was cut. No I/O, so that a fuzzer makes thousands a
second; `tests/fuzz/__main__.py` gives them to atheris, `test_fuzz.py` also to recorded dialogues without it.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from pillarbox.conf.model import PROTOCOLS
from pillarbox.filters.protocol import FilterProtocol, Violation
from pillarbox.filters.reports import Reports
from pillarbox.mail import headers
from pillarbox.mail.dsn import ReportedRecipient, StatusReport, report_head, report_tail
from pillarbox.mta.events import LinkEvents, Passage
from pillarbox.roles.filters import EVENTS, SMTP_OUT, Output, Report
from pillarbox.server.headers import Loop, Malformed, process
from pillarbox.smtp import commands
from pillarbox.smtp.client_events import Answered, BodyWanted, Finished, Ready, Recipient, TlsWanted, Transaction
from pillarbox.smtp.client_protocol import Client
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.data import Terms
from pillarbox.smtp.server_protocol import Body, EndOfBody, EndOfChunk, Fault, Line, ServerProtocol, Skipped

_TERMS = Terms(3000)
_MANNERS: tuple[dict[str, Any], ...] = (  # in which a client of ours meets a server
    {},
    {"lmtp": True},
    {"tls": "opportunistic", "failures_max": 3},
    {"tls": "required", "credentials": ("user", "password"), "require_tls": True},
)


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """The same bytes whole, one by one, and in pieces of odd length."""
    return ([data[i : i + size] for i in range(0, len(data), size)] for size in (len(data) or 1, 1, 7))


def same_however_it_is_cut(play: Callable[[list[bytes]], object], data: bytes) -> None:
    """Raises AssertionError where pieces make a difference."""
    whole, *others = (play(chunks) for chunks in cuts(data))
    for other in others:
        assert other == whole, f"{data!r}: {other!r} instead of {whole!r}"


def server_protocol(data: bytes) -> None:
    """The server's side, with DATA and BDAT wherever the input has such lines."""
    same_however_it_is_cut(_serve, data)


def _serve(chunks: list[bytes]) -> list[object]:
    core, seen, body = ServerProtocol(), list[object](), b""
    for chunk in chunks:
        core.receive(chunk)
        while (event := core.next_event()) is not None:
            match event:
                case Line(text):
                    assert b"\n" not in text
                    seen.append(text)
                    _open_body(core, text)
                case Body(piece, _):
                    body += piece
                case Skipped():
                    pass
                case EndOfChunk(piece, _, problem):
                    body += piece
                    seen.append(problem)
                case EndOfBody(piece, _, problem, size):
                    seen.append((problem, size, b"" if problem else _whole(body + piece)))
                    body = b""
                case Fault():
                    seen.append(event)
    return seen


def _whole(body: bytes) -> bytes:
    """A message that was taken: its lines end in CRLF, and nothing else ends one."""
    without = body.replace(b"\r\n", b"")
    assert b"\r" not in without and b"\n" not in without, body
    assert not body or body.endswith(b"\r\n"), body
    return body


def _open_body(core: ServerProtocol, text: bytes) -> None:
    verb, args = commands.parse_line(text.decode("utf-8", "surrogateescape"))
    if verb is Verb.DATA:
        core.begin_body(_TERMS)
    elif verb is Verb.BDAT:
        try:
            chunk = commands.parse_chunk(args or "")
        except commands.BadSyntax:
            core.skip_chunk(3)
        else:
            core.begin_chunk(chunk.size, last=chunk.last, terms=_TERMS)


def command_lines(data: bytes) -> None:
    """Command lines and their parameters: understood, or refused with an error that has a reply."""
    for line in data.decode("utf-8", "surrogateescape").split("\r\n"):
        verb, args = commands.parse_line(line)
        if verb is None or args is None:
            continue
        try:
            path, parameters = commands.parse_path(args, default_domain="d.example", null=True, utf8=True)
            assert path.count("@") or not path, path
            commands.parse_mail_parameters(parameters, dsn=True, tls=True)
            commands.parse_rcpt_parameters(parameters, dsn=True, utf8=True)
        except ValueError as refused:
            assert type(refused).__module__ == commands.__name__, repr(refused)


def client_protocol(data: bytes) -> None:
    """The client's side: whatever a server says, it does not raise, and each recipient has one result. What is told
    about it (`smtp-out`) holds together.

    The cut matters here, and must: what comes behind the answer to STARTTLS is an injection.
    """
    for manners in _MANNERS:
        for chunks in cuts(data):
            told: list[Report] = []
            reports = Reports(
                subsystem=SMTP_OUT, session=1, listeners=dict.fromkeys(EVENTS, (told.append,)), now=lambda: 0.0
            )
            events = LinkEvents(reports, lmtp=bool(manners.get("lmtp")), username="user")
            events.connected("", ("127.0.0.1", 1000), ("::1", 25))
            _converse(Client(helo="h.example", observer=events, **manners), events, chunks)
            events.closed()
            _holds_together(told)


def _holds_together(told: list[Report]) -> None:
    """Transactions begin and end one after the other, and nothing is in between that does not belong to one."""
    running = ""
    for report in told:
        assert "\n" not in report.text and "password" not in report.text, report
        msgid = report.text.partition("|")[0]
        if report.event == "tx-begin":
            assert not running, told
            running = msgid
        elif report.event.startswith("tx-") and not (report.event == "tx-mail" and not running):
            assert msgid == running, told
            running = "" if report.event == "tx-reset" else running
    assert (told[0].event, told[-1].event, running) == ("link-connect", "link-disconnect", ""), told


def _converse(client: Client, events: LinkEvents, chunks: list[bytes]) -> None:
    begun, taken = 0, set[tuple[int, int]]()
    for chunk in chunks:
        if client.failed or client.closed:
            break
        todo = client.feed(chunk)
        while todo:
            event = todo.pop(0)
            if isinstance(event, Answered):
                assert (begun, event.index) not in taken, "a recipient has two results"
                taken.add((begun, event.index))
            elif client.failed or client.spent:
                continue
            elif isinstance(event, Ready | Finished) and begun < 5:
                begun += 1
                transaction = _transaction(begun)
                recipients = tuple([(number, r.address) for number, r in enumerate(transaction.recipients)])
                events.begin(Passage(begun, transaction.sender, transaction.size, recipients))
                todo += client.begin(transaction)
            elif isinstance(event, BodyWanted):
                client.body_chunk(b"Subject: x\r\n\r\n.\r\n")
                todo += client.body_end()
            elif isinstance(event, TlsWanted):
                todo += client.tls_started()
        written = client.output()
        assert written.endswith(b"\r\n") or not written, written
    for event in client.eof():
        assert not isinstance(event, Answered) or (begun, event.index) not in taken, "two results at the end"


def _transaction(number: int) -> Transaction:
    recipients = tuple(Recipient(f"r{n}@x.example", notify="NEVER" * (n % 2)) for n in range(number))
    body = b"Subject: x\r\n\r\n..\r\n" if number % 2 else None
    return Transaction(sender="s@x.example", recipients=recipients, size=20, body=body, eight_bit=number == 3)


def header_block(data: bytes) -> None:
    """The header of a message on its way in, and what reads it again."""
    end = headers.header_end(data)
    assert -1 <= end <= len(data)
    for _, field in headers.iterate_fields(data[: max(0, end)]):
        headers.unfold(field)
    try:
        header = process(data, domain=b"d.example", masquerade=b"m@d.example")
    except (Malformed, Loop):
        return
    assert header.block.replace(b"\r\n", b"").count(b"\n") <= data.replace(b"\r\n", b"").count(b"\n"), header.block


def status_report(data: bytes) -> None:
    """A DSN about strangers' words: they stay in the fields that they are for."""
    texts = ["".join(c for c in line if c.isprintable()) for line in data.decode("utf-8", "replace").split("\n")]
    sender, rcpt, reason, orcpt, envid = (texts + [""] * 5)[:5]
    try:
        asked = commands.parse_rcpt_parameters(f"ORCPT={orcpt}", dsn=True, utf8=True)
        asked_too = commands.parse_mail_parameters(f"ENVID={envid}", dsn=True)
    except ValueError:
        return
    failed = ReportedRecipient(f"{rcpt}@x.example", reason, "5.0.0", asked.orcpt)
    report = StatusReport(
        action="failed", to=f"{sender}@x.example", smtpname="mx.example", hostname="mx.example", msgid=1, date=0.0,
        boundary=1, unique=1, recipients=[failed], envelope_id=asked_too.envid,
    )  # fmt: skip
    head = report_head(report)
    for part in (head, report_tail(report)):
        assert not re.search(rb"[\0-\x08\x0a-\x1f]", part.replace(b"\r\n", b"")), part
    assert head.count(b"\r\nFinal-Recipient:") == head.count(b"\r\nAction: failed\r\n") == 1, head


def filter_protocol(data: bytes) -> None:
    """What a filter writes: answers, or its own violation."""
    for version in PROTOCOLS:
        for ready in (False, True):

            def play(chunks: list[bytes], version: str = version, ready: bool = ready) -> list[object]:
                return _filter(FilterProtocol(subsystems=["smtp-in"], admd="a", version=version, ready=ready), chunks)

            same_however_it_is_cut(play, data)


def _filter(core: FilterProtocol, chunks: list[bytes]) -> list[object]:
    seen = list[object]()
    ended = set[tuple[int, int]]()
    try:
        for chunk in chunks:
            for heard in core.receive(chunk):
                if not isinstance(heard, Output):
                    seen.append(heard)
                    continue
                which = heard.session, heard.token
                assert heard.data.count(b"\n") == heard.data.count(b"\r\n") == heard.data.count(b"\r")
                if which in ended:
                    continue  # whoever keeps count of what was asked ignores it
                if heard.last:
                    ended.add(which)
                before = seen[-1] if seen else None
                if isinstance(before, Output) and (before.session, before.token) == which:
                    seen[-1] = Output(*which, before.data + heard.data, heard.last)
                else:
                    seen.append(heard)
    except Violation as violation:
        seen.append(str(violation))
    return seen


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (server_protocol, command_lines, client_protocol, header_block, status_report, filter_protocol)
}
