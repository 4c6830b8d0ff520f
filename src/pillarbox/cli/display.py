"""Lines of smtpctl(8), in the reference's forms. Pure: values in, text out."""

from collections.abc import Iterator, Sequence

from pillarbox.mail.envelope import Envelope, Flag, Kind
from pillarbox.roles.filters import EVENTS, MDA, MDA_EVENTS, SMTP_IN, SMTP_OUT, Phase, Status
from pillarbox.roles.queue import QueueRow

ENVELOPE_VERSION = 3  # of the reference's spool, whose form this is

MONITOR_HEADER = (
    "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n"
    "curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce"
)

_FLAGS = ((Flag.BOUNCE, "bounce"), (Flag.AUTHENTICATED, "auth"), (Flag.INTERNAL, "internal"))
_FLAG_NAMES = ((Flag.AUTHENTICATED, "authenticated"), (Flag.BOUNCE, "bounce"), (Flag.INTERNAL, "internal"))


def queue_line(row: QueueRow, now: int) -> str:
    """One line of `show queue`."""
    e = row.envelope
    flags = [name for flag, name in _FLAGS if e.flags & flag]
    if row.suspended:
        flags.append("suspend")
    match row.state:
        case "offline":
            seconds = ""
        case "inflight":
            seconds = str(now - e.last_try)
        case _:
            seconds = str(row.next_try - now)
    return "|".join((
        f"{e.evpid:016x}",
        _family(e.sockaddr),
        e.kind.value,
        ",".join(flags),
        e.sender or "@",
        e.rcpt,
        e.dest,
        str(e.ctime),
        str(row.expire),
        str(e.last_try),
        str(e.retry),
        row.state,
        seconds,
        visible(e.errorline),
    ))  # fmt: skip


def envelope_lines(e: Envelope) -> list[str]:
    """`show envelope`: the reference's spool format, empty fields omitted."""
    fields: list[tuple[str, object]] = [
        ("version", ENVELOPE_VERSION),
        ("dispatcher", e.dispatcher),
        ("tag", e.tag),
        ("type", e.kind.value),
        ("smtpname", e.smtpname),
        ("helo", e.helo),
        ("hostname", e.hostname),
        ("username", e.username),
        ("errorline", e.errorline),
        ("sockaddr", e.sockaddr),
        ("sender", e.sender or "@"),
        ("rcpt", e.rcpt),
        ("dest", e.dest),
        ("ctime", e.ctime),
        ("last-try", e.last_try),
        ("last-bounce", e.last_bounce),
        ("ttl", e.ttl),
        ("retry", e.retry),
        ("flags", " ".join(name for flag, name in _FLAG_NAMES if e.flags & flag)),
        ("dsn-notify", int(e.dsn_notify)),
        ("dsn-ret", e.dsn_ret),
        ("dsn-envid", e.dsn_envid),
        ("dsn-orcpt", e.dsn_orcpt),
    ]
    if e.esc_class:
        fields += [("esc-class", e.esc_class), ("esc-code", e.esc_code)]
    if e.kind is Kind.MDA:
        fields += [("mda-exec", e.mda_exec), ("mda-subaddress", e.mda_subaddress), ("mda-user", e.mda_user)]
    return [f"{name}: {_one_line(str(value))}" for name, value in fields if value != ""]


def filter_line(status: Status, now: int) -> str:
    """One line of `show filters`: name and state, then `key=value`."""
    fields: list[tuple[str, object]] = [
        ("pid", status.pid or "-"),
        ("since", duration(max(0, now - int(status.since)))),
        ("restarts", status.restarts),
        ("waiting", status.waiting),
        ("dropped", status.dropped),
        ("phases", ",".join(_grouped(status.phases, [str(phase) for phase in Phase])) or "-"),
        ("events", ",".join(_events(status.events)) or "-"),
        ("command", f'"{visible(status.command)}"'),
    ]
    if status.why:
        fields.append(("why", f'"{visible(status.why)}"'))
    return f"{visible(status.name)} {status.state} " + " ".join(f"{name}={value}" for name, value in fields)


