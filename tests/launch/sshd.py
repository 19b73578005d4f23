"""An sshd of our own on the loopback interface, with keys of its own: one machine under several names."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "/usr/sbin/sshd"
NAMES = ("n1", "n2")

SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UseDNS no
MaxStartups 100
SetEnv "PYTHONPATH={path}" "SSHD_FOLDER={folder}"
"""

CLIENT = """
Host {name}
  HostName 127.0.0.1
  HostKeyAlias {name}
  Port {port}
  User {user}
  IdentityFile {key}
  IdentityAgent none
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True, kw_only=True)
class Sshd:
    """A server that answers under ``NAMES``; ``stranger`` has no known key, ``refused`` no accepted one."""

    folder: Path
    config: Path
    """For ``ssh -F``."""


def absent() -> bool:
    return not Path(PROGRAM).exists() or shutil.which("ssh") is None


@contextlib.contextmanager
def sshd(folder: Path, *, path: str) -> Iterator[Sshd]:
    """Until it is left. What it starts finds its modules along ``path``."""
    folder.mkdir(mode=0o700)
    for name in ("host_key", "key", "other_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    port = _free_port()
    _write_configs(folder, port=port, path=path)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [PROGRAM, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        _wait(port, server, folder)
        yield Sshd(folder=folder, config=folder / "config")
    finally:
        server.kill()
        server.wait()


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_configs(folder: Path, *, port: int, path: str) -> None:
    (folder / "sshd_config").write_text(SERVER.format(folder=folder, port=port, path=path))
    keys = {"stranger": "key", "refused": "other_key"}
    (folder / "config").write_text(
        "".join(
            CLIENT.format(
                folder=folder,
                name=name,
                port=port,
                user=getpass.getuser(),
                key=folder / keys.get(name, "key"),
            )
            for name in (*NAMES, *keys)
        )
    )
    public = " ".join((folder / "host_key.pub").read_text().split()[:2])
    known = "".join(f"{name} {public}\n" for name in (*NAMES, "refused"))
    (folder / "known_hosts").write_text(known)


def _wait(port: int, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert server.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert time.monotonic() < deadline, "sshd does not answer"
        time.sleep(0.02)
