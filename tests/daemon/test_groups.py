"""Interface groups, from what the kernel would show."""

import socket
from pathlib import Path

import psutil
import pytest

from pillarbox.conf.model import Listener
from pillarbox.daemon import groups, interfaces
from pillarbox.errors import PillarboxError

INET = (socket.AF_INET, socket.AF_INET6)
ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth1	00000000	00000000	0201	0	0	0	00000000	0	0	0
eth2	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
wg0	00000000	00000000	0001	0	0	0	00000080	0	0	0
"""
IPV6 = """\
fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000002 00000000 00000001     eth2
{zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     eth3
{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo
""".format(zero="0" * 32)


def test_egress_is_what_default_routes_lead_through(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "ipv6_route").write_text(IPV6)
    assert groups.members("egress", proc=str(tmp_path)) == {"eth0", "eth3"}


def test_without_routing_tables_there_is_no_egress(tmp_path: Path) -> None:
    assert groups.members("egress", proc=str(tmp_path)) == set()


@pytest.mark.parametrize(("group", "found"), [("office", {"eth1", "eth2"}), ("lab", {"eth3"}), ("default", set())])
def test_groups_of_ip_link_have_names_in_a_file(group: str, found: set[str], tmp_path: Path) -> None:
    names = tmp_path / "group"
    names.write_text("# a comment\n0\tdefault\n7 office\n0x10 lab # here\nx broken\n")
    for name, number in (("eth0", "0"), ("eth1", "7"), ("eth2", "7"), ("eth3", "16")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "netdev_group").write_text(number + "\n")
    files = (str(tmp_path / "absent"), str(names))
    assert groups.members(group, classes=str(tmp_path / "net"), names=files) == found


def test_egress_stands_for_the_addresses_of_its_interfaces() -> None:
    listener = Listener(id=0, interface="egress", port=2525)
    known = psutil.net_if_addrs()
    addresses = {a.address for name in groups.members("egress") for a in known[name] if a.family in INET}
    if addresses:
        assert {address for _, address, _ in interfaces.endpoints(listener)} == addresses
        return
    with pytest.raises(PillarboxError, match="no interface has a default route"):
        interfaces.endpoints(listener)
