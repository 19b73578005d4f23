"""The C library's memory."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Returns freed memory to the system, a few ms; nothing where the C library is not glibc.

    By itself glibc keeps up to 64 MiB at the end of its heap, and any hole within it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
