"""The error of a network as an error model: its parts, its energy, one call and all calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import mean_square

from diffparam import ErrorModel, GaussianMixture, Schedule, V, gaussian_sensitivity, plan_ddim, sample
from diffparam.errors import NonFiniteError
from diffparam.network_error import NetworkError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_injected_error_has_its_energy(dtype: torch.dtype, generator: torch.Generator) -> None:
    error, value = NetworkError(0.1, 0.05), 2 * torch.randn(200_000, generator=generator).to(dtype)
    moved = error.apply(value, generator)
    assert moved.dtype is dtype
    seen = mean_square(moved.double() - value.double())
    # kurtosis below 9, N = 200000: standard error 0.6%; a bf16 result is rounded once more, by 1/603 of it: 3e-4 of the energy
    assert error.energy(4.0) == pytest.approx(seen, rel=0.03)
    for side in (value > 1, value < -1):  # the parts add in energy, whatever the sign: 30% of the values, and a bf16 rounding
        expected = error.energy(mean_square(value[side]))
        assert expected == pytest.approx(mean_square((moved.double() - value.double())[side]), rel=0.05)
    small = value.double().abs() < 0.1
    assert mean_square((moved.double() - value.double())[small]) == pytest.approx(0.05**2, rel=0.1)


def test_an_error_of_each_call() -> None:
    error = NetworkError(np.array([0.1, 0.2, 0.0]), [0.0, 0.3, 0.0])
    np.testing.assert_allclose(error.energy(np.array([4.0, 1.0, 5.0])), [0.04, 0.13, 0.0])
    np.testing.assert_allclose(error.energy(1.0), [0.01, 0.13, 0.0])
    assert error.bound(1.0).tolist() == [math.inf, math.inf, 0.0]
    np.testing.assert_allclose(error.relative_share(1.0), [1.0, 0.04 / 0.13, 1.0])
    assert error.rms == pytest.approx(math.sqrt((0.01 + 0.13) / 3))
    assert not error.scales_with_value
    assert error.of_call(0).scales_with_value
    one = error.of_call(1)
    assert (len(error), len(one), one.is_per_call) == (3, 1, False)
    assert one.energy(1.0) == pytest.approx(0.13)
    assert one.bound(1.0) == math.inf
    assert NetworkError(0.0).bound(1.0) == 0.0
    assert isinstance(error, ErrorModel)
    with pytest.raises(ValueError, match=r"of_call\(k\)"):
        error.apply(torch.zeros(3))
    with pytest.raises(ValueError, match="index"):
        error.of_call(3)
    with pytest.raises(ValueError, match="read-only"):
        error.delta[0] = 1.0


def test_an_error_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="same number of calls"):
        NetworkError([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(NonFiniteError, match="delta"):
        NetworkError(math.nan)
    with pytest.raises(ValueError, match="scale must be at least 0"):
        NetworkError(0.1, [0.1, -0.1])
    with pytest.raises(ValueError, match="delta must be a number or an array"):
        NetworkError(np.zeros((2, 2)))


def test_a_run_puts_each_calls_error_on_its_own_call() -> None:
    """An error at one call only moves the sample as that call's gain says, and by nothing where it is zero."""
    plan = plan_ddim(Schedule.cosine(1000).respace(4), param=V)
    x = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = GaussianMixture.gaussian(0.5).model(Schedule.cosine(1000), V)
    exact = sample(network, x, plan)
    for call in range(4):
        scale = np.zeros(4)
        scale[call] = 0.01
        draws = torch.Generator().manual_seed(1)
        moved = sample(network, x, plan, generator=draws, output_error=NetworkError(np.zeros(4), scale)) - exact
        wanted = 0.01 * abs(gaussian_sensitivity(plan, 0.5).output_gain[call])
        assert moved.square().mean().sqrt().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * 4000))
