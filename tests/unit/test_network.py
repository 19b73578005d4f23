"""The network that all hosts of a job share is found among those that they do not."""

from __future__ import annotations

import pytest

from distrib.errors import LaunchError
from distrib.launchers.network import Interface, interfaces, links
from distrib.rendezvous import side_group
from distrib.world import World


def at(name: str, address: str, prefix: int = 24) -> Interface:
    return Interface(name=name, address=address, prefix=prefix)


LO = at("lo", "127.0.0.1", 8)
DOCKER = at("docker0", "172.17.0.1", 16)


def test_the_shared_network_is_found_under_each_hosts_own_name() -> None:
    """Neither loopback nor a bridge of containers, which every host has under the same address, is shared."""
    (link,) = links(
        [[DOCKER, at("eth0", "10.0.0.1"), LO], [at("ens3", "10.0.0.2"), at("eth1", "10.9.0.2"), DOCKER, LO]]
    )
    assert link.addresses == ("10.0.0.1", "10.0.0.2")
    assert link.names == ("eth0", "ens3")
    assert link.variables(1)["GLOO_SOCKET_IFNAME"] == "ens3"
    assert link.describe(29500) == "10.0.0.1:29500 over eth0, ens3 (10.0.0.0/24)"


def test_one_host_stays_on_its_loopback_interface() -> None:
    """Ranks on one machine need no network; what else there is comes after."""
    assert [link.names for link in links([[at("eth0", "10.0.0.1"), LO]])] == [("lo",), ("eth0",)]


def test_the_user_may_choose() -> None:
    """With two shared networks the one whose interface was named is taken."""
    hosts = [[at("eth0", "10.0.0.1"), at("ib0", "10.1.0.1")], [at("eth0", "10.0.0.2"), at("ib0", "10.1.0.2")]]
    assert [link.network for link in links(hosts)] == ["10.0.0.0/24", "10.1.0.0/24"]
    assert [link.network for link in links(hosts, interface="ib0")] == ["10.1.0.0/24"]


def test_hosts_without_a_shared_network_are_shown() -> None:
    """Every address there is, and the setting that would help."""
    with pytest.raises(LaunchError, match=r"eth0 10\.0\.0\.1/24; eth0 10\.5\.0\.2/24.*launcher\.interface"):
        links([[at("eth0", "10.0.0.1")], [at("eth0", "10.5.0.2")]])


def test_this_host_knows_its_own() -> None:
    """The kernel is asked, and the loopback interface comes last."""
    assert interfaces()[-1].address == "127.0.0.1"
    assert interfaces()[-1].network == "127.0.0.0/8"


def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo's own words look like a lost peer's, of which this rank would be a victim and not the cause."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lan7")
    with pytest.raises(LaunchError, match="has no interface called lan7; set GLOO_SOCKET_IFNAME on each"):
        side_group(World(), "probe", rank=0, size=1)
