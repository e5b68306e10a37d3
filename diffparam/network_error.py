"""The error of a whole network as an error model: a part that scales with each element and a part that does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_count
from diffparam.errors import NonFiniteError


@dataclass(frozen=True, eq=False)
class NetworkError:
    r"""``value + sqrt(delta^2 value^2 + scale^2) xi`` with Gaussian xi, for one call of a network or for each call of a plan.

    Args:
        delta: Multiplicative part, relative to the value: a number, or an array ``(calls,)`` in the order of the plan.
        scale: Additive part, in units of the value, likewise.
        correlation: Of the xi of two calls, ``(calls, calls)``; None for independent ones. A prediction knows it;
            :meth:`apply`, which sees one call, draws xi anew.
    """

    delta: Any
    scale: Any = 0.0
    correlation: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("delta", "scale"):
            object.__setattr__(self, name, _sizes(getattr(self, name), name))
        shapes = {self.delta.shape, self.scale.shape} - {()}
        if len(shapes) > 1:
            raise ValueError(
                f"delta and scale must have the same number of calls, got {self.delta.shape} and {self.scale.shape}"
            )
        if self.correlation is not None:
            if not self.is_per_call:
                raise ValueError(
                    "correlation must come with a delta or scale for each call, got numbers that serve any call; repeat them, "
                    "np.full(calls, delta)"
                )
            object.__setattr__(self, "correlation", _correlation(self.correlation, len(self)))

    def __len__(self) -> int:
        """Calls; 1 for one that speaks of any call."""
        return max(self.delta.size, self.scale.size)

    @property
    def is_per_call(self) -> bool:
        """Whether each call has an error of its own."""
        return self.delta.ndim > 0 or self.scale.ndim > 0

    def of_call(self, index: int) -> NetworkError:
        """The error of one call of the plan, counted from 0; itself where it speaks of any call."""
        index = check_count(index, "index", low=0, high=len(self) - 1 if self.is_per_call else None)
        pick = [v[index] if v.ndim else v for v in (self.delta, self.scale)]
        return NetworkError(*pick)

    @property
    def rms(self) -> float:
        """Rms error of values of unit mean square, over the calls."""
        return math.sqrt(float(np.mean(self.delta**2 + self.scale**2)))

    @property
    def scales_with_value(self) -> bool:
        """Whether all of it does; :meth:`relative_share` is the part that does."""
        return not self.scale.any()

    def relative_share(self, mean_square: Any) -> Any:
        """Share of the energy that is proportional to the value, in [0, 1]; 1 where there is no error."""
        relative, total = self.delta**2 * self._fitting(mean_square), np.asarray(self.energy(mean_square))
        return np.where(total > 0, relative / np.where(total > 0, total, 1.0), 1.0)

    def energy(self, mean_square: Any) -> Any:
        """delta_k^2 times the value's, plus scale_k^2."""
        energy = self.delta**2 * self._fitting(mean_square) + self.scale**2
        return energy if np.ndim(energy) else float(energy)

    def bound(self, mean_square: Any) -> Any:
        """Infinite wherever there is an error at all: a measured rms is no bound."""
        largest = np.where(self.energy(mean_square) > 0, math.inf, 0.0)
        return largest if largest.ndim else float(largest)

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` with the error in it, xi drawn from ``generator``; formed in at least float32.

        Raises:
            ValueError: If each call has an error of its own; :meth:`of_call` is that of one.
        """
        if self.is_per_call:
            raise ValueError(
                f"the error must be of one call to be applied, got one of {len(self)} calls; use error.of_call(k).apply"
            )
        dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32
        xi = torch.randn(value.shape, generator=generator, dtype=dtype, device=value.device)
        size = torch.hypot(
            value.to(dtype) * float(self.delta), torch.tensor(float(self.scale), dtype=dtype, device=value.device)
        )
        return (value + size * xi).to(value.dtype)

    def _fitting(self, mean_square: Any) -> np.ndarray:
        mean_square = np.asarray(mean_square, dtype=np.float64)
        if self.is_per_call and mean_square.ndim and mean_square.shape[-1] != len(self):
            raise ValueError(
                f"mean_square must have one entry per call ({len(self)}), got shape {mean_square.shape}; "
                "take Calibration.at of the same plan"
            )
        return mean_square


def _correlation(value: Any, calls: int) -> np.ndarray:
    """A symmetric float64 matrix ``(calls, calls)`` with ones on its diagonal, that cannot be written to."""
    array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)
    if array.shape != (calls, calls):
        raise ValueError(f"correlation must have shape ({calls}, {calls}), one row per call, got {array.shape}")
    asymmetry, off_one = np.abs(array - array.T).max(), np.abs(np.diag(array) - 1.0).max()
    if not (np.abs(array).max() <= 1.0 and asymmetry <= 1e-9 and off_one <= 1e-9):  # NaN is none of these
        raise ValueError(
            f"correlation must be symmetric within [-1, 1] with ones on its diagonal, got asymmetry {asymmetry:g}, a diagonal "
            f"off by {off_one:g} and values up to {np.abs(array).max():g}; take that of calibrate(..., correlated=True)"
        )
    array.flags.writeable = False
    return array


def _sizes(value: Any, name: str) -> np.ndarray:
    """A float64 array of numbers of at least 0, ``()`` or ``(calls,)``, that cannot be written to."""
    array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)
    if array.ndim > 1 or not array.size:
        raise ValueError(f"{name} must be a number or an array (calls,), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} must be finite, got {array[~np.isfinite(array)].flat[0]}")
    if (array < 0).any():
        raise ValueError(f"{name} must be at least 0, got {array.min():g}; it is an rms")
    array.flags.writeable = False
    return array
