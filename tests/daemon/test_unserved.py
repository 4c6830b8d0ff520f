"""A server does not start where it would ignore what protects."""

import pytest

from pillarbox.conf.model import Config, EventReport, Listener, Local, QueueOptions, Relay, Table, TableKind
from pillarbox.daemon.unserved import refuse_unserved
from pillarbox.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
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
        listeners=(Listener(id=1), Listener(id=0, socket=True, filter="f")),
        actions={"l": Local(name="l", method="maildir"), "r": Relay(name="r", filter="f")},
        reports=(EventReport(direction="smtp-in", proc="p"),),
        tables=tables,
        queue=QueueOptions(compression=True),
    )
    refuse_unserved(config)
