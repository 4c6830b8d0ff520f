import pytest

from pillarbox.conf.model import MtaLimits
from pillarbox.mta.route import Choice, Fault, Later, Routing
from pillarbox.roles.lookup import MxHost

FREE = MtaLimits(conn_delay_route=0, reconn_delay_route=0)
NOW = 1000.0


class Net:
    """A domain with exchangers, seen from one source."""

    def __init__(self, *exchangers, source="", limits=FREE):
        self.routing = Routing()
        self.limits = limits
        self.source = self.routing.source(source)
        self.domain = self.routing.domain("far.example", as_host=False)
        self.domain.exchangers = tuple(MxHost(preference=p, name=a, address=a) for p, a in exchangers)

    def find(self, now=NOW, **options):
        return self.routing.find(self.source, self.domain, self.limits, now, **options)

    def open(self, now=NOW, *, proven=True):
        route = self.find(now).route
        for used in (route, route.host, route.source):
            used.opened(now)
        route.new = not proven
        return route


def address(found):
    assert isinstance(found, Choice), found
    return found.route.host.address


def test_best_preference_and_fewest_connections_win():
    net = Net((10, "10.0.0.1"), (10, "10.0.0.2"), (20, "10.0.0.3"))
    assert [net.open().host.address for _ in range(4)] == ["10.0.0.1", "10.0.0.2"] * 2


def test_new_route_takes_one_connection_until_it_is_proven():
    net = Net((10, "10.0.0.1"))
    route = net.open(proven=False)
    assert net.find() == Later(NOW + 5)
    route.new = False
    assert address(net.find()) == "10.0.0.1"


@pytest.mark.parametrize("limit", ["max_conn_per_host", "max_conn_per_route"])
def test_busy_host_is_waited_for_rather_than_its_backup_used(limit):
    net = Net((10, "10.0.0.1"), (20, "10.0.0.2"), limits=MtaLimits(conn_delay_route=0, **{limit: 1}))
    net.open()
    assert net.find() == Later(NOW + 5)


@pytest.mark.parametrize(("delay", "seconds"), [("conn_delay_route", 5), ("conn_delay_host", 7)])
def test_delays_between_connections(delay, seconds):
    net = Net((10, "10.0.0.1"), limits=MtaLimits(**{"conn_delay_route": 0, delay: seconds}))
    net.open()
    assert net.find(NOW + 1) == Later(NOW + seconds)
    assert address(net.find(NOW + seconds)) == "10.0.0.1"


def test_delay_after_a_disconnect():
    net = Net((10, "10.0.0.1"), limits=MtaLimits(conn_delay_route=0))
    net.open().last_disconnect = NOW
    assert net.find() == Later(NOW + 3)


def test_disabled_route_gives_way_to_the_next_preference():
    net = Net((10, "10.0.0.1"), (20, "10.0.0.2"))
    net.routing.disable(net.find().route, NOW)
    assert address(net.find()) == "10.0.0.2"
    net.routing.disable(net.find().route, NOW)
    assert net.find() is Fault.ERROR_ROUTE_NET


def test_penalty_grows_quadratically_up_to_an_hour():
    net = Net((10, "10.0.0.1"))
    route = net.find().route
    assert [net.routing.disable(route, NOW) for _ in range(4)] == [15, 60, 135, 240]
    assert [net.routing.disable(route, NOW) for _ in range(20)][-1] == 3600


def test_backup_sends_only_to_better_exchangers():
    net = Net((10, "10.0.0.1"), (20, "10.0.0.2"))
    assert address(net.find(below=20)) == "10.0.0.1"
    assert net.find(below=10) is Fault.ERROR_MX


@pytest.mark.parametrize(
    ("exchanger", "source", "family"),
    [("10.0.0.1", "::1", ""), ("::1", "10.0.0.9", ""), ("::1", "", "inet4"), ("10.0.0.1", "", "inet6")],
)
def test_family_mismatch(exchanger, source, family):
    net = Net((10, exchanger), source=source, limits=MtaLimits(family=family))
    assert net.find() is Fault.ERROR_FAMILY


def test_no_exchanger_at_all():
    assert Net().find() is Fault.ERROR_MX


def test_sweep_keeps_what_is_used_delayed_or_punished():
    net = Net((10, "10.0.0.1"), (10, "10.0.0.2"), limits=MtaLimits())
    route = net.open()
    net.routing.sweep([], [], NOW)
    assert list(net.routing.routes) == [("", "10.0.0.1")] and list(net.routing.hosts) == ["10.0.0.1"]
    route.closed()
    net.routing.sweep([], [], NOW + 5)
    assert not (net.routing.routes or net.routing.hosts or net.routing.sources or net.routing.domains)


def test_sweep_remembers_a_penalty():
    net = Net((10, "10.0.0.1"))
    route = net.find().route
    net.routing.disable(route, NOW)
    net.routing.enable(route)
    net.routing.sweep([], [], NOW + 3600)
    assert net.routing.routes
    net.routing.sweep([], [], NOW + 2 * 3600)
    assert not net.routing.routes
