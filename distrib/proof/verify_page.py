"""``report.html`` of a verification: the table, the overlaid curves and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.proof.drawing import HEIGHT, LEFT, RIGHT, WIDTH, Drawing, draw
from distrib.proof.pages import render
from distrib.proof.trajectory import difference_text

if TYPE_CHECKING:
    from distrib.proof.randomness import Randomness
    from distrib.proof.verify import Asked, Row, Verified


def write_page(root: Path, verified: Verified, *, plan: Asked, randomness: Randomness) -> Path:
    """Writes the page into the verification's directory and returns its path."""
    from distrib.config import to_yaml

    config = next(iter(plan.references.values()))
    return render(
        root,
        "verify.html",
        name=config.name,
        passed=verified.passed,
        rows=[_row(row) for row in verified.rows],
        allowed=[f"{getattr(verified.bounds, name):.1e}" for name in verified.nudged.largest],
        rounding=[difference_text(value) for value in verified.nudged.largest.values()],
        charts=charts(verified),
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        randomness=list(randomness.lines()),
        pins=list(randomness.pins()),
        config=to_yaml(config),
    )


def charts(verified: Verified) -> list[Drawing]:
    """Losses over each other, then how far they are apart on a logarithmic scale."""
    ran = [(_name(row), row.ours, row.found) for row in verified.rows if row.ours and row.found]
    references = {f"one process, {size}": run.losses for size, run in verified.references.items()}
    losses: dict[str, Sequence[float]] = {**references, **{name: ours.losses for name, ours, _ in ran}}
    nudged = "rounding alone"
    drawn = [
        draw("loss", losses),
        draw(
            "difference of the loss",
            {nudged: verified.nudged.losses, **{name: found.losses for name, _, found in ran}},
            log=True,
        ),
        draw(
            "difference of the gradient norm",
            {nudged: verified.nudged.grad_norms, **{name: found.grad_norms for name, _, found in ran}},
            log=True,
        ),
    ]
    return [drawing for drawing in drawn if drawing is not None]


def _name(row: Row) -> str:
    return f"{row.cell.strategy} x {row.cell.world_size}, {row.cell.microbatch_size}"


def _row(row: Row) -> dict[str, Any]:
    largest = row.found.largest if row.found else {}
    return {
        "strategy": row.cell.strategy,
        "world_size": row.cell.world_size,
        "microbatch_size": row.cell.microbatch_size,
        "numbers": [(difference_text(value), name in row.broken) for name, value in largest.items()],
        "parameter": row.found.parameter if row.found and row.found.weight else "",
        "verdict": row.verdict,
        "remark": str(row.place) or row.message,
    }
