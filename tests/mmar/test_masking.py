"""Mask ratios: densities that integrate to one and match their draws, counts, and independence of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from mmar.masking import MaskRatio, draw_known, masked_count

RATIOS = [MaskRatio.stage1(), MaskRatio.stage2(), MaskRatio("uniform", 0.0, 1.0), MaskRatio("truncated_normal", 0.0, 1.0)]


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_the_density_is_the_derivative_of_the_quantile(ratio: MaskRatio) -> None:
    for p in (0.05, 0.3, 0.7, 0.95):
        mass, _ = integrate.quad(lambda r: float(ratio.density(np.array(r))), ratio.low, ratio.quantile(p))
        assert mass == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_draws_follow_the_density(ratio: MaskRatio) -> None:
    g = torch.Generator().manual_seed(0)
    draws = np.array([ratio.sample(g) for _ in range(2000)])
    assert draws.min() >= ratio.low
    assert draws.max() <= ratio.high
    uniform = np.interp(draws, [ratio.quantile(p) for p in np.linspace(0, 1, 2001)], np.linspace(0, 1, 2001))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(draws, "uniform").pvalue < 1e-3 or ratio.shape == "uniform"  # the control


def test_the_mean_ratios_that_the_design_was_made_with() -> None:
    """Of the truncated normal on [0.7, 1] 0.867, on [0, 1] 0.80; of the cosine 2/pi."""

    def mean(ratio: MaskRatio) -> float:
        return float(np.mean([ratio.quantile(p) for p in (np.arange(4000) + 0.5) / 4000]))

    assert mean(MaskRatio.stage1()) == pytest.approx(0.867, abs=1e-3)
    assert mean(MaskRatio("truncated_normal", 0.0, 1.0)) == pytest.approx(0.80, abs=1e-2)
    assert mean(MaskRatio.stage2()) == pytest.approx(2 / np.pi, abs=1e-3)


@given(ratio=st.floats(0, 1), tokens=st.integers(1, 300))
def test_counts_round_up_and_are_at_least_one(ratio: float, tokens: int) -> None:
    count = masked_count(ratio, tokens)
    assert 1 <= count <= tokens
    assert count >= ratio * tokens
    assert count == 1 or count < ratio * tokens + 1


def test_images_mask_different_tokens_of_one_number() -> None:
    known = draw_known(64, 16, 0.7, torch.Generator().manual_seed(0))
    assert (known.sum(-1) == 16 - 12).all()
    assert len({tuple(k.tolist()) for k in known}) > 50
    share = known.float().mean(0)  # each token is known in 4 of 16 draws, 5 sigma of a binomial mean
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 64) ** 0.5


@pytest.mark.parametrize(
    "options", [{"shape": "normal"}, {"low": 0.9, "high": 0.7}, {"low": -0.1}, {"high": 1.1}, {"width": 0.0}]
)
def test_bad_densities_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        MaskRatio(**options)


def test_a_bad_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio"):
        draw_known(1, 4, 1.5)
