"""Decisions of filters, phase by phase, as OpenSMTPD 7.8 obeys them (tests/corpus/filter), and where we differ."""

import pytest

from pillarbox.conf.model import Listener
from pillarbox.roles.filters import Decision, Lines, Output, Phase, Question, Result
from pillarbox.tables.table import MemoryTable
from tests.filters.memory import MemoryFilters, decide, proceed

from .filtering import TRY_AGAIN, builtin, run, with_filters
from .memory import World

PHASES = "connect helo ehlo starttls auth mail-from rcpt-to data data-line rset quit noop help wiz commit"
NO_ARGUMENTS = "500 5.5.4 Invalid command arguments: command does not accept arguments."


def table(*keys: str) -> MemoryTable:
    entries = tuple((key, "") for key in keys)
    return MemoryTable(name="t", entries=entries, delimiter="+", on_bad_regex=lambda *_: None)


def play(scenario, *, phase: str, decision: str, param: str = "", events: str = "filter-response") -> MemoryFilters:
    filters = MemoryFilters()
    filters.add("f", decide(phase, decision, param), phases=phase, events=events)
    run(scenario, with_filters("f"), filters)
    return filters


def responses(filters: MemoryFilters, number: int = 1) -> list[str]:
    return [e.removeprefix("filter-response ") for e in filters.played[number].events if "filter-response" in e]


def test_each_phase_is_asked_with_its_argument_and_nobody_about_help_and_wiz():
    filters = MemoryFilters()
    played = filters.add("f", phases=PHASES)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        for line in (
            "NOOP x",
            "HELP",
            "WIZ",
            "MAIL FROM:<s@x.example> SIZE=3",
            "RCPT TO:<@hop:alice@example.org> NOTIFY=NEVER",
        ):
            await c.send(line)
        await c.send("DATA")
        assert (await c.send(b"Subject: x\r\n\r\n.\r\n"))[:3] == "250"
        await c.send("RSET")
        await c.send("QUIT")

    run(scenario, with_filters("f"), filters)
    assert played.questions == [
        ("connect", "localhost|127.0.0.1"),
        ("ehlo", "client.example.net"),
        ("noop", ""),
        ("mail-from", "s@x.example"),
        ("rcpt-to", "@hop:alice@example.org"),
        ("data", ""),
        ("commit", ""),
        ("rset", ""),
        ("quit", ""),
    ]


def test_a_command_that_is_refused_anyway_is_not_asked_about():
    filters = MemoryFilters()
    played = filters.add("f", phases=PHASES)

    async def scenario(w: World) -> None:
        c = await w.connect()
        for line in ("", "HELO", "MAIL FROM:<s@x.example>", "RCPT TO:<a@example.org>", "DATA x", "QUIT x"):
            await (c.send(line) if line else c.reply())

    run(scenario, with_filters("f"), filters)
    assert [phase for phase, _ in played.questions] == ["connect"]


def test_a_token_belongs_to_a_filter_and_a_phase():
    filters = MemoryFilters()
    played = filters.add("f", phases="noop rset")

    async def scenario(w: World) -> None:
        for _ in range(2):
            c = await w.greeted()
            for line in ("NOOP", "RSET", "NOOP"):
                await c.send(line)

    run(scenario, with_filters("f"), filters)
    tokens = [(q.phase, q.token) for q in played.told if isinstance(q, Question)]
    assert len(set(tokens)) == 2 and len(tokens) == 6


def test_a_rejected_connection_hears_why_and_is_closed():
    async def scenario(w: World) -> None:
        c = await w.connect()
        assert await c.reply() == "550 5.7.1 no"
        assert await c.closed()
        assert 'smtp failed-command command="" result="550 5.7.1 no"' in w.log
        c.writer.close()
        await w.until(lambda: w.log[-1] == "smtp disconnected reason=quit")

    filters = play(scenario, phase="connect", decision="reject", param="550 5.7.1 no")
    assert responses(filters) == ["connected|reject|550 5.7.1 no"]


