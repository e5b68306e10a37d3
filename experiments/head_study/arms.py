"""The arms: what the head outputs, what it computes in, how its loss is weighted. Everything else is equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffparam import EPSILON, AngularParam, Schedule, V, loss_weight
from experiments.tokens import TokenSet
from mmar.diffusion_head import DiffusionHead
from mmar.diffusion_loss import DiffusionLoss, diffusion_loss

Precision = Literal["float32", "mixed", "pure"]


@dataclass(frozen=True)
class Arm:
    """One way to train the head.

    Attributes:
        name: Key in records.
        label: As tables print it.
        param: What the head outputs.
        precision: ``float32``; ``mixed``, bf16 forward with float32 master weights and optimizer; ``pure``, bf16 weights and
            optimizer too.
        v_weighted: Whether the squared error is weighted to be the v loss, up to a bound.
    """

    name: str
    label: str
    param: AngularParam
    precision: Precision
    v_weighted: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """What the forward pass computes in."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16


ARMS = {
    arm.name: arm
    for arm in (
        Arm("v_float32", "v, float32", V, "float32"),
        Arm("eps_float32", "eps, float32", EPSILON, "float32"),
        Arm("v_mixed", "v, bf16 fwd", V, "mixed"),
        Arm("eps_mixed", "eps, bf16 fwd", EPSILON, "mixed"),
        Arm("v_pure", "v, pure bf16", V, "pure"),
        Arm("eps_pure", "eps, pure bf16", EPSILON, "pure"),
        Arm("epsw_float32", "eps, v-weighted", EPSILON, "float32", v_weighted=True),
    )
}


@dataclass(frozen=True)
class Recipe:
    """Training, the same for every arm.

    Attributes:
        width: Hidden width of the head.
        depth: Its residual blocks.
        steps: Optimizer steps.
        batch: Tokens per step.
        timesteps_per_token: Noise levels per token.
        learning_rate: AdamW, betas (0.9, 0.95), no weight decay; constant after the warm-up.
        warmup: Steps of linear warm-up.
        weight_bound: Largest weight of the v-weighted arm: min(1 / alpha_bar, bound).
    """

    width: int
    depth: int
    steps: int
    batch: int = 128
    timesteps_per_token: int = 4
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_bound: float = 1000.0


def train(
    arm: Arm,
    recipe: Recipe,
    data: TokenSet,
    schedule: Schedule,
    *,
    seed: int,
    device: str,
    tick: Callable[[int], None],
    weight: Tensor | None = None,
    watch: Callable[[DiffusionLoss], None] | None = None,
) -> DiffusionHead:
    """Train one arm. Data order, timesteps, noise and initial weights depend on the seed alone, not on the arm.

    Args:
        arm: What the head outputs and what it computes in.
        recipe: Shared by all arms.
        data: What it trains on.
        schedule: Training schedule.
        seed: Of everything random.
        device: Where the head is.
        tick: Called with 1 after each step.
        weight: Weight per timestep index; by default the arm's own.
        watch: Called with the loss of each step, after the step.
    """
    torch.manual_seed(seed)
    head = DiffusionHead(data.tokens.shape[1], data.z.shape[1], recipe.width, recipe.depth).to(device)
    if arm.precision == "pure":
        head = head.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup))
    if weight is None and arm.v_weighted:
        weight = loss_weight(schedule.phi, source=arm.param, target=V).clamp(max=recipe.weight_bound)
    draws = torch.Generator().manual_seed(seed)
    tokens, z = data.tokens.to(device), data.z.to(device)

    def network(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return head(x_t, t, condition, dtype=arm.dtype)

    for _ in range(recipe.steps):
        rows = torch.randint(len(data), (recipe.batch,), generator=draws).to(device)
        loss = diffusion_loss(
            network, tokens[rows], z[rows], schedule, param=arm.param,
            timesteps_per_token=recipe.timesteps_per_token, weight=weight, generator=draws,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
        warmup.step()
        if watch is not None:
            watch(loss)
        tick(1)
    return head.requires_grad_(False)
