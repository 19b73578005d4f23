"""DeepSpeed's ZeRO stages 1 to 3 behind the seam."""

from __future__ import annotations

from distrib.strategies.deepspeed.strategy import DeepSpeed as DeepSpeed
