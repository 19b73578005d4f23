"""The parts that a rank's memory is divided into."""

from __future__ import annotations

PARTS = ("parameters", "gradients", "optimizer", "activations", "other")
"""Weights of the model; their gradients; the optimizer's slots and master copies; what forward keeps
for backward at its most; every other tensor alive when the optimizer steps."""
