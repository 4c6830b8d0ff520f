"""A server does not start where it would ignore what protects."""

import pytest

from pillarbox.conf.model import Config, EventReport, Listener, Local, QueueOptions, Relay, Table, TableKind
from pillarbox.daemon.unserved import refuse_unserved
from pillarbox.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"listeners": (Listener(id=0, line=4, socket=True, filter="f"),)}, "c:4: a filter on a listener "),
        ({"actions": {"r": Relay(name="r", line=5, filter="f")}}, 'c:5: the filter of action "r" '),
        ({"reports": (EventReport(direction="smtp-in", proc="p", line=7),)}, "c:7: report smtp-in "),
        ({"queue": QueueOptions(encryption="k" * 32)}, "c: queue encryption "),
    ],
)
def test_what_would_be_ignored_is_named(fields, said):
    with pytest.raises(ConfigError) as caught:
        refuse_unserved(Config(hostname="h", file="c", **fields))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_served_passes():
    tables = {kind: Table(name=kind, kind=kind) for kind in TableKind}
    config = Config(
        hostname="h",
        listeners=(Listener(id=1),),
        actions={"l": Local(name="l", method="maildir")},
        tables=tables,
        queue=QueueOptions(compression=True),
    )
    refuse_unserved(config)
