"""Started as root: parent and roles as separate processes."""

from pillarbox.conf.model import Config
from pillarbox.daemon import launch
from pillarbox.daemon.parent import Parent
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.roles import build_parent_services
from pillarbox.daemon.settings import KeyPair, Settings
from pillarbox.daemon.wiring import PARENT
from pillarbox.log import Log


async def run(config: Config, settings: Settings, pki: dict[str, KeyPair], log: Log) -> int:
    """Bind, start the roles, and serve until told to stop; returns the exit status."""
    peers = Peers(PARENT, settings.dispatchers, log)
    listening = launch.bind_all(config, settings.dispatchers)
    control = launch.bind_control(settings.state)
    parent: Parent | None = None

    def stop() -> None:
        if parent is not None:
            parent.stop_requested.set()

    services = build_parent_services(config, settings, peers, as_root=True, on_stop=stop, log=log)
    parent = Parent(
        config=config,
        settings=settings,
        services=services,
        peers=peers,
        listening=listening,
        control=control,
        pki=pki,
        log=log,
    )
    launch.stop_on_signals(stop, log)
    return await parent.run()
