"""Every recorded expansion is explained as it was recorded: the reply and the envelopes, without a server."""

import json

import pytest

from tests.corpus.runner import compare
from tests.corpus.runner.cases import HERE, Case, differs, pending
from tests.corpus.runner.place import fresh, put
from tests.corpus.runner.play import expected, select, waits_for
from tests.corpus.runner.text import fill, plain, recorded
from tests.system.server import run

_WAITING, _NOTES = pending(), differs()
# What `show envelope` calls the fields of an explanation.
_FIELDS = {
    "action": "dispatcher",
    "type": "type",
    "dest": "dest",
    "mda_user": "mda-user",
    "mda_subaddress": "mda-subaddress",
    "mda_exec": "mda-exec",
}


@pytest.mark.parametrize("case", select(HERE, "expand"), ids=lambda case: case.id)
def test_an_expansion_is_explained_as_recorded(case: Case, machine: None) -> None:
    if waits := waits_for(case, _WAITING):
        pytest.skip(f"waits for {waits}")
    data = expected(case, _NOTES).data
    fresh(data.get("files"))
    path = put("smtpd.conf", data["config"])
    for recipient in data["recipients"]:
        command = ["smtpctl", "explain", "-f", str(path), "--json", "--helo", "client.example.net"]
        # In brackets, as a client says it: one that is empty or begins with a dash stays an address.
        result = run([*command, f"--from=<{data['sender']}>", f"--rcpt=<{recipient['rcpt']}>"])
        assert result.err == ""
        found = json.loads(result.out)
        assert plain(found["reply"]) == plain(fill(recorded(recipient["reply"])))
        told = [{field: e[name] for name, field in _FIELDS.items() if e[name]} for e in found["envelopes"]]
        wanted = [{k: v for k, v in e.items() if k in _FIELDS.values()} for e in recipient.get("envelopes", [])]
        assert not compare.queue([{"message": [], "envelopes": told}], [{"message": [], "envelopes": wanted}]), (
            recipient["rcpt"]
        )
