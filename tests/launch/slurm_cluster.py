"""A SLURM cluster for tests: real daemons on hosts made of namespaces, brought up and taken down here.

Each host has its own network, name, processes and shared memory; they hang on a bridge without any way
out. Everything belongs to processes started here and ends with them: namespaces have no names that could
be left behind, and a host whose first process is killed has lost its power.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = (
    "munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "unshare", "nsenter", "setpriv", "ip",
)  # fmt: skip
NETWORK = "10.78.0"
UP_SECONDS = 60.0
CPUS = 4
TIED = ("setpriv", "--pdeathsig", "KILL", "--")
"""In front of a command: it dies with the tests, however these end."""

CONF = """\
ClusterName=distrib-test
SlurmctldHost=h1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
KillWait=8
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=h[1-{nodes}] CPUs={cpus} SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=brief Nodes=ALL MaxTime=1 State=UP
PartitionName=last Nodes=h{nodes} MaxTime=INFINITE State=UP
"""

BOOT = """
hostname "$1"
mount -t proc proc /proc
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
touch "$2/$1.booted"
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""
"""A host's first process: it reaps what its daemons leave."""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "a SLURM cluster of one's own needs root (namespaces, daemons)"
    absent = [program for program in PROGRAMS if _find(program) is None]
    if absent:
        return f"a SLURM cluster of one's own needs {', '.join(absent)}: .ci/slurm"
    done = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], check=False)
    return "namespaces cannot be made here" if done.returncode else None


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass
class Host:
    """One running host."""

    name: str
    outer: subprocess.Popen[bytes]
    """Dies only with the host, and the host with it."""
    first: int
    """The process that is number 1 in there."""

    def enter(self, *, processes: bool = True) -> list[str]:
        """What runs a command on the host; without ``processes`` its number is this side's own."""
        spaces = ["--net", "--uts", "--ipc", "--mount", *(["--pid"] if processes else [])]
        return ["nsenter", f"--target={self.first}", *spaces, f"--wd={os.getcwd()}", "--"]

    def kill(self) -> None:
        """The power is gone: nothing in there says goodbye."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, 9)
        self.outer.kill()
        self.outer.wait()


@dataclass
class Cluster:
    """Real daemons: munged, slurmctld on h1, slurmd on every host."""

    folder: Path
    size: int
    hosts: dict[str, Host] = field(default_factory=dict)
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)
    hub: subprocess.Popen[bytes] | None = None

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def up(self) -> None:
        """Returns when every node is idle."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        names = [f"h{number}" for number in range(1, self.size + 1)]
        lines = [f"{NETWORK}.{number} {name}" for number, name in enumerate(names, start=1)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        self.conf.write_text(CONF.format(folder=self.folder, nodes=self.size, cpus=CPUS))
        self._start_munge()
        self.hub = subprocess.Popen([*TIED, "unshare", "--net", "sleep", "infinity"])
        wait_until(lambda: _net(self.hub.pid) != _net(os.getpid()))  # type: ignore[union-attr]
        self._in_hub("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
        self._in_hub("ip", "link", "set", "br0", "up")
        for name in names:
            self.boot(name)
        self._daemon("slurmctld", [*self.hosts["h1"].enter(), "slurmctld", "-D", "-i"])
        for name in names:
            self.start_slurmd(name)
        self.wait_idle()

    def down(self) -> None:
        """Ends every process that was started here, by its number."""
        for host in self.hosts.values():
            host.kill()
        for process in [*self.daemons, *([self.hub] if self.hub else [])]:
            process.kill()
            process.wait()

    def boot(self, name: str) -> None:
        """Starts a host."""
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
        outer = subprocess.Popen(
            [
                *TIED,
                "unshare",
                *spaces,
                "--propagation=private",
                "bash",
                "-c",
                BOOT,
                "boot",
                name,
                str(self.folder),
            ],
            stdin=subprocess.DEVNULL,
        )
        wait_until((self.folder / f"{name}.booted").exists)
        (first,) = psutil.Process(outer.pid).children()
        self.hosts[name] = Host(name=name, outer=outer, first=first.pid)
        self._plug(name, first.pid)

    def start_slurmd(self, name: str) -> None:
        self._daemon(f"slurmd-{name}", [*self.hosts[name].enter(), "slurmd", "-D", "-N", name])

    def lose(self, name: str) -> None:
        """A host's power loss."""
        self.hosts[name].kill()

    def run(self, *command: str, check: bool = True) -> str:
        """One of SLURM's commands on h1, and what it printed."""
        done = subprocess.run(
            self.on("h1", *command), env=self.environment(), capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def on(self, name: str, *command: str) -> list[str]:
        """``command`` on a host, as a process that can be signalled from here."""
        return [*self.hosts[name].enter(processes=False), *command]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf), "PATH": f"{kept['PATH']}:/usr/sbin:/sbin"}

    def wait_idle(self) -> None:
        """Until every node can take a job: nothing of an earlier one is left."""

        def idle() -> bool:
            nodes = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split()
            return nodes == ["idle"] * self.size

        wait_until(idle, seconds=UP_SECONDS)

    def jobs(self) -> list[str]:
        """Jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def processes(self, sign: str) -> list[psutil.Process]:
        """Processes on any host with ``sign`` in their arguments."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if sign in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o400)
        os.chmod(key, 0o600)
        key.write_bytes(os.urandom(128))
        files = {
            "key-file": key,
            "socket": self.folder / "munge.sock",
            "pid-file": self.folder / "munged.pid",
            "log-file": self.folder / "munged.log",
            "seed-file": self.folder / "munge.seed",
        }
        self._daemon(
            "munged", ["munged", "-F", "--force", *(f"--{name}={path}" for name, path in files.items())]
        )
        wait_until((self.folder / "munge.sock").exists)

    def _daemon(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons.append(
                subprocess.Popen(
                    [*TIED, *command],
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def _plug(self, name: str, first: int) -> None:
        """A cable from the host to the bridge."""
        number = name.removeprefix("h")
        assert self.hub is not None
        _ip("link", "add", "eth0", "netns", str(first), "type", "veth", "peer", "name", f"p{number}", "netns",
            str(self.hub.pid))  # fmt: skip
        self._in_hub("ip", "link", "set", f"p{number}", "master", "br0", "up")
        inside = ["nsenter", f"--target={first}", "--net", "--", "ip"]
        subprocess.run([*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0"], check=True)
        subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)

    def _in_hub(self, *command: str) -> None:
        assert self.hub is not None
        subprocess.run(["nsenter", f"--target={self.hub.pid}", "--net", "--", *command], check=True)


@contextlib.contextmanager
def cluster(*, size: int = 3) -> Iterator[Cluster]:
    """A cluster of ``size`` nodes. Its folder has a short path: a socket's may have 108 characters."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)  # munge refuses its socket where others cannot come to it
        started = Cluster(folder=Path(folder), size=size)
        try:
            started.up()
            yield started
        finally:
            started.down()


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def _net(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