def test_a_connection_is_decided_about_before_anything_is_said():
    gate: list[Question] = []
    filters = MemoryFilters()
    played = filters.add("f", lambda asked: gate.append(asked) or [], phases="connect")

    async def scenario(w: World) -> None:
        c = await w.connect()
        c.writer.write(b"EHLO x.example\r\n")
        await w.until(lambda: bool(gate))
        await filters.say(played, Result(gate[0].session, gate[0].token, Decision.PROCEED))
        assert (await c.reply())[:3] == "220"
        assert (await c.reply())[:3] == "250"

    run(scenario, with_filters("f"), filters)


@pytest.mark.parametrize("said", ["hello", "250 ok?", "550", "550-more", "5x0 no", ""])
def test_a_refusal_without_a_code_is_an_internal_error_and_the_end(said):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send("MAIL FROM:<s@x.example>") == "421 Internal server error"
        assert await c.closed()

    filters = play(scenario, phase="mail-from", decision="reject", param=said)
    assert responses(filters)[-1] == "mail-from|disconnect|421 Internal server error"


@pytest.mark.parametrize("decision", ["reject", "disconnect"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("550 5.7.1 " + "x" * 500, 1),
        ("550 5.7.1 " + "word " * 99 + "w-x", 1),
        ("550 5.7.1 " + "word " * 99 + "w-xyzw", 2),
        ("550 5.7.1 " + "word " * 800, 8),
        ("550 5.7.1 " + "x" * 4085, 9),
        ("550 " + "x" * 4091, 9),
        ("550 " + " " * 4091, 1),
        ("550 5.7.1 " + "é" * 600, 2),
    ],
)
def test_a_long_refusal_is_said_in_lines_that_every_client_reads(decision, text, lines):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        said = (await c.send("MAIL FROM:<s@x.example>")).splitlines()
        assert len(said) == lines and max(map(len, said)) <= 510
        status = "5.7.1 " if "5.7.1" in text else ""
        heads = [f"550{' ' if number == lines - 1 else '-'}{status}" for number in range(lines)]
        assert all(line.startswith(head) for line, head in zip(said, heads, strict=True))
        words = "".join(line.removeprefix(head) for line, head in zip(said, heads, strict=True))
        assert words.replace(" ", "") == text.removeprefix("550 " + status).replace(" ", "").replace("é", "?")
        assert (await c.closed()) if decision == "disconnect" else (await c.send("NOOP"))[:3] == "250"

    play(scenario, phase="mail-from", decision=decision, param=text)


@pytest.mark.parametrize("decision", ["rewrite", "report"])
def test_no_command_becomes_longer_than_a_client_could_have_said_it(decision):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send("EHLO x.example") == "501 5.5.2 Syntax error: Syntax error"

    play(scenario, phase="ehlo", decision=decision, param="x" * 2048)


def test_who_rejects_with_421_hangs_up():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send("NOOP") == "421 4.7.0 go away"
        assert await c.closed()

    assert responses(play(scenario, phase="noop", decision="reject", param="421 4.7.0 go away"))[-1] == (
        "noop|disconnect|421 4.7.0 go away"
    )


def test_rejected_commands_change_nothing_and_the_session_goes_on():
    filters = MemoryFilters()
    filters.add("f", lambda q: [Result(q.session, q.token, Decision.REJECT, "550 a|b|c")], phases="ehlo mail-from quit")

    async def scenario(w: World) -> None:
        c = await w.connect()
        await c.reply()
        assert await c.send("EHLO x.example") == "550 a|b|c"
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "503"
        await c.send("HELO x.example")
        assert await c.send("MAIL FROM:<s@x.example>") == "550 a|b|c"
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "503"
        assert await c.send("QUIT") == "550 a|b|c"
        assert (await c.send("NOOP"))[:3] == "250"
        assert 'smtp failed-command command="QUIT" result="550 a|b|c"' in w.log

    run(scenario, with_filters("f"), filters)


