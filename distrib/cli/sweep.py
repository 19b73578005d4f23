"""``distrib train -m``: one run after another, each with all the processes it asks for.

::

    multirun/<name>/<time>/       run_dir=... on the command line replaces this path
        sweep.json                all trials, rewritten after each
        0/ 1/ 2/ ...              the run directory of each trial
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distrib.cli.rundir import link_latest, make_fresh, write_config
from distrib.cli.trials import Trial, make_trials
from distrib.config import RunConfig
from distrib.errors import ConfigError, DistribError
from distrib.targets import locate

SWEEPS = Path("multirun")
"""Below the working directory."""

INTERRUPTED = 130

RunTrial = Callable[[RunConfig, Path], int]
"""Trains one configuration in a run directory; returns an exit code."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one trial ended."""

    number: int
    overrides: tuple[str, ...]
    status: str
    """``done``, ``stopped`` (before its last step), ``failed``, ``refused`` or ``interrupted``."""
    run_dir: str | None = None
    metric: str | None = None
    value: float | None = None
    steps: int | None = None
    seconds: float | None = None
    message: str | None = None
    """Why it did not end well."""


def sweep(overrides: Sequence[str], *, config_dirs: Sequence[str], dry_run: bool) -> int:
    """Trains every combination; 0 where all ended well, 130 after Ctrl-C, else 1."""
    from distrib.cli.launching import launch

    trials = make_trials(overrides, config_dirs=config_dirs)
    if dry_run:
        show(trials)
        return 0
    root = make_root(trials)
    results = run_all(trials, root, run_trial=launch)
    return finish(results, root)


def make_root(trials: Sequence[Trial]) -> Path:
    """The new directory of a sweep, named after the first trial that can run."""
    configs = [trial.config for trial in trials if isinstance(trial.config, RunConfig)]
    given = {config.run_dir for config in configs}
    if given == {None}:
        root = make_fresh(SWEEPS / configs[0].name)
        link_latest(SWEEPS, root)
        return root
    root = Path(configs[0].run_dir or "").resolve()
    if len(given) > 1 or (root.exists() and any(root.iterdir())):
        raise ConfigError("run_dir", root, "a sweep needs one new directory; its trials lie below it")
    root.mkdir(parents=True, exist_ok=True)
    return root


def run_all(trials: Sequence[Trial], root: Path, *, run_trial: RunTrial) -> list[Result]:
    """Runs the trials in order; a failed one does not stop the others, Ctrl-C does."""
    results: list[Result] = []
    for trial in trials:
        print(f"\n{_title(trial, of=trials)}", flush=True)
        results.append(run_one(trial, root / str(trial.number), run_trial=run_trial))
        write_results(results, root)
        if results[-1].status == "interrupted":
            break
    return results


def run_one(trial: Trial, run_dir: Path, *, run_trial: RunTrial) -> Result:
    """Trains one trial and reads from its directory how it went."""
    if isinstance(trial.config, ConfigError):
        return Result(
            number=trial.number, overrides=trial.overrides, status="refused", message=str(trial.config)
        )
    run_dir.mkdir()
    write_config(trial.config, run_dir)
    started = time.monotonic()
    try:
        code, message = run_trial(trial.config, run_dir), None
    except KeyboardInterrupt:
        code, message = INTERRUPTED, None
    except DistribError as error:
        code, message = error.exit_code, str(error)
    return Result(
        number=trial.number,
        overrides=trial.overrides,
        run_dir=str(run_dir),
        seconds=round(time.monotonic() - started, 3),
        **_outcome(trial.config, run_dir, code=code, message=message),
    )


def _outcome(config: RunConfig, run_dir: Path, *, code: int, message: str | None) -> dict[str, Any]:
    if code == INTERRUPTED:
        return {"status": "interrupted"}
    if code != 0:
        return {"status": "failed", "message": message or f"exit code {code}; see {run_dir / 'logs'}"}
    metric = getattr(locate(config.task, key="task", plugins=config.plugins), "primary_metric", None)
    summary = _read_summary(run_dir)
    return {
        "status": "stopped" if summary.get("stopped_by") else "done",
        "metric": metric,
        "value": summary.get("metrics", {}).get(metric),
        "steps": summary.get("steps"),
    }


def _read_summary(run_dir: Path) -> dict[str, Any]:
    """Empty where a launcher only submitted the job and the run is still to come."""
    try:
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return summary


def write_results(results: Sequence[Result], root: Path) -> None:
    """``sweep.json``: whole at any time, so that a sweep can be watched."""
    draft = root / ".sweep.json"
    draft.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
    draft.replace(root / "sweep.json")


def finish(results: Sequence[Result], root: Path) -> int:
    """Prints the table of all trials and returns the exit code of the sweep."""
    from rich.console import Console

    from distrib.cli.table import sweep_table

    console = Console()
    console.print(sweep_table(results, root=root))
    for result in results:
        if result.message is not None:
            console.print(f"trial {result.number}: {result.message}", style="red", markup=False)
    print(f"sweep directory   {root}")
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return INTERRUPTED
    return 1 if statuses & {"failed", "refused"} else 0


def show(trials: Sequence[Trial]) -> None:
    """What ``--dry-run`` prints of a sweep: what would run, and what is refused."""
    for trial in trials:
        refusal = f"   refused: {trial.config}" if isinstance(trial.config, ConfigError) else ""
        print(_title(trial, of=trials) + refusal)


def _title(trial: Trial, *, of: Sequence[Trial]) -> str:
    return f"trial {trial.number} ({len(of)} in all)   {' '.join(trial.overrides)}"
