"""From orders to jobs, and from reports to outcomes: pure functions of a delivery, its action and its report."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from pillarbox.conf.model import Config, Local
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Outcome, Result
from pillarbox.mail.headers import format_duration
from pillarbox.mda.wire import Job, Report, Start
from pillarbox.roles.delivery import LocalDelivery

BATCH = 50  # messages a child
BATCH_BYTES = 1024 * 1024  # bodies that a child is given at once
_ESC_OTHER_SYSTEM = 30  # RFC 3463 X.3.0
_ESC_LOOP = 46  # RFC 3463 X.4.6
# What an alias or `.forward` that names a file was expanded to.
_FILE = re.compile(r"\S*/mail\.mboxfile -f %\{mbox\.from\} (/.*)\Z", re.DOTALL)
_LOG_RESULT = {Result.OK: "Ok", Result.TEMPFAIL: "TempFail", Result.PERMFAIL: "PermFail", Result.LOOP: "PermFail"}
_WORDS = {
    64: "command line usage error",
    65: "data format error",
    66: "cannot open input",
    67: "user unknown",
    68: "host name unknown",
    69: "service unavailable",
    70: "internal software error",
    71: "system resource problem",
    72: "critical OS file missing",
    73: "can't create user output file",
    74: "input/output error",
    75: "temporary failure",
    76: "remote error in protocol",
    77: "permission denied",
    78: "local configuration error",
}


@dataclass(slots=True)
class Batch:
    """Deliveries for one child: of one user, `jobs[i]` for `deliveries[i]`."""

    run_as: str
    mailbox: str
    deliveries: list[LocalDelivery] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    size: int = 0  # bytes of bodies

    def add(self, delivery: LocalDelivery, job: Job) -> None:
        """One more; the job's index must be the number of jobs so far."""
        self.deliveries.append(delivery)
        self.jobs.append(job)
        self.size += len(job.body)

    def start(self, child: int) -> Start:
        """The order for the delivery process."""
        first = self.deliveries[0]
        return Start(
            child=child,
            user=first.user,
            uid=first.uid,
            gid=first.gid,
            home=first.home,
            count=len(self.jobs),
            run_as=self.run_as,
            mailbox=self.mailbox,
        )


def is_batched(method: str) -> bool:
    """May a child do several of these one after the other? Not what runs or waits for something of others."""
    return method in ("maildir", "mbox", "file")


def method_of(action: Local, command: str, wrapper: str) -> str:
    """How a delivery is done: maildir, mbox, file, command, lmtp. `command`: of an alias or `.forward`."""
    if command:
        return "file" if _FILE.match(command) and not wrapper else "command"
    if action.method == "mbox":
        return "mbox"  # a wrapper has nothing to wrap here
    if wrapper:
        return "command"
    return {"maildir": "maildir", "lmtp": "lmtp"}.get(action.method, "command")


def make_batches(deliveries: Iterable[tuple[LocalDelivery, Local]], config: Config, libexec: str) -> list[Batch]:
    """Group deliveries for children: a user's small messages into files together, everything else alone."""
    done: list[Batch] = []
    filling: dict[tuple[object, ...], Batch] = {}
    for delivery, action in deliveries:
        job = job_of(delivery, action, config, libexec)
        streamed = delivery.size > 0 and not delivery.body
        mailbox = delivery.user if job.method == "mbox" else ""
        key = (delivery.user, delivery.uid, delivery.gid, delivery.home, action.user, mailbox)
        batch = filling.get(key)
        if batch is None or streamed or not is_batched(job.method):
            batch = Batch(run_as=action.user, mailbox=mailbox)
            done.append(batch)
            if not streamed and is_batched(job.method):
                filling[key] = batch
        batch.add(delivery, msgspec.structs.replace(job, index=len(batch.jobs)))
        if len(batch.jobs) >= BATCH or batch.size >= BATCH_BYTES:
            filling.pop(key, None)
    return done


def job_of(delivery: LocalDelivery, action: Local, config: Config, libexec: str) -> Job:
    """What a child is given for a delivery, without its place in a batch."""
    envelope = delivery.envelope
    wrapper = config.mda_wrappers.get(action.wrapper, "") if action.wrapper else ""
    method = method_of(action, envelope.mda_exec, wrapper)
    return Job(
        index=0,
        method=method,
        sender=envelope.sender,
        rcpt=envelope.rcpt or envelope.dest,
        dest=envelope.dest,
        user=delivery.user,
        directory=delivery.home,
        home=delivery.home,
        target=_target(method, action, envelope.mda_exec, libexec),
        subaddress=envelope.mda_subaddress,
        delimiter=config.smtp.sub_addr_delim,
        junk=action.junk,
        rcpt_to=action.lmtp_rcpt_to,
        addresses=tuple(a for a in delivery.resolved_lmtp.split(",") if a),
        two_shells=action.method == "mda" and not envelope.mda_exec,
        wrapper=wrapper,
        size=delivery.size,
        body=delivery.body,
    )


def _target(method: str, action: Local, command: str, libexec: str) -> str:
    """The path, destination or command with its specifiers; a wrapped method becomes the program that does it."""
    if command:
        found = _FILE.match(command) if method == "file" else None
        return found[1] if found else command
    if method != "command" or action.method == "mda":
        return action.target
    if action.method == "lmtp":
        return f"{libexec}/mail.lmtp -d {action.target} {'-r' if action.lmtp_rcpt_to else '-u'}"
    path = action.target
    if path.startswith("~/"):
        path = "%{user.directory}" + path[1:]
    return f"{libexec}/mail.maildir" + (" -j" if action.junk else "") + (f' "{path}"' if path else "")


def outcome_of(delivery: LocalDelivery, report: Report, session: int) -> Outcome:
    """What queue is told."""
    esc_class = {Result.OK: 2, Result.TEMPFAIL: 4}.get(report.result, 5)
    esc_code = {Result.OK: 0, Result.LOOP: _ESC_LOOP}.get(report.result, _ESC_OTHER_SYSTEM)
    return Outcome(
        evpid=delivery.envelope.evpid,
        attempt=delivery.attempt,
        result=report.result,
        errorline=report.text,
        esc_class=esc_class,
        esc_code=esc_code,
        session=session,
    )


def log_delivery(
    log: Log, session: int, envelope: Envelope, *, user: str, result: Result, stat: str, now: float
) -> None:
    """One line for one attempt that ended."""
    fields: dict[str, object] = {
        "evpid": f"{envelope.evpid:016x}",
        "from": f"<{envelope.sender}>",
        "to": f"<{envelope.dest}>",
        "rcpt": f"<{envelope.rcpt or envelope.dest}>",
        "user": user,
        "delay": format_duration(int(now) - envelope.ctime),
        "result": _LOG_RESULT[result],
        "stat": stat,
    }
    log.event(session, "mda delivery", **fields)


def status_text(report: Report) -> str:
    """`stat=` of a delivery that a child has reported."""
    if report.result is Result.OK:
        return "Delivered"
    if report.result is Result.LOOP:
        return "Loop detected"
    words = _WORDS.get(report.sysexit, "")
    return f"Error ({words}: {report.text})" if words else f"Error ({report.text})"
