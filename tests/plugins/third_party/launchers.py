"""A launcher that starts nothing: it notes what it was asked for and leaves what a run would leave."""

from __future__ import annotations

import json
from pathlib import Path

from distrib.config import load
from distrib.errors import LaunchError
from distrib.launchers.base import Command, Launcher, LaunchPlan
from distrib.launchers.forkserver import ForkServer


class Recording(Launcher):
    """Ends as its arguments say; ``accuracy`` is the run's learning rate, so that trials differ."""

    def __init__(
        self,
        *,
        num_processes: int = 1,
        num_nodes: int = 1,
        threads: int | None = None,
        exit_code: int = 0,
        interrupt: bool = False,
        refuse: str | None = None,
    ) -> None:
        self.num_processes, self.num_nodes, self.threads = num_processes, num_nodes, threads
        self.exit_code, self.interrupt, self.refuse = exit_code, interrupt, refuse

    def plan(self, plan: LaunchPlan) -> list[Command]:
        return [
            Command(argv=plan.argv, env={"RANK": str(rank)}, rank=rank, host="here")
            for rank in range(self.num_processes * self.num_nodes)
        ]

    def launch(self, plan: LaunchPlan, *, server: ForkServer | None = None) -> int:
        config = load(plan.run_dir)
        (Path(plan.run_dir) / "launched.json").write_text(json.dumps([c.argv for c in self.plan(plan)]))
        if self.interrupt:
            raise KeyboardInterrupt
        if self.refuse:
            raise LaunchError(self.refuse)
        if self.exit_code == 0:
            summary = {"metrics": {"accuracy": config.optimizer["lr"]}, "steps": config.train.steps}
            (Path(plan.run_dir) / "summary.json").write_text(json.dumps(summary | {"stopped_by": None}))
        return self.exit_code
