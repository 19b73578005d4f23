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


def bytes_sent() -> int | None:
    """Payload handed to the network on the sockets open now, each byte once; None where it is not Linux.

    The counters of an interface would take in what every other program sends. What moves through
    shared memory (MPI, NCCL and DeepSpeed within a host) is not counted.
    """
    if sys.platform != "linux":
        return None
    return sum(_sent(int(fd)) for fd in os.listdir("/proc/self/fd"))


def _sent(fd: int) -> int:
    """0 for a descriptor that is no TCP socket, or is closed by now."""
    with contextlib.suppress(OSError):
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            return 0
        with socket.socket(fileno=os.dup(fd)) as found:
            if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6):
                return 0
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
        if len(info) == SIZE:
            sent, again = struct.unpack_from("=QQ", info, BYTES_SENT)
            return int(sent - again)
    return 0
