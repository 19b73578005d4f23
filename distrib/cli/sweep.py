"""``distrib train -m``: many runs, each with all the processes it asks for.

::

    multirun/<name>/<time>/       run_dir=... on the command line replaces this path
        sweep.json                all trials, rewritten when one starts or ends
        sweep.html                the page
        0/ 1/ 2/ ...              the run directory of each trial

``resume=multirun/latest`` goes on with a sweep (`distrib.cli.sweep_resume`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distrib.cli.rundir import link_latest, make_fresh
from distrib.cli.trials import Asked, ask, group_name, grouped
from distrib.config import RunConfig
from distrib.errors import ConfigError
from distrib.sweeps.driver import Driver, Trial
from distrib.sweeps.results import Objective, Record, exit_code
from distrib.sweeps.running import Background, Foreground, LaunchTogether, Runner, Together
from distrib.targets import build

SWEEPS = Path("multirun")
"""Below the working directory."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep that is about to run or to go on."""

    asked: Asked
    root: Path
    record: Record
    planned: Sequence[Trial]
    """Those known beforehand that still have to run."""
    example: RunConfig
    """One run, for what all share."""

    def driver(self, runner: Runner, *, is_main: bool = True) -> Driver:
        """What runs it."""
        from distrib.sweeps.page import write_page
        from distrib.sweeps.screen import screen_of

        return Driver(
            search=self.asked.search,
            space=self.asked.space,
            compose=lambda number, own: grouped(self.asked.trial(number, own), root=self.root),
            root=self.root,
            record=self.record,
            planned=self.planned,
            runner=runner,
            screen=screen_of(plain=isinstance(runner, Foreground)),
            is_main=is_main,
            settled=partial(write_page, self.root, space=self.asked.space),
        )


def sweep(overrides: Sequence[str], *, config_dirs: Sequence[str]) -> int:
    """Trains every trial; 0 where all ended well, 130 after Ctrl-C, else 1."""
    from distrib.cli.sweep_resume import find, locked, resumed, split_resume
    from distrib.cli.table import print_results

    resume, typed = split_resume(overrides)
    if resume is None:
        prepared = fresh(typed, config_dirs=config_dirs)
        with locked(prepared.root):
            record = run(prepared)
    else:
        with locked(find(resume)):
            prepared = resumed(resume, typed, config_dirs=config_dirs)
            record = run(prepared)
    print_results(record, prepared.root, config_dirs=config_dirs)
    keep(prepared, record)
    return exit_code(record.trials)


def run(sweep: Sweep) -> Record:
    """Runs what is left of a sweep by the runner that suits it."""
    with runner_for(sweep) as runner:
        return sweep.driver(runner).run()


def keep(sweep: Sweep, record: Record) -> None:
    """Hands the whole sweep to the trackers that keep one, as configured for its trials."""
    from distrib.sweeps.summary import sweep_info
    from distrib.tracking.base import SweepTracker

    config = sweep.example
    for name, target in config.tracking.items():
        tracker = build(target, key=f"tracking.{name}", plugins=config.plugins)
        if isinstance(tracker, SweepTracker):
            group = group_name(config.name, root=sweep.root)
            tracker.sweep(sweep_info(record, name=group, root=sweep.root, space=sweep.asked.space))


def fresh(overrides: Sequence[str], *, config_dirs: Sequence[str]) -> Sweep:
    """A new sweep, with its directory made. Raises `ConfigError` for one in which nothing can run."""
    asked = ask(overrides, config_dirs=config_dirs)
    return new(asked, asked.trials(), overrides=overrides, root=make_root)


