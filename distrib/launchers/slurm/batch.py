"""What runs inside an allocation, in the batch script's place or in the user's own shell.

Starts the ranks as a step of their own, once or again: after a rank's death in the same allocation
(``max_restarts``), before the time limit and after a node's loss by going back into the queue
(``requeue``). Each start goes on from the run's own newest checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from distrib.checkpoint import list_checkpoints
from distrib.errors import ConfigError, LaunchError
from distrib.launchers.forwarding import identity
from distrib.launchers.slurm import client
from distrib.launchers.slurm.script import ARRAY, WORK, Work
from distrib.launchers.slurm.step import Ending, Step
from distrib.rank_variables import RANK_VARIABLES, first_of, port_of
from distrib.signals import handling

INTERRUPTED = 130
END_SECONDS = 60
"""How long SLURM may take to end a job that it has put back into the queue."""


class Allocation:
    """Runs the job in the allocation that this process is in."""

    def __init__(self, work: Work, *, job: str, starts: int) -> None:
        self._work = work
        self._job = job
        self._starts = starts
        """How often SLURM itself has started this job before."""
        self._step: Step | None = None
        self._asked: list[signal.Signals] = []

    def run(self) -> int:
        """The exit code of the job."""
        restarts = 0
        with handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), self._ask)):
            while True:
                before = self._newest()
                ending = self._start(restarts)
                if ending.code == 0 or self._asked:
                    return self._finish(ending)
                if ending.lost_node and self._may_requeue(before) and self._requeue("a node was lost"):
                    return ending.code
                if restarts == self._work.max_restarts or ending.code == ConfigError.exit_code:
                    return _report(ending)
                restarts += 1
                _report(ending)
                _say(f"notice: starting all ranks again ({restarts} of {self._work.max_restarts})")

    def _start(self, restart: int) -> Ending:
        self._step = Step(self._work, env=self._environment(restart))
        return self._step.run()

    def _finish(self, ending: Ending) -> int:
        """After a job that ended well, or was asked to."""
        if signal.SIGINT in self._asked:
            return INTERRUPTED
        if ending.code != 0:
            return _report(ending)
        if signal.SIGUSR1 in self._asked and self._work.requeue and _is_unfinished(self._work.run_dir):
            self._requeue("its time is almost over")
        return 0

    def _may_requeue(self, before: str) -> bool:
        """Once in any case, and then as long as each start has brought the run further."""
        return self._work.requeue and (self._starts == 0 or self._newest() > before)

    def _requeue(self, why: str) -> bool:
        """Puts the job back into the queue, which ends this process; False where SLURM refuses."""
        try:
            client.requeue(self._job)
        except LaunchError as error:
            _say(f"notice: {why}, and the job could not go back into the queue: {error}")
            return False
        _say(f"notice: {why}; job {self._job} is back in the queue and will go on from {self._newest()}")
        time.sleep(END_SECONDS)
        return True

    def _environment(self, restart: int) -> dict[str, str]:
        """This process's, without any rank of its own, with SLURM's own and what the plan sets."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if name not in RANK_VARIABLES or name.startswith("SLURM_")
        }
        resume = self._work.run_dir if self._newest() > self._work.newest else None
        told = identity(attempt=restart, resume=resume)
        return {**ours, **self._meeting(restart), **self._work.env, **told}

    def _meeting(self, restart: int) -> dict[str, str]:
        """Where the ranks of several steps meet; those of one find it in SLURM's variables."""
        if len(self._work.parts) == 1:
            return {}
        # salloc leaves out the second of them where there are components.
        nodes = os.environ.get("SLURM_JOB_NODELIST_HET_GROUP_0") or os.environ["SLURM_JOB_NODELIST"]
        port = port_of(f"{self._job}/{self._starts}/{restart}")
        return {"MASTER_ADDR": first_of(nodes) or nodes, "MASTER_PORT": str(port)}

    def _newest(self) -> str:
        return newest_checkpoint(Path(self._work.run_dir))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """The ranks save and end by themselves; a second Ctrl-C kills them."""
        again = signal.SIGINT in self._asked and number == signal.SIGINT
        self._asked.append(signal.Signals(number))
        if self._step is not None and again:
            self._step.end()
        elif self._step is not None:
            self._step.tell(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)


def newest_checkpoint(run_dir: Path) -> str:
    """The name of a run's newest finished checkpoint, which sorts after those of earlier ones; or nothing."""
    return next((folder.name for folder in list_checkpoints(run_dir / "checkpoints")), "")


def _is_unfinished(run_dir: str) -> bool:
    """Whether a signal has stopped training before its last step."""
    try:
        summary = json.loads((Path(run_dir) / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    stopped_by = str(summary.get("stopped_by"))
    return stopped_by.startswith("SIG") or "signal" in stopped_by


def _report(ending: Ending) -> int:
    _say(ending.describe())
    return ending.code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def this_job() -> str:
    """What SLURM calls this job; a task of an array by both numbers, because one alone can mean all tasks."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def allocation(work: Work) -> Allocation:
    """``work`` in the allocation that this process is in."""
    return Allocation(work, job=this_job(), starts=int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def main(folder: str) -> int:
    """The batch script's process; in an array, that of one trial."""
    run_dir, trials = Path(folder), Path(folder) / ARRAY
    if trials.exists():
        run_dir = Path(json.loads(trials.read_text(encoding="utf-8"))[int(os.environ["SLURM_ARRAY_TASK_ID"])])
    return allocation(Work.from_json((run_dir / WORK).read_text(encoding="utf-8"))).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
