"""Which of the user's variables go along to other hosts, and the name and secret of a job."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from distrib.launchers.job_processes import JOB
from distrib.rank_variables import ATTEMPT, RANK_VARIABLES, RESUME, TOKEN

FORWARDED = (
    "DISTRIB_",
    "CUDA_",
    "FI_",
    "GLOO_",
    "HF_",
    "HOROVOD_",
    "KMP_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "TENSORBOARD_",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
    "UCX_",
    "WANDB_",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
)
"""Beginnings of the names: settings of the libraries a rank uses, not of the user's terminal."""


def forwarded(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's settings for a rank on another host; no other launcher's rank among them."""
    ours = os.environ if environ is None else environ
    return {
        name: value
        for name, value in ours.items()
        if name.startswith(FORWARDED) and name not in RANK_VARIABLES
    }


def identity(*, attempt: int, resume: str | None) -> dict[str, str]:
    """What makes one start of a job a job of its own: a name, a secret, the attempt, what to go on from."""
    return {
        JOB: secrets.token_hex(6),
        TOKEN: secrets.token_hex(16),
        ATTEMPT: str(attempt),
        **({} if resume is None else {RESUME: resume}),
    }
