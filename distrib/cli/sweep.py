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

STATUSES = {
    "done": "green",
    "stopped": "yellow",  # before its last step, by train.stop_after
    "stopped by a signal": "yellow",  # SIGTERM or SIGUSR1; it has saved, and the sweep ends
    "interrupted": "yellow",  # Ctrl-C; the sweep ends
    "failed": "red",
    "refused": "red",  # its configuration cannot run
    "not run": "yellow",
}
"""How a trial may end, and its colour on screen."""

RunTrial = Callable[[RunConfig, Path], int]
"""Trains one configuration in a run directory; returns an exit code."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one trial ended."""

    number: int
    overrides: tuple[str, ...]
    status: str
    """One of `STATUSES`."""
    run_dir: str | None = None
    metric: str | None = None
    value: float | None = None
    steps: int | None = None
    seconds: float | None = None
    message: str | None = None
    """Why it did not end well."""


def sweep(overrides: Sequence[str], *, config_dirs: Sequence[str], run_trial: RunTrial) -> int:
    """Trains every combination; 0 where all ended well, 130 after Ctrl-C, else 1."""
    trials = make_trials(overrides, config_dirs=config_dirs)
    root = make_root(trials)
    results = run_all(trials, root, run_trial=run_trial)
    print_table(results, root)
    return exit_code(results)


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


def run_all(
    trials: Sequence[Trial], root: Path, *, run_trial: RunTrial, is_main: bool = True
) -> list[Result]:
    """Runs the trials in order; a failed one does not stop the others, a signal does.

    Args:
        is_main: whether this process writes the directory; the others of the same sweep only take part.
    """
    results: list[Result] = []
    for trial in trials:
        if any(result.status in ("interrupted", "stopped by a signal") for result in results):
            results.append(Result(number=trial.number, overrides=trial.overrides, status="not run"))
        else:
            results.append(run_one(trial, root / str(trial.number), run_trial=run_trial, is_main=is_main))
        if is_main:
            write_results(results, root)
    return results


def run_one(trial: Trial, run_dir: Path, *, run_trial: RunTrial, is_main: bool) -> Result:
    """Trains one trial and reads from its directory how it went."""
    started = time.monotonic()
    if isinstance(trial.config, ConfigError):
        return Result(
            number=trial.number, overrides=trial.overrides, status="refused", message=str(trial.config)
        )
    if is_main:
        print(f"\ntrial {trial.number}   {' '.join(trial.overrides)}", flush=True)
        run_dir.mkdir()
        write_config(trial.config, run_dir)
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
    summary = _read_summary(run_dir)
    metric = getattr(locate(config.task, key="task", plugins=config.plugins), "primary_metric", None)
    stopped_by = str(summary.get("stopped_by") or "")
    by_signal = "stopped by a signal" if stopped_by.startswith("SIG") else "stopped"
    return {
        "status": by_signal if stopped_by else "done",
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


def print_table(results: Sequence[Result], root: Path) -> None:
    """All trials on screen, then why some did not end well."""
    from rich.console import Console

    from distrib.cli.table import sweep_table

    console = Console()
    console.print(sweep_table(results, root=root))
    for result in results:
        if result.message is not None:
            console.print(
                f"trial {result.number}: {result.message}", style="red", markup=False, highlight=False
            )
    print(f"sweep directory   {root}")


def exit_code(results: Sequence[Result]) -> int:
    """0 where every trial ended well, 130 after Ctrl-C, else 1."""
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return INTERRUPTED
    return 0 if statuses <= {"done", "stopped"} else 1


def show(trials: Sequence[Trial]) -> None:
    """What ``--dry-run`` prints of a sweep: what would run, and what is refused."""
    for trial in trials:
        refusal = f"   refused: {trial.config}" if isinstance(trial.config, ConfigError) else ""
        print(f"trial {trial.number}   {' '.join(trial.overrides)}{refusal}")
