"""The log lines that queue and dispatchers both write about deliveries, and the reference's way to write durations."""

from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Result

_NAMES = {Result.OK: "Ok", Result.TEMPFAIL: "TempFail", Result.PERMFAIL: "PermFail", Result.LOOP: "PermFail"}


def duration(seconds: float) -> str:
    """`1d2h3m4s`, parts that are zero left out; "0s" for none. Whole seconds."""
    left = int(seconds)
    if left == 0:
        return "0s"
    text, left = ("-", -left) if left < 0 else ("", left)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            text += f"{left // size}{unit}"
            left %= size
    return text


def log_delivery(
    log: Log,
    session: int,
    envelope: Envelope,
    sender: str,
    *,
    source: str,
    relay: str,
    now: float,
    result: Result,
    stat: str,
) -> None:
    """The one line for each attempt. `source` "" where nothing was connected; `now` in seconds since the epoch."""
    rcpt = envelope.rcpt if envelope.rcpt != envelope.dest else "-"
    log.info(
        f"{session:016x} mta delivery evpid={envelope.evpid:016x} from=<{sender}> to=<{envelope.dest}> rcpt=<{rcpt}> "
        f'source="{source or "-"}" relay="{relay}" delay={duration(now - envelope.ctime)} '
        f'result="{_NAMES[result]}" stat="{stat}"'
    )