def test_data_may_be_tried_again_after_a_rejection():
    filters = MemoryFilters()
    said = iter([Decision.REJECT, Decision.PROCEED])

    def answer(asked):
        decision = next(said)
        return [Result(asked.session, asked.token, decision, "550 no" if decision is Decision.REJECT else "")]

    played = filters.add("f", answer, phases="data", events="tx-data")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == "550 no"
        assert (await c.send("DATA"))[:3] == "354"
        assert (await c.send(b"Subject: x\r\n\r\n.\r\n"))[:3] == "250"

    run(scenario, with_filters("f"), filters)
    assert [e.split("|")[1] for e in played.events if e.startswith("tx-data")] == ["permfail", "ok"]


def test_a_rewritten_recipient_is_the_one_that_counts_and_that_events_show():
    filters = MemoryFilters()
    played = filters.add(
        "f", decide("rcpt-to", "rewrite", "<bob@example.org> NOTIFY=NEVER"), phases="rcpt-to", events="tx-rcpt"
    )

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.message())[:3] == "250"
        assert w.lookup.asked[0].rcpt == "bob@example.org" and w.lookup.asked[0].dsn_notify
        assert "for <bob@example.org>;" in w.queue.text()

    run(scenario, with_filters("f"), filters)
    assert played.events[0].endswith("|ok|bob@example.org")


def test_a_rewritten_sender_loses_its_parameters_and_is_checked_again():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@client.example.net> RET=HDRS ENVID=abc")
        await c.send("RCPT TO:<alice@example.org>")
        asked = w.lookup.asked[0]
        assert (asked.sender, asked.dsn_ret, asked.dsn_envid) == ("x@y.example", "", "")

    play(scenario, phase="mail-from", decision="rewrite", param="<x@y.example>")

    async def nonsense(w: World) -> None:
        c = await w.greeted()
        assert await c.send("MAIL FROM:<s@x.example>") == "553 5.1.0 Sender address syntax error"
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "503"

    play(nonsense, phase="mail-from", decision="rewrite", param="bob")


@pytest.mark.parametrize(
    ("phase", "line", "answer"),
    [
        ("ehlo", "EHLO x.example", "250-mail.example.org Hello new [127.0.0.1], pleased to meet you"),
        ("noop", "NOOP", "250 2.0.0 Ok"),
        ("rset", "RSET", NO_ARGUMENTS),
        ("quit", "QUIT", NO_ARGUMENTS),
    ],
)
def test_rewrites_of_what_has_an_argument_or_none(phase, line, answer):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.send(line)).splitlines()[0] == answer

    play(scenario, phase=phase, decision="rewrite", param="new")


@pytest.mark.parametrize(
    ("phase", "line", "answer"),
    [
        ("mail-from", "MAIL FROM:<s@x.example>", "553 5.1.0 Sender address syntax error"),
        ("ehlo", "EHLO x.example", "250-mail.example.org Hello noted [127.0.0.1], pleased to meet you"),
        ("quit", "QUIT", "221 2.0.0 Bye"),
        ("rset", "RSET", "250 2.0.0 Reset state"),
        ("connect", "NOOP", "250 2.0.0 Ok"),
    ],
)
def test_the_text_of_a_report_is_the_new_argument_where_there_is_one(phase, line, answer):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.send(line)).splitlines()[0] == answer

    assert f"{phase.replace('connect', 'connected')}|report|noted" in responses(
        play(scenario, phase=phase, decision="report", param="noted")
    )


@pytest.mark.parametrize("phase", ["connect", "ehlo", "mail-from", "rcpt-to", "data"])
def test_junk_is_marked_before_the_trace_fields(phase):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.message())[:3] == "250"
        assert w.queue.text().startswith("X-Spam: Yes\nReceived: from ")
        await c.message()
        once = phase in ("rcpt-to", "data")  # COMPAT: MAIL is not in a transaction yet when it is asked about
        assert w.queue.text().startswith("X-Spam: Yes\n") is (not once or len(w.queue.committed) == 2)

    play(scenario, phase=phase, decision="junk")


