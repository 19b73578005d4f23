"""DiLoCo and local SGD behind the seam."""

from __future__ import annotations

from distrib.strategies.diloco.strategy import DiLoCo as DiLoCo
