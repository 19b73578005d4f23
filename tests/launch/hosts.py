"""Hosts made of namespaces: each its own address, name, process table, /run and sshd. Needs root.

Nothing can leave the machine: the switch that joins them has a namespace of its own and no uplink. The
files are shared, as on a cluster with a network file system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NEEDS = ("ip", "nsenter", "unshare", "ssh", "ssh-keygen")
SSHD = "/usr/sbin/sshd"

INIT = """
hostname "$1"; mount -t proc proc /proc; mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /root/.ssh; mount -t tmpfs tmpfs /dev/shm
mount --bind "$3" /root/.ssh; ip link set lo up
exec "$4" -D -f "$5" -E "$6"
"""

SSHD_CONFIG = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/dot/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UseDNS no
MaxStartups 100
MaxSessions 100
SetEnv {variables}
"""


def missing(*programs: str) -> str | None:
    """Why hosts cannot be made here; None where they can."""
    absent = [name for name in (*NEEDS, *programs) if shutil.which(name) is None]
    if not Path(SSHD).exists():
        absent.append("sshd")
    if absent:
        return f"{', '.join(absent)} not installed (.ci/cluster installs them)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], check=False)
    return "this machine lets nobody make namespaces" if probe.returncode else None


def run(*argv: object, check: bool = True) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"


@dataclass
class Host:
    """One host: its init, which is its sshd, and the process that waits for it."""

    name: str
    address: str
    unshare: subprocess.Popen[bytes]
    init: int

    def inside(self, *argv: str) -> list[str]:
        """``argv`` run on this host."""
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        return ["nsenter", "-t", str(self.init), *spaces, f"--wd={Path.cwd()}", "--", *argv]

    def processes(self) -> list[psutil.Process]:
        """All that runs on it but sshd."""
        space = _process_space(self.init)
        if space is None:
            return []
        inside = [each for each in psutil.process_iter() if _process_space(each.pid) == space]
        return [each for each in inside if _is_of_the_job(each)]


class Hosts:
    """Brings hosts ``h1``, ``h2``, … up and takes them down."""

    def __init__(self, folder: Path, *, count: int, variables: dict[str, str]) -> None:
        self.prefix = f"dt{os.getpid()}"
        self.folder = folder
        self.subnet = f"10.78.{os.getpid() % 250}"
        self.variables = variables
        self.all: list[Host] = []
        self._files(count)
        self._switch()
        for number in range(1, count + 1):
            self._wire(number)
            self.all.append(self._boot(number))
        self._wait_for_ssh()

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.all if host.name == name)

    def hosts_file(self, *, slots: int = 1, count: int | None = None) -> Path:
        file = self.folder / "hosts"
        file.write_text("".join(f"{host.name} slots={slots}\n" for host in self.all[:count]))
        return file

    def cut(self, name: str) -> None:
        """Pulls the cable."""
        run("ip", "-n", f"{self.prefix}-sw", "link", "set", f"p{name[1:]}", "down")

    def heal(self, name: str) -> None:
        run("ip", "-n", f"{self.prefix}-sw", "link", "set", f"p{name[1:]}", "up")

    def crash(self, name: str) -> None:
        """Power loss: every process on it is gone at once."""
        host = self[name]
        os.kill(host.init, signal.SIGKILL)
        host.unshare.wait(20)

    def revive(self, name: str) -> None:
        self.heal(name)
        self.all[int(name[1:]) - 1] = self._boot(int(name[1:]))
        self._wait_for_ssh()

    def close(self) -> None:
        for host in self.all:
            with contextlib.suppress(ProcessLookupError):
                os.kill(host.init, signal.SIGKILL)
            host.unshare.wait(20)
        for number in range(1, len(self.all) + 1):
            run("ip", "netns", "del", f"{self.prefix}-h{number}", check=False)
        run("ip", "netns", "del", f"{self.prefix}-sw", check=False)

    def _files(self, count: int) -> None:
        dot = self.folder / "dot"
        dot.mkdir(mode=0o700, parents=True)
        for key in (dot / "id_ed25519", self.folder / "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        shutil.copy(dot / "id_ed25519.pub", dot / "authorized_keys")
        public = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        names = [(f"h{number}", f"{self.subnet}.{number}") for number in range(1, count + 1)]
        (dot / "known_hosts").write_text("".join(f"{name},{address} {public}\n" for name, address in names))
        # Twice, because torch looks up the peers of its sockets, which are of IPv6.
        listed = "".join(f"{address} {name}\n::ffff:{address} {name}\n" for name, address in names)
        (self.folder / "etc-hosts").write_text(f"127.0.0.1 localhost\n{listed}")
        variables = " ".join(f'"{name}={value}"' for name, value in self.variables.items())
        (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=self.folder, variables=variables))

    def _switch(self) -> None:
        switch = f"{self.prefix}-sw"
        run("ip", "netns", "add", switch)
        bridge = ["type", "bridge", "stp_state", "0", "forward_delay", "0"]
        run("ip", "-n", switch, "link", "add", "br0", *bridge)
        run("ip", "-n", switch, "link", "set", "br0", "up")

    def _wire(self, number: int) -> None:
        switch, space, port = f"{self.prefix}-sw", f"{self.prefix}-h{number}", f"p{number}"
        run("ip", "netns", "add", space)
        peer = ["peer", "name", port, "netns", switch]
        run("ip", "link", "add", "eth0", "netns", space, "type", "veth", *peer)
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", f"{self.subnet}.{number}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")

    def _boot(self, number: int) -> Host:
        name = f"h{number}"
        files = [self.folder / "etc-hosts", self.folder / "dot", SSHD]
        files += [self.folder / "sshd_config", self.folder / f"sshd-{name}.log"]
        unshare = subprocess.Popen(
            [
                *["setpriv", "--pdeathsig", "KILL"],  # a host does not outlive this process
                *["nsenter", f"--net=/run/netns/{self.prefix}-{name}", "unshare", "--kill-child"],
                *["--uts", "--ipc", "--mount", "--pid", "--fork", "--propagation", "private"],
                *["bash", "-c", INIT, "_", name, *map(str, files)],
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 20
        while not (children := psutil.Process(unshare.pid).children()):
            assert unshare.poll() is None, f"{name} did not start"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return Host(name=name, address=f"{self.subnet}.{number}", unshare=unshare, init=children[0].pid)

    def _wait_for_ssh(self) -> None:
        deadline = time.monotonic() + 30
        for host in self.all:
            probe = self.all[0].inside("ssh", host.name, "true")
            while subprocess.run(probe, capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, f"{host.name} does not answer"
                time.sleep(0.1)


def _process_space(pid: int) -> str | None:
    """None for a process that is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None


def _is_of_the_job(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and bool(command) and "sshd" not in command[0]
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def hosts(folder: Path, *, count: int, variables: dict[str, str]) -> Iterator[Hosts]:
    """``count`` hosts, gone at the end.

    Args:
        variables: in the environment of everything that ssh starts on them.
    """
    up = Hosts(folder, count=count, variables=variables)
    try:
        yield up
    finally:
        up.close()


def on(host: Host, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
    """Starts a command on a host."""
    return subprocess.Popen(host.inside(*argv), text=True, **options)  # type: ignore[call-overload,no-any-return]
