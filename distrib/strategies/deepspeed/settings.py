"""The configuration DeepSpeed is given: what ours decides, and the user's own keys on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from distrib.core import PrecisionName
from distrib.errors import ConfigError

Offload = Literal["none", "optimizer", "parameters"]

ELSEWHERE = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.microbatch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.microbatch_size, from which it follows",
    "managed_gradient_accumulation": "train.global_batch_size and train.microbatch_size",
    "gradient_clipping": "train.max_grad_norm",
    "gradient_allreduce_op": "nothing: the loss is divided once, by the targets of the global batch",
    "prescale_gradients": "nothing: the loss is divided once, by the targets of the global batch",
    "gradient_predivide_factor": "nothing: the loss is divided once, by the targets of the global batch",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "optimizer",
}
"""DeepSpeed's name of what our configuration decides -> where it is decided."""


BUCKET_ELEMENTS = 25 * 2**20 // 4
"""Of the gradient, reduced together: 25 MiB in fp32, as DDP's buckets. DeepSpeed's own is 2 GB, so that the
copies in it are another gradient of every model up to that size."""


def check_settings(config: Mapping[str, Any], *, stage: int, offload: Offload) -> None:
    """Raises `ConfigError` for a stage that does not exist and for keys that ours decide."""
    if stage not in (1, 2, 3):
        raise ConfigError("strategy.stage", stage, "ZeRO has the stages 1, 2 and 3")
    if offload not in ("none", "optimizer", "parameters"):
        raise ConfigError("strategy.offload", offload, "must be none, optimizer or parameters")
    if offload == "parameters" and stage != 3:
        remedy = f"stage {stage} keeps whole weights on every rank; use strategy=zero3 or offload=optimizer"
        raise ConfigError("strategy.offload", offload, remedy)
    for key, place in ELSEWHERE.items():
        if key in config:
            raise ConfigError(f"strategy.config.{key}", config[key], f"remove it: decided by {place}")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ConfigError("strategy.config.zero_optimization", zero, "must be a mapping")
    if zero.get("stage", stage) != stage:
        remedy = f"remove it: strategy.stage={stage} decides; use strategy=zero{zero['stage']}"
        raise ConfigError("strategy.config.zero_optimization.stage", zero["stage"], remedy)


def check_precision(precision: PrecisionName) -> None:
    """Raises `ConfigError` for a precision the engine's master weights do not have."""
    if precision == "fp64":
        remedy = "DeepSpeed keeps master weights in fp32; use precision=fp32, or strategy=ddp or fsdp"
        raise ConfigError("precision", precision, remedy)
    if precision == "fp16":
        raise ConfigError("precision", precision, "has no loss scale here; use precision=bf16")


def engine_config(
    config: Mapping[str, Any],
    *,
    stage: int,
    offload: Offload,
    precision: PrecisionName,
    max_grad_norm: float | None,
) -> dict[str, Any]:
    """DeepSpeed's configuration; the user's ``config`` comes last and was checked not to contradict."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET_ELEMENTS}
    if stage == 3:
        zero["contiguous_gradients"] = False  # else a whole bucket stays allocated between steps
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # a divisor of the loss, which is divided already
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled first
        **_autocast(precision),
        **config,
        "zero_optimization": {**zero, **config.get("zero_optimization", {})},
    }


def _autocast(precision: PrecisionName) -> dict[str, Any]:
    if precision != "bf16":
        return {}
    # No module is listed as safe, so that gradients are summed in fp32 as every strategy does.
    return {
        "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
