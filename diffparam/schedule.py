r"""Noise schedules as angles: phi in float64 on the CPU, one per timestep, rising with the noise.

phi is computed as ``atan2(sqrt(-expm1(L)), exp(L/2))`` with ``L = sum log1p(-beta)``: no digit of the signal is lost where
``alpha_bar`` is near 1, which the usual ``1 - alphas_cumprod`` in float32 loses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_count, check_number, check_pair, check_phi
from diffparam._combine import combine
from diffparam.angle import HALF_PI, is_traced
from diffparam.errors import NonFiniteError, UnknownName
from diffparam.state import FLOW_STATE, VE, VP, StateSpace

Values = Sequence[float] | np.ndarray | Tensor

SPACINGS = ("leading", "linspace", "trailing", "fractional")


@dataclass(frozen=True, eq=False)
class Schedule:
    """Angles of a diffusion process on a grid of timesteps.

    Args:
        phi: float64 CPU tensor ``(num_steps,)``, radians in [0, pi/2], strictly rising.
        timesteps: What the network is told at each angle, ``(num_steps,)``, rising; ``0 .. num_steps - 1`` by default.
        state: Convention of the samples (:class:`diffparam.state.StateSpace`).
        name: What tables call it.
    """

    phi: Tensor
    timesteps: Tensor = field(default=None)  # type: ignore[assignment]
    state: StateSpace = VP
    name: str = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.phi, Tensor):
            raise TypeError(f"phi must be a float64 torch tensor, got {type(self.phi).__name__}; see Schedule.from_angles")
        check_phi(self.phi)
        _require_rising(self.phi, "phi")
        if self.timesteps is None:
            object.__setattr__(self, "timesteps", torch.arange(len(self.phi)))
        if not isinstance(self.timesteps, Tensor):
            raise TypeError(f"timesteps must be a torch tensor, got {type(self.timesteps).__name__}; use torch.tensor(...)")
        if self.timesteps.shape != self.phi.shape:
            raise ValueError(f"timesteps must have the shape of phi {tuple(self.phi.shape)}, got {tuple(self.timesteps.shape)}")
        _require_rising(self.timesteps, "timesteps")

    def __len__(self) -> int:
        return len(self.phi)

    def __repr__(self) -> str:
        ends = f"phi {self.phi[0]:.4g} .. {self.phi[-1]:.6g}"
        return f"Schedule({self.name!r}, {len(self)} steps, {ends}, state {self.state.kind!r})"

    # -- the same angles in other terms -------------------------------------------------------------------------------

    @property
    def alpha(self) -> Tensor:
        """cos(phi), the signal's coefficient, float64."""
        return self.phi.cos()

    @property
    def sigma(self) -> Tensor:
        """sin(phi), the noise's coefficient, float64 (Karras' sigma is ``phi.tan()``)."""
        return self.phi.sin()

    @property
    def alpha_bar(self) -> Tensor:
        """cos(phi)^2, float64."""
        return self.phi.cos() ** 2

    @property
    def log_snr(self) -> Tensor:
        """log(alpha_bar / (1 - alpha_bar)) = -2 log tan(phi), float64; -inf at zero terminal SNR."""
        log_snr = 2.0 * (self.phi.cos().log() - self.phi.sin().log())
        return torch.where(self.phi == HALF_PI, -math.inf, log_snr)  # the double pi/2 stands for the angle itself

    def phi_at(self, t: int | float | Tensor) -> Any:
        """Angle of a timestep of this schedule: a float for a number, a float64 CPU tensor for a tensor of timesteps.

        Timesteps that are not whole numbers are matched to float32 accuracy. Under ``torch.compile`` and ``vmap``, where
        numbers cannot be read, one that is not of this schedule is taken as the nearest.

        Raises:
            ValueError: If a timestep is not one of ``timesteps``.
        """
        query = torch.as_tensor(t).detach().cpu()
        table = self.timesteps.double()
        wanted = query.double().contiguous()
        above = torch.searchsorted(table, wanted).clamp(max=len(self) - 1)
        below = (above - 1).clamp(min=0)
        index = torch.where((table[above] - wanted).abs() <= (table[below] - wanted).abs(), above, below)
        wrong = ((table[index] - wanted).abs() > 2**-23 * table[index].abs()) | wanted.isnan()
        if not is_traced(wrong) and bool(wrong.any()):
            got = query[wrong].flatten()[0].item()
            raise ValueError(
                f"t must be a timestep of this schedule ({table[0]:g} .. {table[-1]:g}, {len(self)} of them), got {got!r}; "
                "take it from Schedule.timesteps, in float32 at least: bf16 cannot tell 1000 timesteps apart"
            )
        return self.phi[index] if isinstance(t, Tensor) else float(self.phi[index])

    def add_noise(self, x0: Tensor, eps: Tensor, t: int | float | Tensor) -> Tensor:
        """The noised sample at timestep ``t`` in this schedule's state convention (eq. 10).

        Args:
            x0: Clean sample, shape ``(*batch, *event)``; sets dtype and device of the result.
            eps: Standard normal noise, same shape.
            t: One timestep, or one per batch item ``(batch,)``.

        Right in every dtype: the coefficients come from the float64 angle, and the sum is rounded once.
        """
        check_pair(x0, eps, ("x0", "eps"))
        phi = self.phi_at(t)
        scale = self.state.scale(phi)
        if isinstance(phi, float):
            return combine(math.cos(phi) * scale, x0, math.sin(phi) * scale, eps)
        return combine(phi.cos() * scale, x0, phi.sin() * scale, eps)

    # -- schedules made from this one ---------------------------------------------------------------------------------

    def respace(self, num_steps: int, spacing: str = "fractional", *, offset: int = 0) -> Schedule:
        """A coarser schedule for sampling: some of these angles, each with its own timestep.

        Args:
            num_steps: Steps to keep, 1 to ``len(self)``.
            spacing: ``fractional`` (improved-diffusion, MAR: keeps both ends), ``linspace`` (the same grid, rounded by numpy),
                ``leading`` (every k-th from the start) or ``trailing`` (every k-th from the end), as in diffusers.
            offset: Added to the indices of ``leading`` (diffusers' ``steps_offset``).
        """
        total = len(self)
        num_steps = check_count(num_steps, "num_steps", low=1, high=total)
        if spacing not in SPACINGS:
            raise UnknownName("spacing", spacing, SPACINGS)
        if offset and spacing != "leading":
            raise ValueError(f"offset must be 0 unless spacing is 'leading', got {offset} with {spacing!r}")
        if num_steps == 1 and spacing in ("fractional", "linspace"):
            raise ValueError(f"num_steps must be at least 2 for {spacing!r}, which keeps both ends, got 1; use 'trailing'")
        if spacing == "fractional":
            stride = (total - 1) / (num_steps - 1)
            index = np.cumsum([0.0] + [stride] * (num_steps - 1)).round().astype(np.int64)  # summed, as there: ties differ
        elif spacing == "linspace":
            index = np.linspace(0, total - 1, num_steps).round().astype(np.int64)
        elif spacing == "leading":
            index = np.arange(num_steps) * (total // num_steps) + check_count(offset, "offset", low=0)
            if index[-1] >= total:
                raise ValueError(f"offset must leave the last index below {total}, got {offset} (index {index[-1]})")
        else:
            index = np.round(np.arange(total, 0, -total / num_steps))[:num_steps].astype(np.int64)[::-1] - 1
        return self.take(index)

    def take(self, index: Sequence[int] | np.ndarray | Tensor) -> Schedule:
        """The schedule at the given positions, which must rise."""
        index = torch.as_tensor(np.ascontiguousarray(index))
        if index.ndim != 1 or not len(index) or index.is_floating_point():
            raise ValueError(f"index must be one-dimensional, whole and not empty, got {index.tolist()!r}")
        return replace(self, phi=self.phi[index], timesteps=self.timesteps[index])

    def up_to(self, t: int | float) -> Schedule:
        """The part of the schedule with timesteps at most ``t``."""
        keep = self.timesteps <= t
        if not bool(keep.any()):
            raise ValueError(f"t must be at least the first timestep {self.timesteps[0].item():g}, got {t!r}")
        return replace(self, phi=self.phi[keep], timesteps=self.timesteps[keep])

    def with_state(self, state: StateSpace) -> Schedule:
        """The same angles for samples in another convention."""
        return replace(self, state=state)

    def rescale_zero_terminal_snr(self) -> Schedule:
        r"""Shift and scale cos(phi) so that the last angle is exactly pi/2 and the first is kept (Lin et al. 2023, alg. 1).

        Formed through ``1 - alpha' = (alpha_0 (1 - alpha) - alpha_T (1 - alpha_0)) / (alpha_0 - alpha_T)`` with
        ``1 - alpha = 2 sin(phi/2)^2``, so that small angles keep their digits.
        """
        if len(self) < 2:
            raise ValueError("a schedule must have at least 2 steps to be rescaled, got 1")
        alpha, versine = self.phi.cos(), 2.0 * (self.phi / 2).sin() ** 2
        first, last = alpha[0], alpha[-1]
        scaled = first * (alpha - last) / (first - last)
        gap = (first * versine - last * versine[0]) / (first - last)
        phi = torch.atan2((gap * (1.0 + scaled)).sqrt(), scaled)
        phi[0], phi[-1] = self.phi[0], math.pi / 2
        return replace(self, phi=phi, name=f"{self.name}, zero terminal SNR")

    # -- constructors -------------------------------------------------------------------------------------------------

    @classmethod
    def from_angles(cls, phi: Values, **options: Any) -> Schedule:
        """From angles in radians. ``options`` are the other fields of the class."""
        return cls(_float64(phi, "phi"), **options)

    @classmethod
    def from_betas(cls, betas: Values, **options: Any) -> Schedule:
        """From the variances of a discrete process, each in (0, 1]; 1 is allowed at the end (zero terminal SNR)."""
        betas = _float64(betas, "betas")
        _require_range(betas, "betas", "(0, 1]", (betas > 0) & (betas <= 1))
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        return cls(torch.atan2((-torch.expm1(log_alpha_bar)).sqrt(), (log_alpha_bar / 2).exp()), **options)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Values, **options: Any) -> Schedule:
        """From alpha_bar in [0, 1], falling. Digits of 1 - alpha_bar that the input has lost (a float32 table) stay lost."""
        a = _float64(alphas_cumprod, "alphas_cumprod")
        _require_range(a, "alphas_cumprod", "[0, 1]", (a >= 0) & (a <= 1))
        return cls(torch.atan2((1.0 - a).sqrt(), a.sqrt()), **options)

    @classmethod
    def from_sigmas(cls, sigmas: Values, **options: Any) -> Schedule:
        """From Karras' sigma = tan(phi), at least 0, rising. Samples are in sigma-space unless ``state`` says otherwise."""
        s = _float64(sigmas, "sigmas")
        _require_range(s, "sigmas", "[0, inf)", s >= 0)
        return cls(s.atan(), **{"state": VE, **options})

    @classmethod
    def from_log_snr(cls, log_snr: Values, **options: Any) -> Schedule:
        """From log(alpha_bar / (1 - alpha_bar)), falling; nothing overflows."""
        lam = _float64(log_snr, "log_snr")
        return cls(torch.atan2((-lam / 4).exp(), (lam / 4).exp()), **options)

    @classmethod
    def cosine(cls, num_steps: int = 1000, *, max_beta: float = 0.999, shift: float = 0.008) -> Schedule:
        """The cosine schedule of improved diffusion (Nichol & Dhariwal 2021), betas clipped at ``max_beta``; MAR's and MMAR's.

        ``beta = 1 - cos(b)^2 / cos(a)^2`` is formed as ``sin(b - a) sin(a + b) / cos(a)^2``, without cancellation.
        """
        num_steps = check_count(num_steps, "num_steps")
        max_beta = check_number(max_beta, "max_beta", low=0.0, high=1.0, open_low=True)
        shift = check_number(shift, "shift", low=0.0)
        edge = (torch.arange(num_steps + 1, dtype=torch.float64) / num_steps + shift) / (1.0 + shift) * (math.pi / 2)
        a, b = edge[:-1], edge[1:]
        betas = ((b - a).sin() * (a + b).sin() / a.cos() ** 2).clamp(max=max_beta)
        return cls.from_betas(betas, name="cosine")

    @classmethod
    def linear(cls, num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """Betas evenly spaced (DDPM, Ho et al. 2020)."""
        num_steps = check_count(num_steps, "num_steps")
        low, high = (check_number(v, n, low=0.0) for v, n in ((beta_start, "beta_start"), (beta_end, "beta_end")))
        return cls.from_betas(torch.linspace(low, high, num_steps, dtype=torch.float64), name="linear")

    @classmethod
    def scaled_linear(cls, num_steps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
        """Square roots of the betas evenly spaced (latent diffusion, Stable Diffusion)."""
        num_steps = check_count(num_steps, "num_steps")
        low, high = (math.sqrt(check_number(v, n, low=0.0)) for v, n in ((beta_start, "beta_start"), (beta_end, "beta_end")))
        return cls.from_betas(torch.linspace(low, high, num_steps, dtype=torch.float64) ** 2, name="scaled_linear")

    @classmethod
    def rectified_flow(cls, num_steps: int = 1000, *, shift: float = 1.0, time_scale: float = 1000.0) -> Schedule:
        """``x_t = (1 - t) x + t eps`` at t = 1/n .. 1, shifted to ``s t / (1 + (s - 1) t)`` (SD3); timesteps are scaled."""
        num_steps = check_count(num_steps, "num_steps")
        shift = check_number(shift, "shift", low=0.0, open_low=True)
        time_scale = check_number(time_scale, "time_scale", low=0.0, open_low=True)
        t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
        noise, signal = shift * t, 1.0 - t  # in the ratio of the shifted pair, and exact at t = 1
        timesteps = time_scale * (noise / (noise + signal))
        return cls(torch.atan2(noise, signal), timesteps=timesteps, state=FLOW_STATE, name="rectified_flow")

    @classmethod
    def karras(cls, num_steps: int = 18, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
        """The sigmas of EDM (Karras et al. 2022, eq. 5), rising; timesteps are ``log(sigma) / 4``; samples in sigma-space."""
        num_steps = check_count(num_steps, "num_steps", low=2)
        sigma_min = check_number(sigma_min, "sigma_min", low=0.0, open_low=True)
        sigma_max = check_number(sigma_max, "sigma_max", low=sigma_min, open_low=True)
        rho = check_number(rho, "rho", low=0.0, open_low=True)
        ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
        sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
        return cls.from_sigmas(sigma, timesteps=sigma.log() / 4, name="karras")


def _float64(values: Values, name: str) -> Tensor:
    out = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if out.ndim != 1 or not len(out):
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {tuple(out.shape)}")
    if not bool(out.isfinite().all()):
        raise NonFiniteError(
            f"{name} must be finite, got {out[~out.isfinite()][0].item()} at position {int((~out.isfinite()).nonzero()[0])}"
        )
    return out


def _require_range(values: Tensor, name: str, interval: str, inside: Tensor) -> None:
    if not bool(inside.all()):
        at = int((~inside).nonzero()[0])
        raise ValueError(f"{name} must lie in {interval}, got {values[at].item()!r} at position {at}")


def _require_rising(values: Tensor, name: str) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {tuple(values.shape)}")
    signed = values if values.is_floating_point() else values.long()  # a difference of unsigned numbers would wrap
    stuck = ~(signed.diff() > 0)  # true of nan
    if bool(stuck.any()):
        at = int(stuck.nonzero()[0])
        raise ValueError(
            f"{name} must rise strictly, got {values[at].item()!r} then {values[at + 1].item()!r} at position {at}; "
            "noise grows with the timestep, and equal neighbours (a table in low precision) cannot be told apart"
        )
