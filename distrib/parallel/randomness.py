"""Randomness that belongs to the microbatch, so that where it runs does not matter."""

from __future__ import annotations

import hashlib
import struct

import torch


def microbatch_seed(seed: int, *, step: int, index: int) -> int:
    """A 63-bit key for microbatch ``index`` of optimizer step ``step``."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_microbatch(seed: int, *, step: int, index: int, device: torch.device) -> None:
    """Seeds the generators that dropout on ``device`` draws from.

    Only the CPU generator and the device's own: `torch.manual_seed` visits every backend, which
    costs more than the rest of a tiny step.
    """
    key = microbatch_seed(seed, step=step, index=index)
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)
