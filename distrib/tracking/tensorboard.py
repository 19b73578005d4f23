"""TensorBoard event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from distrib.core import OWN
from distrib.errors import MissingDependencyError
from distrib.tracking.environment import without_secrets

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from distrib.tasks.base import Report
    from distrib.tracking.base import RunInfo

SHOWN = ("loss", "grad_norm", "lr", "memory", "seconds")


class TensorBoard:
    """Writes ``<run dir>/tensorboard``: ``train/<field>`` every step, ``eval/<metric>`` as measured.

    Args:
        flush_seconds: between two writes to disk.
    """

    def __init__(self, *, flush_seconds: int = 30) -> None:
        self.flush_seconds = flush_seconds
        self._writer: SummaryWriter | None = None

    def check(self) -> None:
        if find_spec("tensorboard") is None:
            raise MissingDependencyError("tensorboard", extra="tracking", needed_for="tracking=tensorboard")

    def start(self, info: RunInfo) -> None:
        """Events beyond ``first_step`` of an earlier attempt are marked as replaced."""
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(info.run_dir / "tensorboard"),
            purge_step=info.first_step + 1 if info.first_step else None,
            flush_secs=self.flush_seconds,
        )
        config = yaml.safe_dump(without_secrets(dict(info.config)), sort_keys=False)
        self._writer.add_text("config", f"```yaml\n{config}```", info.first_step)

    def step(self, record: Mapping[str, float]) -> None:
        shown = (name for name in record if name in SHOWN or name.startswith(OWN))
        scalars = {f"train/{name}": record[name] for name in shown}
        if record.get("seconds"):
            scalars["train/examples_per_second"] = record["examples"] / record["seconds"]
        self._add(int(record["step"]), scalars)

    def evaluation(self, step: int, report: Report) -> None:
        self._add(step, {f"eval/{name}": value for name, value in report.metrics.items()})

    def notice(self, text: str) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
