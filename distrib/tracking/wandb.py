"""Weights & Biases, online where there is a key and offline otherwise."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from distrib.errors import MissingDependencyError
from distrib.tracking.environment import without_secrets
from distrib.tracking.files import read_json, write_json

if TYPE_CHECKING:
    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo, SweepInfo

log = logging.getLogger(__name__)
IDENTITY = "wandb.json"


class WandB:
    """Logs to one W&B run per run directory: a resumed run goes on under the same id.

    Nothing waits for the network longer than ``patience`` seconds; where it cannot be reached the
    run is kept in ``<run dir>/wandb`` for ``wandb sync``. The key is wandb's own business
    (``WANDB_API_KEY`` or ``wandb login``) and is neither read into nor written from here.

    Args:
        project: the project's name.
        entity: the user or team; null: the key's default.
        group: runs of one group are shown together.
        mode: null goes online where a key is found, and where ``WANDB_MODE`` does not say otherwise.
        patience: seconds.
    """

    def __init__(
        self,
        *,
        project: str = "distrib",
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        patience: float = 20.0,
    ) -> None:
        self.project, self.entity, self.group = project, entity, group
        self.mode, self.patience = mode, patience
        self._run: Any = None

    def check(self) -> None:
        if find_spec("wandb") is None:
            raise MissingDependencyError("wandb", extra="tracking", needed_for="tracking=wandb")

    def start(self, info: RunInfo) -> None:
        self._run = self._open(
            info.run_dir, name=f"{info.name}-{info.run_dir.name}", config=info.config, group=self.group
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def step(self, record: Mapping[str, float]) -> None:
        numbers = {name: value for name, value in record.items() if name != "step"}
        self._log({"step": record["step"], **{f"train/{name}": value for name, value in numbers.items()}})

    def evaluation(self, step: int, report: Report) -> None:
        self._log({"step": step, **{f"eval/{name}": value for name, value in report.metrics.items()}})

    def notice(self, text: str) -> None: ...

    def sweep(self, info: SweepInfo) -> None:
        """A run of its own in the group of the trials: their table, the objective by trial, the best one."""
        import wandb

        run = self._open(
            info.root, name=info.name, config=info.config, group=self.group or info.name, job_type="sweep"
        )
        for row in info.trials:
            if row[info.metric] is not None:
                run.log({"trial": row["trial"], info.metric: row[info.metric]})
        columns = list(info.trials[0]) if info.trials else []
        cells = [list(row.values()) for row in info.trials]
        run.log({"trials": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})
        run.summary.update(without_secrets(dict(info.summary)))
        run.finish()

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update(without_secrets(dict(summary.get("metrics") or {})))
            self._run.finish()
            self._run = None

    def close(self) -> None:
        """Without `finish` before it the run counts as failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)
            self._run = None

    def _mode(self) -> Literal["online", "offline"]:
        if self.mode is not None:
            return self.mode
        wanted = os.environ.get("WANDB_MODE", "online")
        return "online" if wanted == "online" and has_key() else "offline"

    def _open(self, folder: Path, **options: Any) -> Any:
        """A W&B run kept in ``folder``; offline where the network cannot be reached."""
        import wandb

        mode = self._mode()
        try:
            return self._init(folder, mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if mode == "offline":
                raise
            log.warning("wandb could not be reached; this run is kept offline: %s", error)
            wandb.teardown()  # the attempt holds on to the run's id otherwise
            return self._init(folder, mode="offline", **options)

    def _init(
        self, folder: Path, *, mode: Literal["online", "offline"], config: Mapping[str, Any], **options: Any
    ) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=_identity(folder),
            resume="allow",
            dir=str(folder),
            config=without_secrets(dict(config)),
            mode=mode,
            **options,
            settings=wandb.Settings(
                init_timeout=self.patience,
                finish_timeout=self.patience,
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                # The metadata file holds the command line, where a key may have been typed.
                x_disable_meta=True,
            ),
        )

    def _log(self, values: Mapping[str, float]) -> None:
        # No step argument: the server drops steps it has seen, and a resumed run goes over some again.
        if self._run is not None:
            self._run.log(dict(values))


def has_key(environ: Mapping[str, str] | None = None) -> bool:
    """Whether wandb would find an API key: in the environment, or a login in the netrc file."""
    environ = os.environ if environ is None else environ
    if environ.get("WANDB_API_KEY"):
        return True
    path = Path(environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    host = urlsplit(environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return path.exists() and netrc(path).authenticators(host) is not None
    except NetrcParseError:
        return False


def _identity(run_dir: Path) -> str:
    """The W&B id of this run directory, made once."""
    found = read_json(run_dir / IDENTITY).get("id")
    if found is None:
        found = uuid4().hex[:12]
        write_json(run_dir / IDENTITY, {"id": found})
    return str(found)
