"""Every strategy against the one-process run on the same model and data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distrib.config import RunConfig
from distrib.errors import ConfigError, DistribError
from distrib.proof.bounds import BOUNDS, Bounds
from distrib.proof.jobs import Cell, run_job
from distrib.proof.trajectory import Differences, Trajectory, differences
from distrib.proof.where import Place, find_place, first_broken

if TYPE_CHECKING:
    from distrib.launchers.forkserver import ForkServer

NUDGED = {"_target_": "distrib.proof.nudged.Nudged"}

Verdict = Literal["same", "differs", "failed", "cannot run"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    cell: Cell
    verdict: Verdict
    ours: Trajectory | None = None
    found: Differences | None = None
    broken: Sequence[str] = ()
    """Names of the bounds that are broken."""
    message: str = ""
    """Why it failed or cannot run."""
    place: Place | str = ""
    """Where it first differs; searched for once per strategy."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be verified."""

    cells: Sequence[Cell]
    references: Mapping[int, RunConfig]
    """The one-process run by microbatch size; one of them serves every size where nothing is random."""
    bounds: Mapping[str, float]
    """Those the user gave."""
    named: Sequence[str] = ()
    """Strategies that the user named: it is a failure where one of them never runs."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What came out."""

    rows: Sequence[Row]
    references: Mapping[int, Trajectory]
    nudged: Differences
    """What rounding alone did."""
    bounds: Bounds
    never_ran: Sequence[str]
    """Strategies that were asked for by name and could not run at any size."""

    @property
    def passed(self) -> bool:
        """Whether something ran, everything that ran is the same, and all that was asked for ran."""
        verdicts = {row.verdict for row in self.rows}
        return not self.never_ran and "same" in verdicts and verdicts <= {"same", "cannot run"}


@dataclass(kw_only=True)
class Verification:
    """Runs the jobs one after another in folders of ``root``; ``say`` is told of each."""

    asked: Asked
    root: Path
    server: ForkServer | None
    say: Callable[[str], None]
    located: set[str] = field(default_factory=set)

    def run(self) -> Verified:
        """Everything, in order. Raises `DistribError` where the reference itself cannot be trained."""
        references = {size: self._train(config, f"reference-{size}") for size, config in self._references()}
        nudged, bounds = self._judge_rounding(references)
        rows = [self._row(cell, references, bounds) for cell in self.asked.cells]
        for folder in self.root.glob("*/checkpoints"):
            shutil.rmtree(folder)
        ran = {row.cell.strategy for row in rows if row.verdict != "cannot run"}
        never_ran = [name for name in self.asked.named if name not in ran]
        return Verified(rows=rows, references=references, nudged=nudged, bounds=bounds, never_ran=never_ran)

    def _references(self) -> Iterator[tuple[int, RunConfig]]:
        for size, config in self.asked.references.items():
            self.say(f"reference: 1 process, microbatches of {size}")
            yield size, config

    def _judge_rounding(self, references: Mapping[int, Trajectory]) -> tuple[Differences, Bounds]:
        size, config = next(iter(self.asked.references.items()))
        self.say("the same from weights nudged by one rounding")
        nudged = differences(self._train(replace(config, strategy=NUDGED), "nudged"), references[size])
        bounds = BOUNDS[config.precision.name].widened(nudged.largest, given=self.asked.bounds)
        return nudged, bounds

    def _row(self, cell: Cell, references: Mapping[int, Trajectory], bounds: Bounds) -> Row:
        if isinstance(cell.config, DistribError):
            return Row(cell=cell, verdict="cannot run", message=str(cell.config))
        size = self._reference_size(cell)
        try:
            ours = self._train(cell.config, cell.name)
            found = differences(ours, references[size])
        except DistribError as error:
            verdict: Verdict = "cannot run" if error.exit_code == ConfigError.exit_code else "failed"
            row = Row(cell=cell, verdict=verdict, message=str(error))
        else:
            broken = bounds.broken_by(found.largest)
            place = self._place(cell, cell.config, found, bounds) if broken else ""
            verdict = "differs" if broken else "same"
            row = Row(cell=cell, verdict=verdict, ours=ours, found=found, broken=broken, place=place)
        shutil.rmtree(self.root / cell.name / "checkpoints", ignore_errors=True)
        self.say(f"{cell.title}: {row.verdict}")
        return row

    def _place(self, cell: Cell, config: RunConfig, found: Differences, bounds: Bounds) -> Place | str:
        if cell.strategy in self.located:
            return ""
        self.located.add(cell.strategy)
        self.say(f"{cell.title}: differs; looking for the place")
        theirs = self.asked.references[self._reference_size(cell)]
        return find_place(
            config,
            theirs,
            replace(theirs, strategy=NUDGED),
            last_step=first_broken(found, bounds),
            folder=self.root / "where",
            run_job=partial(run_job, server=self.server),
        )

    def _reference_size(self, cell: Cell) -> int:
        sizes = self.asked.references
        return cell.microbatch_size if cell.microbatch_size in sizes else next(iter(sizes))

    def _train(self, config: RunConfig, name: str) -> Trajectory:
        """Raises `DistribError` where it fails."""
        run_job(config, self.root / name, server=self.server)
        return Trajectory.read(self.root / name)


def as_json(verified: Verified) -> dict[str, Any]:
    """What ``verify.json`` holds."""
    return {
        "passed": verified.passed,
        "bounds": {name: getattr(verified.bounds, name) for name in verified.nudged.largest},
        "rounding": verified.nudged.largest,
        "rows": [
            {
                "strategy": row.cell.strategy,
                "num_processes": row.cell.world_size,
                "microbatch_size": row.cell.microbatch_size,
                "verdict": row.verdict,
                "broken": list(row.broken),
                **(row.found.largest | {"parameter": row.found.parameter} if row.found else {}),
                "message": row.message,
                "place": str(row.place),
            }
            for row in verified.rows
        ],
    }
