"""One rank of a job that is compared: trains as any other, but the screen is the comparison's."""

from __future__ import annotations

import gc
import os
import sys

from distrib.worker import main

if __name__ == "__main__":
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = main(sys.argv[1:])
    gc.freeze()  # as in distrib.worker: spares half a second at the end
    sys.exit(code)
