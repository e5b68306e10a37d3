"""What public samplers do to a network's output before they use it. Each guard says in which parameterization it answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

from torch import Tensor

from diffparam import X0, AngularParam, predict_x0
from experiments.tokens import TokenSet


@dataclass(frozen=True)
class NoGuard:
    """The output as it is."""

    def param(self, param: AngularParam) -> AngularParam:
        """Of the guarded output."""
        return param

    def apply(self, u: Tensor, x_t: Tensor, phi: float, *, param: AngularParam, data: TokenSet) -> Tensor:
        """``u`` for states ``x_t`` ``(batch, D)`` at the angle ``phi``, guarded."""
        return u


@dataclass(frozen=True)
class ClipOutput(NoGuard):
    """Outputs beyond ``bound`` become ``bound``: ``clip_noise`` of Diffusion Forcing (20 by default)."""

    bound: float

    def apply(self, u: Tensor, x_t: Tensor, phi: float, *, param: AngularParam, data: TokenSet) -> Tensor:
        """See :meth:`NoGuard.apply`."""
        return u.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class ClipData(NoGuard):
    """The predicted clean sample is clipped to the range of the data, ``low`` to ``high`` in pixel units (``clip_denoised``).

    It needs data with a range: pixels have one, the latents of an autoencoder do not.
    """

    low: float
    high: float

    def param(self, param: AngularParam) -> AngularParam:
        """It answers with the clean sample."""
        return X0

    def apply(self, u: Tensor, x_t: Tensor, phi: float, *, param: AngularParam, data: TokenSet) -> Tensor:
        """See :meth:`NoGuard.apply`."""
        low, high = ((edge - data.mean) / data.scale for edge in (self.low, self.high))
        return predict_x0(u.to(x_t.dtype), x_t, phi, param=param).clamp(low, high)


@dataclass(frozen=True)
class ClampTime(NoGuard):
    """JiT's sampler: the velocity ``(z - x_hat) / max(n, bound)`` for ``z = (1 - n) x + n eps``, n = sin / (cos + sin).

    Below ``bound`` that is the velocity of the sample ``z + (x_hat - z) n / max(n, bound)``, which is what this answers.
    """

    bound: float

    def param(self, param: AngularParam) -> AngularParam:
        """It answers with the clean sample."""
        return X0

    def apply(self, u: Tensor, x_t: Tensor, phi: float, *, param: AngularParam, data: TokenSet) -> Tensor:
        """See :meth:`NoGuard.apply`."""
        length = cos(phi) + sin(phi)
        noise_level, z = sin(phi) / length, x_t / length
        return z + (predict_x0(u.to(x_t.dtype), x_t, phi, param=param) - z) * (noise_level / max(noise_level, self.bound))
