"""States z to tokens: diffusion or a codebook, with guidance (paper sections 3.3.1 and 3.3.4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from diffparam import AngularParam, Plan
from mmar.generation.randomness import draw_uniform
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.solver import guided, solve, solver_plan
from mmar.image_head import CodebookHead, DiffusionTokenHead


@dataclass(frozen=True)
class ArStep:
    """One autoregressive step.

    Attributes:
        index: Counted from 0.
        total: Steps of the image.
        known_share: Share of its tokens that are known after it.
    """

    index: int
    total: int
    known_share: float


class TokenSampler(ABC):
    """Draws the tokens whose states are given."""

    @abstractmethod
    def __call__(self, z: Tensor, step: ArStep, sources: Sequence[torch.Generator]) -> Tensor:
        """Draw.

        Args:
            z: ``(branches, rows, n, H)``: conditional, and unconditional if there is guidance.
            step: Where in the image this is.
            sources: One generator per row.

        Returns:
            ``(rows, n, C)`` float32, or ``(rows, n)`` codes.
        """


class DiffusionTokenSampler(TokenSampler):
    """p(token | z) by any solver. Both branches see one state, so one noise; their outputs are combined in float32."""

    def __init__(self, head: DiffusionTokenHead, settings: ImageGenerationConfig, param: AngularParam, channels: int) -> None:
        self.head, self.settings, self.param, self.channels = head, settings, param, channels
        self._plans: dict[int, Plan] = {}

    def __call__(self, z: Tensor, step: ArStep, sources: Sequence[torch.Generator]) -> Tensor:
        """As :meth:`TokenSampler.__call__`."""
        branches, rows, count, _ = z.shape
        dtype, omega = getattr(torch, self.settings.sampler_dtype), self.settings.guidance_at(step.known_share)
        condition = self.head.condition(z.flatten(0, 2))  # (branches rows n, H): once for all diffusion steps

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            x_t = x_t.expand(branches, rows, count, -1).flatten(0, 2)  # (branches rows n, C)
            u = self.head(x_t, t[:1].expand(len(x_t)), condition)  # (branches rows n, C)
            return guided(u.view(branches, rows, count, -1).to(dtype), omega)  # (rows, n, C)

        return solve(network, self._plan(step), sources, (count, self.channels), z.device, dtype)

    def _plan(self, step: ArStep) -> Plan:
        steps = self.settings.head_steps_at(step.index, step.total)
        if steps not in self._plans:
            self._plans[steps] = solver_plan(self.settings, self.head.schedule, self.param, steps)
        return self._plans[steps]


class CodeSampler(TokenSampler):
    """p(code | z): guided logits, temperature, top-k and top-p, then one draw per token."""

    def __init__(self, head: CodebookHead, settings: ImageGenerationConfig) -> None:
        self.head, self.settings = head, settings
        self.warpers = [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
        self.warpers += [TopPLogitsWarper(settings.top_p)] if settings.top_p else []
        if settings.temperature > 0:
            self.warpers.insert(0, TemperatureLogitsWarper(float(settings.temperature)))

    def __call__(self, z: Tensor, step: ArStep, sources: Sequence[torch.Generator]) -> Tensor:
        """As :meth:`TokenSampler.__call__`."""
        rows, count = z.shape[1:3]
        logits = guided(self.head(z.flatten(0, 2)).view(len(z), rows * count, -1), self.settings.guidance_at(step.known_share))
        uniform = draw_uniform(sources, (count,), z.device).flatten()  # (rows n,): also where it is not needed
        if self.settings.temperature == 0:
            return logits.argmax(-1).view(rows, count)
        for warper in self.warpers:
            logits = warper(None, logits)  # (rows n, K)
        cumulative = logits.double().softmax(-1).cumsum(-1)  # (rows n, K)
        # One uniform number per code, the same on every device; right: an entry of probability 0 is never taken.
        code = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)  # (rows n, 1)
        return code.view(rows, count)
