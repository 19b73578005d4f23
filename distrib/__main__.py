"""``python -m distrib`` is the same program as ``distrib``."""

from __future__ import annotations

import sys

from distrib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
