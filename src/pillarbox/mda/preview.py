"""How an envelope would be delivered here, for `smtpctl explain`: the job that a child would get, with its target as
the child would expand it. Nothing is opened.
"""

import os

import msgspec

from pillarbox.conf.model import Config, Local
from pillarbox.mail.envelope import Envelope
from pillarbox.mda.child import refusal_for_root
from pillarbox.mda.jobs import job_of
from pillarbox.mda.mailers import expand_target, facts_of, mailbox_path
from pillarbox.mda.message import Failure, failure
from pillarbox.mda.variables import BadFormat, Facts, expand
from pillarbox.mda.wire import Job
from pillarbox.roles.delivery import LocalDelivery
from pillarbox.roles.explain import LocalPlan, visible
from pillarbox.roles.lookup import User


def preview_local(
    config: Config, envelope: Envelope, action: Local, user: User, *, run_as: User, libexec: str
) -> LocalPlan:
    """The delivery of an envelope to the user that it is for. What would make it fail is in `problem`.

    `run_as`: whom the action's `user` names, else the same user.
    """
    delivery = LocalDelivery(
        envelope=envelope,
        attempt=0,
        generation=config.generation,
        user=user.name,
        uid=user.uid,
        gid=user.gid,
        home=user.home,
        size=0,
    )
    job = msgspec.structs.replace(job_of(delivery, action, config, libexec), home=run_as.home)
    target = wrapper = problem = ""
    try:
        target = _target(job)
        wrapper = _wrapped(job, target)
    except Failure as failure:
        problem = failure.text
    if run_as.uid == 0 and job.method != "mbox":
        problem = refusal_for_root(run_as.name).text
    return LocalPlan(
        method=job.method,
        target=visible(target),
        pattern=visible(job.target),
        user=visible(user.name),
        run_as=visible(run_as.name),
        home=visible(run_as.home),
        wrapper=visible(wrapper),
        problem=visible(problem),
    )


def _target(job: Job) -> str:
    match job.method:
        case "mbox":
            return mailbox_path(job.user)
        case "maildir":
            return expand_target(job) or os.path.join(job.home, "Maildir")
        case _:
            return expand_target(job)


def _wrapped(job: Job, command: str) -> str:
    """The wrapper with the command in it, as text: how a shell is kept from reading values is `shell`'s."""
    if not job.wrapper or job.method != "command":
        return ""
    facts = facts_of(job)
    about = Facts(facts.sender, facts.rcpt, facts.dest, facts.username, facts.directory, facts.delimiter, command)
    try:
        return expand(job.wrapper, about)
    except BadFormat:
        raise failure("smtpd", "mda command line could not be expanded", 1) from None
