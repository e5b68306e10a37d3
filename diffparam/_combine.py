"""How float64 coefficients meet a sample: the one place where dtype and device are decided."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffparam.angle import Angle, is_traced


def combine(gain_x: Angle, x: Tensor, gain_u: Angle, u: Tensor) -> Tensor:
    """``gain_x * x + gain_u * u`` in the dtype and on the device of ``x``.

    Arithmetic is in the wider dtype of the two tensors and never below float32, so a bf16 sample is rounded once, at the
    end, and not at each operation. (A float64 ``u`` beside a bf16 ``x`` is rounded by way of float32, as torch casts: one value
    in 1e5 is then off by a unit in the last place.)
    """
    dtype = x.dtype
    if u.dtype is not dtype or dtype.itemsize < 4:
        compute = torch.float64 if torch.float64 in (dtype, u.dtype) else torch.float32
        x, u = x.to(compute), u.to(compute)
    if isinstance(gain_x, float) and isinstance(gain_u, float):
        out = torch.mul(x, gain_x)
        # One temporary less. Functorch cannot write a batched u into what an unbatched x made.
        out = torch.add(out, u, alpha=gain_u) if is_traced(u) else out.add_(u, alpha=gain_u)
    else:
        out = x * lift(gain_x, x) + u * lift(gain_u, x)
    return out if out.dtype is dtype else out.to(dtype)


def lift(gain: Angle, like: Tensor) -> Tensor | float:
    """A coefficient in the dtype and device of ``like``, ready to multiply it.

    A one-dimensional coefficient belongs to the batch: it is one value per ``like[i]``, never one per channel.
    """
    if isinstance(gain, float):
        return gain
    gain = torch.as_tensor(gain) if isinstance(gain, np.ndarray) else gain
    if gain.ndim == 1 and like.ndim > 1:
        if gain.shape[0] not in (1, like.shape[0]):
            raise ValueError(
                f"a one-dimensional angle must have one value per batch item ({like.shape[0]}), got {gain.shape[0]}; "
                f"give an angle per channel as shape (1, ..., {gain.shape[0]})"
            )
        gain = gain.reshape(-1, *(1,) * (like.ndim - 1))
    fits = all(g in (1, n) for g, n in zip(gain.shape[::-1], like.shape[::-1], strict=False))
    if gain.ndim > like.ndim or not fits:
        raise ValueError(f"an angle of shape {tuple(gain.shape)} must broadcast to the sample's shape {tuple(like.shape)}")
    return gain.to(device=like.device, dtype=like.dtype)