def test_a_reject_at_commit_is_the_end_of_the_message_and_not_of_the_session():
    filters = MemoryFilters()
    said = iter([Decision.REJECT, Decision.PROCEED])

    def answer(asked):
        decision = next(said)
        return [
            Result(asked.session, asked.token, decision, "550 5.7.1 content" if decision is Decision.REJECT else "")
        ]

    played = filters.add("f", answer, phases="commit", events="tx-commit tx-rollback tx-reset")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == "550 5.7.1 content"
        assert not w.queue.committed
        assert (await c.message())[:3] == "250"
        assert 'smtp failed-command command="DATA" result="550 5.7.1 content"' in w.log

    run(scenario, with_filters("f"), filters)
    assert [e.split()[0] for e in played.events if "disconnect" not in e] == [
        "tx-rollback",
        "tx-reset",
        "tx-commit",
        "tx-reset",
    ]


def test_a_rewrite_at_commit_is_refused_and_does_not_hang():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == NO_ARGUMENTS
        assert (await c.send("NOOP"))[:3] == "250" and not w.queue.committed
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "250"

    play(scenario, phase="commit", decision="rewrite", param="x")


def test_junk_at_commit_is_no_answer():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == TRY_AGAIN and not w.queue.committed
        assert any("smtp filter-failed filter=f phase=commit" in line for line in w.log)

    play(scenario, phase="commit", decision="junk")


# --- chains -----------------------------------------------------------------------------------------------------------


def test_a_chain_goes_on_while_everybody_says_proceed():
    filters = MemoryFilters()
    first = filters.add("f", phases="rcpt-to")
    second = filters.add("g", decide("rcpt-to", "reject", "550 second"), phases="rcpt-to")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == "550 second"

    run(scenario, with_filters("f", "g"), filters)
    assert first.questions == second.questions == [("rcpt-to", "alice@example.org")]
    tokens = {p.told[0].token for p in (first, second)}  # type: ignore[union-attr]
    assert len(tokens) == 2


@pytest.mark.parametrize("decision", ["junk", "rewrite", "report", "reject"])
def test_every_other_answer_ends_the_chain(decision):
    filters = MemoryFilters()
    param = {"rewrite": "<bob@example.org>", "report": "<bob@example.org>", "reject": "550 no"}.get(decision, "")
    filters.add("f", decide("rcpt-to", decision, param), phases="rcpt-to")
    second = filters.add("g", decide("rcpt-to", "reject", "550 never asked"), phases="rcpt-to")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.message()

    run(scenario, with_filters("f", "g"), filters)
    assert not second.questions


def test_builtin_reports_go_on_and_are_told_under_their_name():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from", events="filter-report filter-response")

    async def scenario(w: World) -> None:
        w.lookup.tables = {"t": table("@rep.example")}
        c = await w.greeted()
        assert (await c.send("MAIL FROM:<x@rep.example>"))[:3] == "250"

    report = builtin("mail-from", "mail-from", "report", "seen a rep", table="t")
    run(scenario, with_filters("f", builtins=(report,)), filters)
    assert "filter-report builtin|b|seen a rep" in played.events
    assert played.questions == [("mail-from", "x@rep.example")]
    assert "filter-response mail-from|proceed" in played.events


def test_a_bypass_skips_the_rest_of_that_phase_only():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from rcpt-to")

    async def scenario(w: World) -> None:
        w.lookup.tables = {"t": table("127.0.0.1")}
        c = await w.greeted()
        await c.message()

    run(scenario, with_filters("f", builtins=(builtin("mail-from", "src", "bypass", table="t"),)), filters)
    assert [phase for phase, _ in played.questions] == ["rcpt-to"]


