"""What this process has sent over TCP, from the kernel's own count of each of its sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

BYTES_SENT = 200
"""Where ``tcpi_bytes_sent`` lies in Linux's ``struct tcp_info`` (include/uapi/linux/tcp.h, since 4.19).
``tcpi_bytes_retrans`` follows it: on a busy machine even the loopback interface sends twice at times."""
SIZE = BYTES_SENT + 16


class SentBytes:
    """Payload handed to the network from its making on, each byte once; known on Linux alone.

    The counters of an interface would take in what every other program sends. What moves through
    shared memory (MPI, NCCL and DeepSpeed within a host) is not counted.

    Every socket is counted for itself: one that closes takes its own last bytes along, not the
    thousands that it sent before (a sum over the open ones fell by three megabytes when the
    collector closed an earlier job's connections).
    """

    def __init__(self) -> None:
        self._seen = _by_socket()

    def since_last(self) -> int | None:
        """Bytes since the last call, or since the making; None where it is not Linux."""
        if sys.platform != "linux":
            return None
        before, self._seen = self._seen, _by_socket()
        return sum(sent - before.get(name, 0) for name, sent in self._seen.items())


def _by_socket() -> dict[str, int]:
    """Payload sent by each open TCP socket, under the kernel's name for it."""
    if sys.platform != "linux":
        return {}
    counted: dict[str, int] = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed by now
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.startswith("socket:"):
                counted[name] = _sent(int(fd))
    return counted


def _sent(fd: int) -> int:
    """0 for a socket that is not TCP. Raises `OSError` when it is closed by now."""
    with socket.socket(fileno=os.dup(fd)) as found:
        if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6):
            return 0
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
    if len(info) < SIZE:
        return 0
    sent, again = struct.unpack_from("=QQ", info, BYTES_SENT)
    return int(sent - again)
