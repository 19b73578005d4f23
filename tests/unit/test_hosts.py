"""A hosts file is read line by line, and a line that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.errors import ConfigError
from distrib.launchers.hosts import Host, read_hosts, with_room


def file_with(folder: Path, text: str) -> Path:
    file = folder / "hosts"
    file.write_text(text)
    return file


def test_names_slots_and_comments(tmp_path: Path) -> None:
    """Comments and empty lines are left out; a host without a number takes one rank."""
    file = file_with(tmp_path, "# ours\n\nh1 slots=4\nme@gpu-2.example.org\n10.0.0.3 slots=2 # old\n")
    assert read_hosts(file) == [
        Host(name="h1", slots=4),
        Host(name="me@gpu-2.example.org"),
        Host(name="10.0.0.3", slots=2),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-oProxyCommand=touch${IFS}x", "is not the name"),
        ("h1;reboot", "is not the name"),
        ("$(reboot)", "is not the name"),
        ("h1`reboot`", "is not the name"),
        ("h1|x", "is not the name"),
        ("a@b@c", "is not the name"),
        ("h1\0", "is not the name"),
        ("hö1", "is not the name"),
        ("h1 slots=0", "write `h1 slots=4`"),
        ("h1 slots=two", "write `h1 slots=4`"),
        ("h1 slots=2;x", "write `h1 slots=4`"),
        ("h1 slots=2 port=5", "write `h1 slots=4`"),
        ("h1\nh1", "lists h1 twice"),
        ("# nothing", "lists no host"),
    ],
)
def test_a_line_that_is_no_host_is_named(tmp_path: Path, line: str, says: str) -> None:
    """Nothing that a shell or ssh would read as more than a name gets further than this."""
    with pytest.raises(ConfigError, match=r"launcher\.hosts") as caught:
        read_hosts(file_with(tmp_path, line))
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The key, the file and the reason."""
    with pytest.raises(ConfigError, match=r"launcher.hosts=.*absent: cannot be read: No such file"):
        read_hosts(tmp_path / "absent")


def test_more_ranks_than_slots_are_refused_with_the_small_host() -> None:
    """The host that is too small is named; one that is larger than needed is fine."""
    hosts = [Host(name="h1", slots=4), Host(name="h2", slots=1)]
    with pytest.raises(ConfigError, match=r"launcher.num_processes=2: more ranks than slots: h2 has 1"):
        with_room(hosts, file="hosts", num_nodes=2, num_processes=2)
    assert with_room(hosts, file="hosts", num_nodes=1, num_processes=2) == hosts[:1]


def test_more_nodes_than_hosts_are_refused() -> None:
    """How many there are is said."""
    with pytest.raises(ConfigError, match=r"launcher.num_nodes=3: hosts lists 1 hosts"):
        with_room([Host(name="h1")], file="hosts", num_nodes=3, num_processes=1)
