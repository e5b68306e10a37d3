"""One linear update as numbers, and how it is applied to a sample."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from diffparam._combine import combine, lift
from diffparam.error_model import ErrorModel, RoundingError
from diffparam.rounding import FloatFormat


@dataclass(frozen=True)
class StepCoefficients:
    """float64 numbers (or batches of them): ``x_s = gain_u u + gain_x x_t + gain_m m + noise z``.

    The memory m of a solver that has one becomes ``memory_u u + memory_x x_t`` after the step.
    """

    gain_u: Any
    gain_x: Any
    noise: Any = 0.0
    gain_m: Any = 0.0
    memory_u: Any = 0.0
    memory_x: Any = 0.0

    def perturbed(
        self, error: ErrorModel, generator: torch.Generator | None = None, *, increments: bool = False
    ) -> StepCoefficients:
        """The same step with an error in each coefficient; what is zero stays zero.

        With ``increments`` the error of ``gain_x`` is that of ``gain_x - 1``, which is what such an update multiplies by.
        """
        if increments:
            change = replace(self, gain_x=self.gain_x - 1.0).perturbed(error, generator)
            return replace(change, gain_x=change.gain_x + 1.0)
        device = "cpu" if generator is None else generator.device

        def apply(value: Any) -> Any:
            if isinstance(value, float) and value == 0.0:
                return value
            moved = error.apply(torch.as_tensor(value, dtype=torch.float64).to(device), generator).cpu()
            return moved.item() if isinstance(value, float) else moved

        return replace(self, **{field.name: apply(getattr(self, field.name)) for field in fields(self)})

    @property
    def is_stochastic(self) -> bool:
        """Whether the step adds noise."""
        return not (isinstance(self.noise, float) and self.noise == 0.0)


def apply_step(
    step: StepCoefficients,
    u: Tensor,
    x_t: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``gain_u u + gain_x x_t + noise z`` without checks; the memory is not read.

    ``z`` is ``noise`` where given, else drawn from ``generator`` in at least float32.
    """
    if not step.is_stochastic:
        return combine(step.gain_x, x_t, step.gain_u, u)
    wide = x_t.dtype if x_t.dtype.itemsize >= 4 else torch.float32  # so that the sum of three is rounded once
    if noise is None:
        noise = torch.randn(x_t.shape, generator=generator, dtype=wide, device=x_t.device)
    noise = noise.to(wide)
    return (combine(step.gain_x, x_t.to(wide), step.gain_u, u) + noise * lift(step.noise, noise)).to(x_t.dtype)


def advance(
    step: StepCoefficients,
    u: Tensor,
    x: Tensor,
    memory: Tensor | None,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One planned update without checks: the next state and the next memory, None where the step writes none.

    Below float32 the memory is float32 and the state is rounded once.
    """
    if not (step.gain_m or step.memory_u or step.memory_x):
        return apply_step(step, u, x, noise=noise, generator=generator), None
    wide = x if x.dtype.itemsize >= 4 else x.float()
    x_next = apply_step(step, u, wide, noise=noise, generator=generator)
    if step.gain_m and memory is not None:
        x_next = torch.add(x_next, memory, alpha=step.gain_m)
    kept = combine(step.memory_x, wide, step.memory_u, u) if step.memory_u or step.memory_x else None
    return x_next.to(x.dtype), kept


def advance_rounded(
    step: StepCoefficients,
    u: Tensor,
    x: Tensor,
    memory: Tensor | None,
    fmt: FloatFormat,
    *,
    increments: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """:func:`advance` as arithmetic in ``fmt`` does it: coefficients, every product and every sum rounded to nearest.

    With ``increments`` the state is added last, ``x + ((gain_x - 1) x + gain_u u + ...)``: a gain near 1, of which a coarse
    format holds nothing but the 1, is then as exact as any other.
    """
    to = RoundingError(fmt)
    step = (replace(step, gain_x=step.gain_x - 1.0) if increments else step).perturbed(to)
    terms = [(step.gain_x, x), (step.gain_u, u), (step.gain_m, memory)]
    if step.is_stochastic:
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        terms.append((step.noise, noise))

    def total(parts: list[tuple[float, Tensor | None]]) -> Tensor:
        out: Tensor | None = None
        for gain, value in parts:
            if value is not None and gain:
                product = to.apply(gain * value.to(x.dtype))
                out = product if out is None else to.apply(out + product)
        return torch.zeros_like(x) if out is None else out

    kept = total([(step.memory_x, x), (step.memory_u, u)]) if step.memory_u or step.memory_x else None
    change = total(terms)
    return to.apply(x + change) if increments else change, kept
