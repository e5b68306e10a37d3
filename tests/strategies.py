"""Hypothesis strategies: angles, parameterizations, schedules and dtypes, with the corners that rounding cares about."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from diffparam import EPSILON, FLOW, SCORE, X0, AngularParam, Schedule, V
from diffparam.angle import HALF_PI, namespace
from diffparam.errors import NonFiniteError, SingularParameterization

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Unit roundoff: half the spacing above 1, the bound of one rounding to nearest."""

WIDE = (torch.float64, torch.float32)
NARROW = (torch.bfloat16, torch.float16)


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """The four sample dtypes."""
    return st.sampled_from([*WIDE, *NARROW])


# -- angles -----------------------------------------------------------------------------------------------------------


def near(centre: float, side: int) -> st.SearchStrategy[float]:
    """Angles at logarithmic distances 10**-15 .. 0.1 from ``centre``, on the given side (-1, 1)."""
    return st.floats(-15.0, -1.0).map(lambda e: centre + side * 10.0**e)


def phis() -> st.SearchStrategy[float]:
    """The whole quarter circle: its ends, their neighbourhoods on a log scale, and everything between."""
    ends = st.sampled_from([0.0, HALF_PI, math.nextafter(HALF_PI, 0.0), math.pi / 4])
    tiny = st.floats(-60.0, -1.0).map(lambda e: 10.0**e)
    return st.one_of(st.floats(0.0, HALF_PI, allow_subnormal=False), ends, tiny, near(HALF_PI, -1))


def inner_phis(margin: float = 0.05) -> st.SearchStrategy[float]:
    """Angles at least ``margin`` away from both ends."""
    return st.floats(margin, HALF_PI - margin)


def psis() -> st.SearchStrategy[float]:
    """Output angles: more than a full turn either way."""
    return st.one_of(st.floats(-7.0, 7.0, allow_subnormal=False), st.sampled_from([k * HALF_PI for k in range(-4, 5)]))


def radii() -> st.SearchStrategy[float]:
    """Output scales, 1/256 to 256."""
    return st.floats(-8.0, 8.0).map(lambda e: 2.0**e)


# -- parameterizations ------------------------------------------------------------------------------------------------


def edm_preconditioning(sigma_data: float) -> AngularParam:
    """EDM's F written as its authors do (Karras et al. 2022, table 1): c_skip and c_out of sigma."""
    return AngularParam.from_preconditioning(
        lambda s: sigma_data**2 / (s**2 + sigma_data**2),
        lambda s: s * sigma_data / (s**2 + sigma_data**2) ** 0.5,
        name="edm by hand",
    )


def ahead_of_phi(offset: float, slope: float) -> Callable[[Any], Any]:
    """A psi that is a function of phi: ``phi + offset + slope sin(phi)``."""
    return lambda phi: phi + offset + slope * namespace(phi).sin(phi)


def swelling(amount: float) -> Callable[[Any], Any]:
    """An r that is a function of phi: ``1 + amount phi``."""
    return lambda phi: 1.0 + amount * phi


named_params = st.sampled_from([EPSILON, X0, V, FLOW, SCORE, -V, -FLOW, -EPSILON])
sigma_datas = st.floats(0.1, 4.0)


def params() -> st.SearchStrategy[AngularParam]:
    """Every way to make a parameterization: by name, by constants, by coefficients, by preconditioner, by functions."""
    unit = st.floats(-2.0, 2.0)
    return st.one_of(
        named_params,
        sigma_datas.map(AngularParam.edm),
        sigma_datas.map(AngularParam.optimal),
        st.builds(AngularParam, psis(), radii()),
        st.builds(AngularParam.from_coefficients, unit, unit.filter(lambda b: abs(b) > 1e-3)),
        sigma_datas.map(edm_preconditioning),
        st.builds(lambda c: AngularParam.from_preconditioning(0.0, c), st.floats(0.2, 5.0)),
        st.builds(AngularParam, st.builds(ahead_of_phi, st.floats(0.7, 2.4), st.floats(-0.4, 0.4))),
        st.builds(AngularParam, psis(), st.builds(swelling, st.floats(0.0, 3.0))),
    )


# -- schedules --------------------------------------------------------------------------------------------------------


def schedules() -> st.SearchStrategy[Schedule]:
    """Every constructor, 2 to 200 steps."""
    steps = st.integers(2, 200)
    return st.one_of(
        st.builds(Schedule.cosine, steps),
        st.builds(Schedule.linear, steps),
        st.builds(Schedule.scaled_linear, steps),
        st.builds(lambda n, s: Schedule.rectified_flow(n, shift=s), steps, st.floats(0.2, 6.0)),
        st.builds(lambda n, r: Schedule.karras(n, rho=r), steps, st.floats(1.0, 9.0)),
        st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=20).map(Schedule.from_betas),
        st.lists(st.floats(0.01, 1.5), min_size=2, max_size=20, unique=True).map(lambda a: Schedule.from_angles(sorted(a))),
    )


# -- samples ----------------------------------------------------------------------------------------------------------


def samples(seed: int, *shape: int, dtype: torch.dtype = torch.float64, count: int = 2) -> list[Tensor]:
    """``count`` standard normal tensors from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for _ in range(count)]


# -- tolerances -------------------------------------------------------------------------------------------------------


def is_regular(param: AngularParam, *phi: float, floor: float = 1e-6) -> bool:
    """Whether the parameterization is defined at these angles and |sin(psi - phi)| is at least ``floor``."""
    try:
        return all(abs(param.sin_theta(p)) >= floor and math.isfinite(param.r_at(p)) for p in phi)
    except (SingularParameterization, NonFiniteError):
        return False


def rounding_bound(roundings: float, *terms: Tensor, unit: float = UNIT[torch.float64]) -> Tensor:
    """``roundings`` relative errors of ``unit`` on each of the terms of a sum: the forward error bound of the sum."""
    return roundings * unit * sum(term.double().abs() for term in terms) + 1e-300


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Elementwise ``|actual - expected| <= bound``, in float64."""
    excess = (actual.double() - expected.double()).abs() / bound
    assert bool((excess <= 1).all()), f"error is {excess.max().item():.3g} of its bound"
