"""The gradient's norm does not depend on how the gradient is cut."""

from __future__ import annotations

import pytest
import torch

from distrib.parallel.norm import LARGE, total_norm


def test_large_gradients_have_exact_norms() -> None:
    """12 million fp32 numbers: right to 1e-6, whole or in shards; torch's own sum is not."""
    gradient = torch.randn(12_000_007, generator=torch.Generator().manual_seed(0))
    exact = gradient.double().norm().item()
    assert total_norm([gradient]).item() == pytest.approx(exact, rel=1e-6)
    assert total_norm(list(gradient.chunk(3))).item() == pytest.approx(exact, rel=1e-6)


def test_small_ones_are_torchs_own() -> None:
    """Bit for bit what `clip_grad_norm_` would clip by."""
    gradients = [torch.randn(40, 30), torch.randn(7)]
    assert total_norm(gradients).equal(torch.nn.utils.get_total_norm(gradients))


@pytest.mark.parametrize("shape", [(LARGE // 8, 16), (3, LARGE)])
def test_any_layout_and_what_is_not_finite(shape: tuple[int, int]) -> None:
    """A transposed gradient is as good as any; one NaN or Inf anywhere spoils the norm."""
    gradient = torch.randn(shape).t()
    assert total_norm([gradient]).item() == pytest.approx(gradient.double().norm().item(), rel=1e-6)
    for bad in (float("nan"), float("inf")):
        spoilt = gradient.contiguous()
        spoilt[-1, -1] = bad
        assert not total_norm([spoilt]).isfinite()
    assert total_norm([]).item() == 0.0
