"""What dispatchers and queue tell processors by."""

import secrets
import time
from typing import cast

from pillarbox.daemon.peers import Peers
from pillarbox.daemon.role import BaseRole
from pillarbox.daemon.wiring import FILTER
from pillarbox.filters.processors import Processors
from pillarbox.log import Log
from pillarbox.roles.filters import Filters


def build_processors(role: BaseRole, peers: Peers, log: Log) -> Processors:
    """Those of one role: its background work sends."""
    return Processors(
        filters=cast(Filters, peers.proxy("filters", FILTER)),
        log=log,
        now=time.time,
        random64=lambda: secrets.randbits(64) or 1,
        background=lambda work: role.run("filters", work),
    )
