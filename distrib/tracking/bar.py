"""The live progress bar on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from distrib.tracking.meter import Meter


def live_bar(meter: Meter, *, screen: Console, redraws_per_second: float) -> Live:
    """A bar that redraws itself from ``meter`` by the clock, so that a step costs it nothing.

    Standard error is left alone: the supervisor reads it for the traceback of a failed rank.
    """
    from rich.live import Live

    return Live(
        get_renderable=lambda: draw(meter),
        console=screen,
        refresh_per_second=redraws_per_second,
        transient=True,
        redirect_stderr=False,
    )


def draw(meter: Meter) -> RenderableType:
    """Two lines: how far, then how well; the second folds on a narrow screen."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from distrib.tracking.text import clock_text

    share = meter.step / meter.num_steps if meter.num_steps else 1.0
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(
        Text(f"{share:4.0%}", style="bold"),
        ProgressBar(total=max(meter.num_steps, 1), completed=meter.step),
        Text(f"step {meter.step}/{meter.num_steps}  {clock_text(meter.seconds_left)} left"),
    )
    numbers = Text("     ")
    for name, value in meter.fields():
        numbers.append(f"{name} ", style="dim").append(f"{value}  ", style="bold cyan")
    return Group(row, numbers)