def test_builtin_filters_need_no_processor():
    async def scenario(w: World) -> None:
        w.lookup.tables = {"t": table("bob@example.org", "@blocked.example")}
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"
        for refused in ("bob@example.org", "BOB@EXAMPLE.ORG", "x@blocked.example", "bob+t@example.org"):
            assert await c.send(f"RCPT TO:<{refused}>") == "550 rcpt"

    run(scenario, with_filters(builtins=(builtin("rcpt-to", "rcpt-to", "reject", "550 rcpt", table="t"),)))


@pytest.mark.parametrize("phase", ["rcpt-to", "data", "commit"])
def test_what_was_said_in_a_phase_that_nobody_filters_counts_later(phase):
    async def scenario(w: World) -> None:
        w.lookup.tables = {"t": table("s@client.example.net"), "h": table("client.example.net")}
        c = await w.greeted()
        assert await c.message() == "550 sender"
        await c.send("RSET")
        await c.send("MAIL FROM:<other@x.example>")
        await c.send("RCPT TO:<alice@example.org>")
        assert (await c.send("DATA"))[:3] == "354"
        assert (await c.send(b"Subject: x\r\n\r\n.\r\n"))[:3] == "250"

    filters = (
        builtin(phase, "mail-from", "reject", "550 sender", table="t"),
        builtin("mail-from", "helo", "report", "h", name="h", table="h"),
    )
    run(scenario, with_filters(builtins=filters))


def test_the_text_of_a_report_is_not_the_sender_that_is_told():
    filters = MemoryFilters()
    played = filters.add("f", decide("mail-from", "report", "noted"), phases="mail-from", events="tx-mail")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "553"

    run(scenario, with_filters("f"), filters)
    assert played.events[0] == "tx-mail 00000000|permfail|s@x.example"


def test_a_table_that_cannot_be_asked_is_a_temporary_failure():
    async def scenario(w: World) -> None:
        w.lookup.fail = True
        c = await w.connect()
        assert (await c.reply())[:3] == "451" and await c.closed()
        w.lookup.fail = False
        c = await w.greeted()
        w.lookup.fail = True
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "451"
        w.lookup.fail = False
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "250"

    both = builtin("connect", "rdns", "junk", name="c"), builtin("mail-from", "auth", "reject", "550 no")
    run(scenario, with_filters(builtins=both))


def test_local_users_are_filtered_too():
    filters = MemoryFilters()
    played = filters.add("f", phases="connect mail-from", events="link-connect")
    listener = Listener(id=2, socket=True, filter="chain")

    async def scenario(w: World) -> None:
        handle = await w.server.submit("alice", 1000)
        await w.server.submit_read(handle)
        await w.server.submit_write(handle, b"EHLO localhost\r\n")
        await w.until(lambda: len(played.told) >= 2)

    run(scenario, with_filters("f", listener=listener), filters)
    assert played.events[0] == "link-connect host.example.org|pass|unix:/run/smtpd.sock|unix:/run/smtpd.sock"
    assert played.questions == [("connect", "host.example.org|local")]


# --- what costs nothing -----------------------------------------------------------------------------------------------


def test_a_phase_that_nobody_asked_for_is_answered_without_a_task():
    filters = MemoryFilters()
    played = filters.add("f", phases="mail-from")

    async def scenario(w: World) -> None:
        c = await w.greeted()
        (session,) = w.server._sessions
        started: list[object] = []
        session.start = started.append  # type: ignore[method-assign]
        assert (await c.send("NOOP"))[:3] == "250"
        assert (await c.send("RSET"))[:3] == "250"
        assert not started

    run(scenario, with_filters("f"), filters)
    assert not played.questions


def test_without_filters_and_listeners_there_is_neither_chain_nor_events():
    async def scenario(w: World) -> None:
        await w.greeted()
        (session,) = w.server._sessions
        assert session.chain is None and session.events is None

    run(scenario, with_filters())


def test_phases_are_those_of_the_protocol():
    assert PHASES.split() == [str(phase) for phase in Phase]
    assert proceed(Lines(1, 2, 0.0, b"x\r\n", last=True)) == [Output(1, 2, b"x\r\n", True)]
