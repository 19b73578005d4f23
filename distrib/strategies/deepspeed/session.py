"""What DeepSpeed takes of the process: environment, log and communication, all given back."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from distrib.environ import environment
from distrib.errors import MissingDependencyError
from distrib.rendezvous import process_group
from distrib.world import World


def prepare(world: World, *, taken: ExitStack) -> None:
    """Imports DeepSpeed for this device, its words going to the rank's log; ``taken`` undoes it.

    Raises `MissingDependencyError` where it is not installed.
    """
    taken.enter_context(environment(variables(world)))
    handler = log_handler(world)
    taken.callback(handler.close)
    with redirect_stdout(handler.stream), redirect_stderr(handler.stream):
        deepspeed = _imported()
    taken.enter_context(only_handler(logging.getLogger("DeepSpeed"), handler))
    taken.enter_context(warnings.catch_warnings())
    # It calls torch's collectives by their older names, which is not for our user to mend.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")
    if world.device == "cpu":
        # It would compile this shared-memory all-reduce at start (a minute, and a lock in the cache if
        # killed meanwhile), which nothing here calls: gradients travel by reduce-scatter and all-reduce
        # of torch's own process group.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _imported() -> Any:
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
        raise MissingDependencyError("deepspeed", extra="deepspeed", needed_for="DeepSpeed's ZeRO") from error
    return deepspeed


def connect(world: World, *, taken: ExitStack) -> None:
    """Makes our process group the one that DeepSpeed uses; ``taken`` ends it."""
    import deepspeed.comm

    process_group(world)
    taken.callback(_disconnect)
    deepspeed.init_distributed(dist_backend="gloo" if world.device == "cpu" else "nccl", verbose=False)


def _disconnect() -> None:
    import deepspeed.comm.comm
    import torch.distributed as dist
    from deepspeed.utils import groups

    if dist.is_initialized():
        dist.destroy_process_group()
    groups._release_process_group_references()
    deepspeed.comm.comm.cdb = None  # else the next set-up finds the one that is gone
    _restore_linear()
    _count_from_zero()
    _forget_model()


def _restore_linear() -> None:
    """Stage 3 replaces ``torch.nn.functional.linear`` for the rest of the process's life."""
    import torch
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patched

    torch.nn.functional.linear = getattr(Patched, "linear_bk", torch.nn.functional.linear)


def _count_from_zero() -> None:
    """Stage 3 numbers parameters and modules for as long as the process lives, and compares ranks' numbers.

    A process that trained before would disagree with a new one.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    (next_module,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    next_module[0] = 0


def _forget_model() -> None:
    """Stage 3 would keep the model and its process group as long as the process lives, by two tables.

    gloo's threads of a group that is kept go on asking 100 times a second what is new.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    traced = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(traced).nonlocals["func"].cache_clear()


def variables(world: World) -> dict[str, str]:
    """What DeepSpeed reads of a process's place; without a local size it looks for NUMA nodes."""
    place = {"LOCAL_RANK": world.local_rank, "LOCAL_SIZE": world.local_size}
    accelerator = {"DS_ACCELERATOR": "cpu"} if world.device == "cpu" else {}
    return {**{name: str(value) for name, value in place.items()}, **accelerator}


def log_handler(world: World) -> logging.StreamHandler[Any]:
    """Writes to this rank's log; to standard error where there is none."""
    if world.log is None:
        return logging.StreamHandler(sys.stderr)
    world.log.parent.mkdir(parents=True, exist_ok=True)
    return logging.FileHandler(world.log, encoding="utf-8")


@contextmanager
def only_handler(logger: logging.Logger, handler: logging.StreamHandler[Any]) -> Iterator[None]:
    """Gives ``logger`` this handler in place of its own, which would write to standard output."""
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    # The one made by an import just now writes to our stream, which will be closed.
    before = [old for old in logger.handlers if getattr(old, "stream", None) is not handler.stream]
    logger.handlers = [handler]
    try:
        yield
    finally:
        logger.handlers = before
