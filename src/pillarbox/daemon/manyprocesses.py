"""Started as root: parent and roles as separate processes."""

from pillarbox.conf.model import Config
from pillarbox.daemon import launch
from pillarbox.daemon.parent import Parent
from pillarbox.daemon.parentservices import ParentServices
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.privileges import Account
from pillarbox.daemon.settings import Secrets, Settings
from pillarbox.daemon.wiring import PARENT
from pillarbox.log import Log


async def run(
    config: Config,
    settings: Settings,
    secrets: Secrets,
    accounts: dict[str, Account],
    sockets: launch.Sockets,
    *,
    log: Log,
) -> int:
    """Start the roles, and serve until told to stop; returns the exit status."""
    peers = Peers(PARENT, settings.dispatchers, log)
    parent: Parent | None = None

    def stop() -> None:
        if parent is not None:
            parent.stop_requested.set()

    services = ParentServices(config, settings, peers, as_root=True, on_stop=stop, log=log)
    parent = Parent(
        config=config,
        settings=settings,
        services=services,
        peers=peers,
        listening=sockets.listening,
        control=sockets.control,
        secrets=secrets,
        accounts=accounts,
        log=log,
    )
    launch.stop_on_signals(stop, log)
    return await parent.run()
