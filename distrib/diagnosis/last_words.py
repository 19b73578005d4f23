"""A chance to speak before C++ ends the process.

gloo throws on a thread of its own when a message is larger than what its rank has room for, which is
how ranks that reduce tensors of different shapes meet. Nobody can catch that: `std::terminate` follows.
The other ranks still wait at that moment, so that they can be asked what they called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SET_TERMINATE = "_ZSt13set_terminatePFvvE"
"""``std::set_terminate``, as libstdc++ exports it."""
HANDLER = ctypes.CFUNCTYPE(None)


@contextmanager
def before_terminate(speak: Callable[[], None]) -> Iterator[None]:
    """While in here, ``speak`` is called on the thread whose exception nobody caught; then the end comes.

    Does nothing where the C++ library is another one than libstdc++.
    """
    try:
        set_terminate = getattr(ctypes.CDLL("libstdc++.so.6"), SET_TERMINATE)
    except (OSError, AttributeError):
        yield
        return
    set_terminate.argtypes, set_terminate.restype = [ctypes.c_void_p], ctypes.c_void_p
    before: list[int] = []

    def handle() -> None:
        try:
            speak()
        finally:
            HANDLER(before[0])()  # the one that aborts

    handler = HANDLER(handle)
    before.append(set_terminate(ctypes.cast(handler, ctypes.c_void_p)))
    try:
        yield
    finally:
        set_terminate(before[0])
