"""``distrib train`` as one rank of a job that torchrun, horovodrun, mpirun or srun has started.

Every rank composes the same words; rank 0 alone makes the directory and tells the others. In a sweep
each rank runs its part of every trial in a fresh process of its own, so that a trial that dies
takes nothing with it; those processes meet at the store that this process (or torchrun) serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.config import RunConfig, digest
from distrib.errors import ConfigError
from distrib.rank_variables import TOKEN, in_torchruns_names
from distrib.world import World

if TYPE_CHECKING:
    from distrib.sweeps.base import Search
    from distrib.sweeps.driver import Trial


def join(config: RunConfig, world: World) -> int:
    """Takes part in one run. Raises `DistribError` where the ranks do not meet or do not agree."""
    from distrib.launchers.logs import kept_in_log
    from distrib.rendezvous import agree
    from distrib.worker import join as meet
    from distrib.worker import work

    if world.elastic:
        run_dir, resume = _known_run_dir(config, world), config.resume
    else:
        world = meet(config, world)
        folder, resume = _place(config, world) if world.rank == 0 else (None, None)
        run_dir, resume = Path(agree(world, "run_dir", folder)), agree(world, "resume", resume)
    with kept_in_log(run_dir / "logs", rank=world.rank):
        work(replace(config, resume=resume or None), run_dir=run_dir, world=world)
    return 0


def _place(config: RunConfig, world: World) -> tuple[str, str]:
    """Rank 0's: the run directory and what to go on from, empty for a fresh start.

    Where torchrun has restarted the job, they are the last attempt's directory and its last checkpoint.
    """
    from distrib.launchers.restarts import has_checkpoint
    from distrib.rendezvous import recall, remember

    before = recall(world, "run_dir")
    run_dir = before or _make_run_dir(config)
    remember(world, "run_dir", run_dir)
    goes_on = before is not None and has_checkpoint(Path(before))
    return run_dir, run_dir if goes_on else config.resume or ""


def join_sweep(overrides: Sequence[str], *, config_dirs: Sequence[str], world: World) -> int:
    """Takes part in every trial of a sweep; rank 0 keeps the results and prints the table."""
    from distrib.cli.sweep import keep, make_root, new
    from distrib.cli.table import print_results
    from distrib.cli.trials import ask
    from distrib.rendezvous import agree, meet
    from distrib.sweeps.results import exit_code
    from distrib.sweeps.running import Foreground

    asked = ask(overrides, config_dirs=config_dirs, world_size=world.size)
    trials = asked.trials()
    _check_joinable(asked.search, trials)
    configs = [trial.config for trial in trials if isinstance(trial.config, RunConfig)]
    world = meet(world, timeout=configs[0].timeouts.start, digest=" ".join(map(digest, configs)))
    root = Path(agree(world, "sweep", str(make_root(configs)) if world.rank == 0 else None))
    sweep = new(asked, trials, overrides=overrides, root=lambda configs: root)
    runner = Foreground(partial(_run_trial, world=world))
    record = sweep.driver(runner, is_main=world.rank == 0).run()
    if world.rank == 0:
        print_results(record, root, config_dirs=config_dirs)
        keep(sweep, record)
    # torchrun ends every rank when one exits with an error: rank 0 must have printed the table by then.
    agree(world, "table", "shown" if world.rank == 0 else None)
    return exit_code(record.trials)


def _check_joinable(search: Search, trials: Sequence[Trial]) -> None:
    """Every rank must know all trials, and has one process for one of them at a time."""
    if not trials or search.parallel not in ("auto", 1) or search.prune_after_trials is not None:
        raise ConfigError(
            "sweep",
            type(search).__name__,
            "ranks that somebody else has started run trials known beforehand, one after another: leave out "
            "sweep.parallel and sweep.prune_after_trials, or start `distrib train -m` by itself",
        )


def _known_run_dir(config: RunConfig, world: World) -> Path:
    """Where ranks are added to a running job, nobody can be asked: the name has to be given."""
    if config.run_dir is None:
        raise ConfigError("run_dir", None, "name it: ranks that join an elastic job later must find it")
    return Path(_make_run_dir(config) if world.rank == 0 else config.run_dir).resolve()


def _make_run_dir(config: RunConfig) -> str:
    from distrib.cli.rundir import make_run_dir
    from distrib.cli.train import announce

    announce(config)
    return str(make_run_dir(config))


def _run_trial(config: RunConfig, run_dir: Path, *, world: World) -> int:
    """This rank's process of one trial, from its start to its exit code."""
    from distrib.launchers.base import Command, LaunchPlan
    from distrib.launchers.starting import popen
    from distrib.launchers.supervise import Supervisor
    from distrib.rendezvous import agree

    # Rank 0 has written the trial's config.yaml before it says so.
    done = str(run_dir) if world.rank == 0 else None
    agree(world, f"trial {run_dir.name}", done, timeout=config.timeouts.collective)
    command = Command(
        argv=LaunchPlan.of_worker(run_dir).argv,
        env=variables(world, trial=run_dir.name),
        rank=world.rank,
        host=f"node {world.node}",
    )
    return Supervisor([command], start=popen, logs=run_dir / "logs").run()


def variables(world: World, *, trial: str) -> dict[str, str]:
    """``world`` in torchrun's names, at the store that is served already, under the trial's own name."""
    return {
        **in_torchruns_names(world),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": f"{world.attempt}/trial-{trial}",
        TOKEN: world.token,
    }