def _events(events: Sequence[str]) -> Iterator[str]:
    for subsystem, every in ((SMTP_IN, EVENTS), (SMTP_OUT, EVENTS), (MDA, MDA_EVENTS)):
        names = [event.removeprefix(f"{subsystem} ") for event in events if event.startswith(f"{subsystem} ")]
        yield from (f"{subsystem}/{name}" for name in _grouped(names, every))


def _grouped(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """All of them in the order in which they happen; `*` where none is missing."""
    return ["*"] if set(names) == set(every) else [name for name in every if name in names]


def stats_lines(values: dict[str, int]) -> Iterator[str]:
    """`show stats`: sorted, the uptime also in words."""
    for name in sorted(values):
        yield f"{name}={values[name]}"
        if name == "uptime":
            yield f"uptime.human={duration(values[name])}"


def duration(seconds: int) -> str:
    """`1d2h3m4s`, parts that are zero left out."""
    parts = ((seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"


def monitor_counters(stats: dict[str, int]) -> dict[str, int]:
    """What `monitor` shows, as running totals, out of `show stats`."""

    def get(*names: str) -> int:
        return sum(stats.get(name, 0) for name in names)

    connected = get("smtp.session.inet4", "smtp.session.inet6", "smtp.session.local")
    outcomes = {name: get(f"scheduler.delivery.{name}") for name in ("ok", "tempfail", "permfail", "loop")}
    expired, removed = get("scheduler.envelope.expired"), get("scheduler.envelope.removed")
    dequeued = outcomes["ok"] + outcomes["permfail"] + outcomes["loop"] + expired + removed
    current = get("scheduler.envelope")
    return {
        "sessions": get("smtp.session"),
        "connected": connected,
        "disconnected": connected - get("smtp.session"),
        "envelopes": current,
        "enqueued": current + dequeued,
        "dequeued": dequeued,
        **outcomes,
        "expired": expired,
        "removed": removed,
        "bounced": get("queue.bounce"),
    }


def monitor_line(counters: dict[str, int], last: dict[str, int]) -> str:
    """One line of `monitor`: what happened since the last one, two columns absolute."""
    absolute = ("sessions", "envelopes")
    d = {name: value if name in absolute else value - last.get(name, 0) for name, value in counters.items()}
    return (
        f"{d['sessions']:4} {d['connected']:4} {d['disconnected']:4}  "
        f"{d['envelopes']:4} {d['enqueued']:4} {d['dequeued']:4} "
        f"{d['ok']:4}    {d['tempfail']:4}    {d['permfail']:4} {d['loop']:4}   "
        f"{d['expired']:4}   {d['removed']:4}   {d['bounced']:4}"
    )


def visible(text: str) -> str:
    """A peer's words as vis(3) shows them: what a terminal would obey becomes printable."""
    return "".join(map(_visible_byte, text.encode("utf-8", "surrogateescape")))


def _visible_byte(byte: int) -> str:
    if byte == 0x5C:
        return "\\\\"
    if 0x20 <= byte < 0x7F or byte == 0x09:
        return chr(byte)
    meta, low = ("\\M", byte & 0x7F) if byte & 0x80 else ("\\", byte)
    if low < 0x20 or low == 0x7F:
        return f"{meta}^{'?' if low == 0x7F else chr(low + 0x40)}"
    return f"{meta}-{chr(low)}" if low != 0x20 else "\\240"


def _one_line(text: str) -> str:
    """A value that cannot end its line."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def _family(sockaddr: str) -> str:
    """Where a message came from."""
    if sockaddr == "local":
        return "local"
    if ":" in sockaddr:
        return "inet6"
    return "inet4" if sockaddr else "?"
