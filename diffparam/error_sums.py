"""Running sums of what two evaluations of a network differ by, per timestep or bucket: all that a calibration keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffparam._combine import lift
from diffparam.conversion import predict_v
from diffparam.parameterization import AngularParam
from diffparam.schedule import Schedule


@dataclass(frozen=True, eq=False)
class ErrorMeans:
    """Means per element of the output, float64 arrays ``(timesteps,)``.

    Attributes:
        timesteps: Timestep, or the mean timestep of a bucket.
        samples: Samples behind it.
        u_sq: E[u^2] of the reference.
        e_sq: E[e^2].
        u_4: E[u^4].
        u_sq_e_sq: E[u^2 e^2].
        moments: E[x_t^2], E[x_t v_hat], E[v_hat^2] where they were summed, ``(3, timesteps)``.
    """

    timesteps: np.ndarray
    samples: np.ndarray
    u_sq: np.ndarray
    e_sq: np.ndarray
    u_4: np.ndarray
    u_sq_e_sq: np.ndarray
    moments: np.ndarray | None


class ErrorSums:
    """Sums over samples and elements, a handful of numbers per timestep.

    Args:
        edges: Rising edges of buckets, each with its lower edge and the last with both; None for single timesteps.
    """

    def __init__(self, edges: Sequence[float] | None = None) -> None:
        self.edges = None if edges is None else np.asarray(edges, dtype=np.float64)
        if self.edges is not None and (self.edges.ndim != 1 or len(self.edges) < 2 or not (np.diff(self.edges) > 0).all()):
            raise ValueError(f"edges must be at least two rising timesteps, got {self.edges.tolist()}")
        self.rows: dict[float, np.ndarray] = {}
        self.span = (math.inf, -math.inf)

    def add(self, t: np.ndarray, u: Tensor, u_low: Tensor, moments: Sequence[Tensor] | None = None) -> None:
        """One batch of outputs ``(batch, ...)`` at timesteps ``(batch,)``; ``moments`` has three more tensors to sum."""
        u_sq, e_sq = u.square(), (u_low - u).square()
        terms = [u_sq, e_sq, u_sq.square(), u_sq * e_sq, *(moments or ())]
        sums = torch.stack([v.reshape(len(v), -1).sum(1) for v in terms], 1).cpu().double().numpy()
        counts = np.tile([1.0, u[0].numel()], (len(t), 1))
        table = np.hstack([counts, t[:, None], sums])
        keys, which = np.unique(self._bucket(t), return_inverse=True)
        totals = np.zeros((len(keys), table.shape[1]))
        np.add.at(totals, which, table)
        for key, row in zip(keys.tolist(), totals, strict=True):
            self.rows[key] = row + self.rows.get(key, 0.0)
        self.span = (min(self.span[0], float(t.min())), max(self.span[1], float(t.max())))

    def means(self) -> ErrorMeans:
        """What has been seen so far, in rising timesteps.

        Raises:
            ValueError: If that is nothing.
        """
        if not self.rows:
            raise ValueError("batches must yield at least one batch, got none; a generator can be used only once")
        table = np.array([self.rows[key] for key in sorted(self.rows)])
        samples, elements, t = table[:, :3].T
        u_sq, e_sq, u_4, u_sq_e_sq, *moments = table[:, 3:].T / elements
        seen = np.array(moments) if moments else None
        return ErrorMeans(t / samples, samples.astype(np.int64), u_sq, e_sq, u_4, u_sq_e_sq, seen)

    def _bucket(self, t: np.ndarray) -> np.ndarray:
        if self.edges is None:
            return t
        low, high = self.edges[0], self.edges[-1]
        outside = (t < low) | (t > high)
        if outside.any():
            raise ValueError(f"t must lie within edges [{low:g}, {high:g}], got {t[outside][0]:g}; widen the edges")
        return np.minimum(np.searchsorted(self.edges, t, side="right"), len(self.edges) - 1).astype(np.float64)


class PairedErrors:
    """Errors of the same samples at one timestep after another, for how they correlate; all are held, float32 on the CPU."""

    def __init__(self) -> None:
        self.rows: dict[float, Tensor] = {}
        self.shape: tuple[int, ...] | None = None

    def add(self, t: np.ndarray, u: Tensor, u_low: Tensor) -> None:
        """One batch of outputs ``(batch, ...)``, all at one timestep that has not been seen.

        Raises:
            ValueError: If timesteps differ or repeat, or the shape is not that of the batches before.
        """
        if (t != t[0]).any():
            raise ValueError(f"batches must be of one timestep each with correlated=True, got {t.min():g} to {t.max():g}")
        if float(t[0]) in self.rows:
            raise ValueError(f"batches must be of different timesteps with correlated=True, got {t[0]:g} twice; join the two")
        self.shape = self.shape or tuple(u.shape)
        if tuple(u.shape) != self.shape:
            raise ValueError(
                f"batches must hold the same samples with correlated=True, got outputs {tuple(u.shape)} at t = {t[0]:g} after "
                f"{self.shape}"
            )
        self.rows[float(t[0])] = (u_low - u).flatten().float().cpu()

    def correlation(self) -> np.ndarray:
        """``(timesteps, timesteps)``, rising in the timestep: E[e_k e_l] over the two rms; 0 beside an error that is 0."""
        rows = torch.stack([self.rows[t] for t in sorted(self.rows)]).double()
        gram = (rows @ rows.T).numpy()
        size = np.sqrt(np.diag(gram))
        safe = np.where(size > 0, size, 1.0)
        correlation: np.ndarray = np.clip(gram / np.outer(safe, safe), -1.0, 1.0)
        np.fill_diagonal(correlation, 1.0)
        return correlation


def moment_terms(u: Tensor, x_t: Tensor, t: np.ndarray, *, schedule: Schedule, param: AngularParam) -> tuple[Tensor, ...]:
    """x_t^2, x_t v_hat and v_hat^2 per element, of the variance-preserving state: :class:`diffparam.OutputMoments`."""
    phi = schedule.phi_at(torch.tensor(t))
    scale = torch.as_tensor(schedule.state.scale(phi), dtype=torch.float64).expand_as(phi)
    x = x_t.detach().to(u.dtype)
    x = x / lift(scale, x)
    v = predict_v(u, x, phi, param=param)
    return x * x, x * v, v * v


def fit_energy(u_sq: np.ndarray, e_sq: np.ndarray, u_4: np.ndarray, u_sq_e_sq: np.ndarray) -> np.ndarray:
    r"""Slope :math:`\delta^2` of the least-squares line of e^2 on u^2, between 0 and E[e^2]/E[u^2].

    At either end one of the two parts is absent and the other has all of the energy. Where all elements are of one size there
    is no slope to see, and the error is called multiplicative.
    """
    whole = np.where(u_sq > 0, e_sq / np.where(u_sq > 0, u_sq, 1.0), 0.0)
    variance = u_4 - u_sq**2
    spread = variance > 1e-12 * u_sq**2  # else it is what rounding left of the difference
    slope = (u_sq_e_sq - u_sq * e_sq) / np.where(spread, variance, 1.0)
    return np.where(spread, np.clip(slope, 0.0, whole), whole)
