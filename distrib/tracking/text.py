"""Numbers as people read them."""

from __future__ import annotations

import math


def number_text(value: float | None) -> str:
    """Four significant digits, as ``0.5123``, ``4.2e-05``, ``1,234``; a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def short_text(value: float) -> str:
    """Three digits and a unit of thousands: ``61.3``, ``9.1k``, ``22.7M``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def bytes_text(value: float) -> str:
    """``1.24 GB``; powers of 1000."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def clock_text(seconds: float) -> str:
    """``0:07``, ``1:02:03``; ``-:--`` where it is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