def new(
    asked: Asked,
    trials: Sequence[Trial],
    *,
    overrides: Sequence[str],
    root: Callable[[Sequence[RunConfig]], Path],
) -> Sweep:
    """A sweep of ``trials`` in the directory that ``root`` makes for runs like these."""
    configs = [trial.config for trial in trials if isinstance(trial.config, RunConfig)]
    example = asked.example(trials)
    check(asked, example, adaptive=not configs)
    folder = root(configs or [example])
    record = Record(
        name=example.name,
        overrides=tuple(word for word in overrides if not word.startswith("run_dir=")),
        objective=Objective.of(example),
        trials=(),
    )
    planned = [grouped(trial, root=folder) for trial in trials]
    return Sweep(asked=asked, root=folder, record=record, planned=planned, example=example)


def check(asked: Asked, example: RunConfig, *, adaptive: bool) -> None:
    """Refuses a search that would compare what cannot be compared."""
    pruning = asked.search.prune_after_trials is not None
    if pruning and example.train.eval_every is None and "train.eval_every" not in asked.space:
        raise ConfigError(
            "train.eval_every",
            "null",
            "sweep.prune_after_trials compares evaluations during training: say after how many steps each",
        )
    for key in ("task", "experiment"):
        if key in asked.space and (adaptive or pruning):
            raise ConfigError(
                key,
                ",".join(asked.space[key].texts(key)),
                "results of different tasks cannot be compared: search each by a sweep of its own",
            )


def make_root(configs: Sequence[RunConfig]) -> Path:
    """The new directory of a sweep, named after the first trial that can run."""
    given = {config.run_dir for config in configs}
    if given == {None}:
        root = make_fresh(SWEEPS / configs[0].name)
        link_latest(SWEEPS, root)
        return root
    root = Path(configs[0].run_dir or "").resolve()
    if root.exists() and any(root.iterdir()):
        raise ConfigError(
            "run_dir", root, f"a sweep needs a new directory; go on with an old one by -m resume={root}"
        )
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def runner_for(sweep: Sweep) -> Iterator[Runner]:
    """As one job where the launcher takes many; else one after another, unless the search says otherwise."""
    from distrib.cli.launching import early_server, launch
    from distrib.cli.trial import command
    from distrib.sweeps.seats import Machine, Seats

    search = sweep.asked.search
    at_once = 1 if search.parallel == "auto" else search.parallel
    if (together := _together(sweep)) is not None:
        yield Together(together)
    elif at_once == 1 and search.prune_after_trials is None:
        with early_server() as server:
            yield Foreground(partial(launch, server=server))
    else:
        yield Background(command, seats=Seats(at_once, machine=Machine.here()))


def _together(sweep: Sweep) -> LaunchTogether | None:
    """What runs all trials as one job; None where the launcher or the search has no such way."""
    from distrib.cli.launching import launch_together

    asked = sweep.asked
    parallel = asked.search.parallel
    if parallel == 1 or asked.search.prune_after_trials:
        return None
    if parallel == "auto" and not asked.search.plan(asked.space):
        return None  # each trial waits for the results of those before it
    configs = [trial.config for trial in sweep.planned if isinstance(trial.config, RunConfig)]
    return launch_together(configs, at_once=None if parallel == "auto" else parallel)


def show(overrides: Sequence[str], *, config_dirs: Sequence[str]) -> None:
    """What ``--dry-run`` prints of a sweep: what would run, and what is refused."""
    from distrib.cli.sweep_resume import resumed, split_resume

    resume, typed = split_resume(overrides)
    if resume is None:
        asked = ask(typed, config_dirs=config_dirs)
        trials: Sequence[Trial] = asked.trials()
    else:
        left = resumed(resume, typed, config_dirs=config_dirs)
        asked, trials = left.asked, left.planned
    for trial in trials:
        refusal = f"   refused: {trial.config}" if isinstance(trial.config, ConfigError) else ""
        print(f"trial {trial.number}   {' '.join(trial.overrides)}{refusal}")
    if not trials:
        asked.example([])
        print("each trial follows from the results of those before it; what varies:")
        for key, values in asked.space.items():
            print(f"  {key}   {values}")
