"""Classifier-free guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffparam._checks import check_number, check_pair


def guide(u_uncond: Tensor, u_cond: Tensor, omega: float) -> Tensor:
    """``u_uncond + omega (u_cond - u_uncond)`` (paper section 3.3.4).

    The weights 1 - omega and omega sum to one, so guidance commutes with every conversion of this package (the paper's
    appendix A.4, for any pair of parameterizations). Rescaling, clipping and thresholding do not: they act in one space.

    Args:
        u_uncond: Output without the condition, shape ``(*batch, *event)``; sets dtype and device of the result.
        u_cond: Output with the condition, same shape.
        omega: Guidance scale; 1 is no guidance.

    Below float32 the sum is formed in float32 and rounded once. The difference
    of two near outputs is exact in any format; the rest of the sum is not, and adds roundings to those of the branches.
    """
    check_pair(u_uncond, u_cond, ("u_uncond", "u_cond"))
    omega = check_number(omega, "omega")
    compute = torch.promote_types(u_uncond.dtype, torch.float32) if u_uncond.dtype.itemsize > 1 else torch.float32
    return torch.lerp(u_uncond.to(compute), u_cond.to(compute), omega).to(u_uncond.dtype)


def guidance_error_gain(omega: float) -> float:
    """sqrt(omega^2 + (omega - 1)^2): what independent errors of equal size in the two branches are multiplied by (rms)."""
    omega = check_number(omega, "omega")
    return math.hypot(omega, omega - 1.0)
