r"""Exact denoisers: what an ideal network says for Gaussian data and Gaussian mixtures.

All speak through :math:`\hat v = E[\cos\phi\,\varepsilon - \sin\phi\,x \mid x_t]`, which is finite at every angle, and are
rebased to any parameterization from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffparam._checks import check_finite, check_number, check_phi, check_sample
from diffparam._combine import lift
from diffparam.angle import Angle, namespace
from diffparam.conversion import convert
from diffparam.parameterization import AngularParam, V
from diffparam.schedule import Schedule


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data ``x ~ sum_k weights[k] N(means[k], stds[k]^2 I)``.

    Args:
        means: ``(K, D)`` centres.
        stds: ``(K,)`` standard deviations; 0 is a point mass (then phi = 0 is refused).
        weights: ``(K,)`` positive, summing to 1; equal by default.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_sample(self.means, "means")
        if self.means.ndim != 2:
            raise ValueError(f"means must have shape (K, D), got {tuple(self.means.shape)}")
        check_finite(self.means, "means", "they are the centres of the data")
        k = self.means.shape[0]
        if not k:
            raise ValueError(f"means must hold at least one centre, got shape {tuple(self.means.shape)}")
        if self.weights is None:
            object.__setattr__(self, "weights", torch.full((k,), 1.0 / k, dtype=torch.float64))
        for name, value in (("stds", self.stds), ("weights", self.weights)):
            if check_sample(value, name).shape != (k,):
                raise ValueError(f"{name} must have shape ({k},), one per centre, got {tuple(value.shape)}")
        check_finite(self.stds, "stds", "a point mass has 0")
        if not bool((self.stds >= 0).all()):
            raise ValueError(f"stds must not be negative, got {float(self.stds.min())!r}")
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights.tolist()}; divide them by their sum")

    @classmethod
    def gaussian(cls, sigma_data: float, dim: int = 1, mean: float = 0.0) -> GaussianMixture:
        """One isotropic Gaussian ``N(mean, sigma_data^2)`` in ``dim`` dimensions."""
        sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
        return cls(torch.full((1, dim), mean, dtype=torch.float64), torch.tensor([sigma_data], dtype=torch.float64))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``(count, D)`` float64 draws from the data."""
        which = torch.multinomial(self.weights.double(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means.double()[which] + self.stds.double()[which, None] * noise

    def predict_v(self, x_t: Tensor, phi: Angle) -> Tensor:
        """The posterior mean of v at ``phi``, for ``x_t`` of shape ``(batch, D)``, like ``x_t``; computed in float64.

        Raises:
            ValueError: At phi = 0 with a point mass, where the posterior has no density.
        """
        return self._predict_v(x_t, phi).to(x_t.dtype)

    def _predict_v(self, x_t: Tensor, phi: Angle) -> Tensor:
        """The same, left in float64."""
        check_sample(x_t, "x_t")
        if x_t.ndim != 2 or x_t.shape[1] != self.means.shape[1]:
            raise ValueError(f"x_t must have shape (batch, {self.means.shape[1]}), got {tuple(x_t.shape)}")
        phi = check_phi(phi)
        xp = namespace(phi)
        x = x_t.double()[:, None, :]  # (batch, 1, D)
        c, s = (lift(f(phi), x) for f in (xp.cos, xp.sin))
        means, stds = self.means.to(x), self.stds.to(x)[:, None]
        variance = (c * stds) ** 2 + s**2  # (batch or 1, K, 1): of x_t within component k
        if bool((torch.as_tensor(variance) == 0).any()):
            raise ValueError("phi must be above 0 where a component is a point mass, got 0; the clean sample is known there")
        offset = x - c * means  # (batch, K, D)
        dim = x.shape[-1]
        log_density = -0.5 * ((offset**2).sum(-1) / variance[..., 0] + dim * variance[..., 0].log())
        posterior = torch.softmax(log_density + self.weights.to(x).log(), dim=-1)[..., None]
        v = c * s * (1 - stds**2) / variance * offset - s * means
        return (posterior * v).sum(1)

    def output(self, x_t: Tensor, phi: Angle, *, param: AngularParam) -> Tensor:
        """The ideal network's output in any parameterization: in float64, then rounded once to the dtype of ``x_t``."""
        return convert(self._predict_v(x_t, phi), x_t.double(), phi, source=V, target=param).to(x_t.dtype)

    def model(self, schedule: Schedule, param: AngularParam) -> Callable[[Tensor, Tensor], Tensor]:
        """The ideal network as a sampler calls it: ``model(x_t, t)`` with ``t`` of shape ``(batch,)`` from the schedule.

        ``x_t`` comes in the schedule's state convention, as any network of that schedule gets it.
        """

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            phi = schedule.phi_at(t)
            x = x_t.double()  # rounded once, at the end
            return self.output(x / lift(schedule.state.scale(phi), x), phi, param=param).to(x_t.dtype)

        return network
