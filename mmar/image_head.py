"""States z of the language model to image tokens: the losses (paper eq. 3, 4 and 8; appendix A.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffparam import Schedule
from mmar.config import MMARConfig
from mmar.diffusion_head import DiffusionHead
from mmar.diffusion_loss import diffusion_loss
from mmar.layers import ScaledLinear, ZeroLinear
from mmar.noise_draws import Generators, draw_noise_per_image
from mmar.precision import compute_dtype
from mmar.projectors import Projector


@dataclass(frozen=True)
class ImageLoss:
    """Loss over image tokens.

    Attributes:
        mean: Scalar, float32, differentiable.
        per_row: ``(rows,)`` float32, detached: squared error of each token at each timestep, or cross entropy of each token.
        timesteps: ``(rows,)`` of the squared errors; None for codes.
        tokens: Image tokens, before they are repeated for K noise levels.
    """

    mean: Tensor
    per_row: Tensor
    timesteps: Tensor | None
    tokens: int


class DiffusionTokenHead(nn.Module):
    """p(token | z) by diffusion: PostProjector, then the diffusion MLP at K noise levels of each token."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        head, width = config.diffusion_head_config, config.text_config.hidden_size
        self.config = config
        self.projector = Projector(width, width, config.projector_config.post_blocks)
        self.head = DiffusionHead(config.image_config.channels, width, head.width, head.depth)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The training schedule; built late, for constructors run on the meta device."""
        return self.config.schedule_config.build()

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The output for noisy tokens ``(rows, C)`` at ``t (rows,)``, given :meth:`condition` of z; float32.

        The head computes in the dtype of autocast or of its weights, with its own casts: the time in float32 first.
        """
        dtype = compute_dtype(self.head.token_in.weight)
        with torch.autocast(x_t.device.type, enabled=False):
            output: Tensor = self.head(x_t, t, condition, dtype=dtype)
        return output.float()

    def condition(self, z: Tensor) -> Tensor:
        """PostProjector: ``(rows, H)`` to ``(rows, H)``."""
        projected: Tensor = self.projector(z)
        return projected

    def loss(
        self,
        z: Tensor,
        tokens: Tensor,
        *,
        timesteps_per_token: int | None = None,
        generator: Generators = None,
        per_image: Sequence[int] | None = None,
    ) -> ImageLoss:
        """Diffusion loss of clean tokens given their states.

        Args:
            z: ``(rows, H)``.
            tokens: ``(rows, C)``.
            timesteps_per_token: K; as configured by default.
            generator: CPU source of timesteps and noise, or one per image.
            per_image: Rows of each image, where there is a generator for each.
        """
        head = self.config.diffusion_head_config
        repeat, draws = head.timesteps_per_token if timesteps_per_token is None else timesteps_per_token, None
        if isinstance(generator, Sequence):
            rows = [count * repeat for count in per_image or ()]
            draws = draw_noise_per_image(len(self.schedule), rows, tokens.shape[1], generator)
        loss = diffusion_loss(
            self,
            tokens,
            self.condition(z),
            self.schedule,
            param=head.param,
            timesteps_per_token=repeat,
            weight=head.loss_weight(self.schedule),
            generator=None if isinstance(generator, Sequence) else generator,
            draws=draws,
        )
        return ImageLoss(loss.mean, loss.per_row, loss.t, len(tokens))


class CodebookHead(nn.Module):
    """p(code | z): one Linear to the codebook, cross entropy (w/ VQ)."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        size = config.image_config.codebook_size
        self.out = ScaledLinear(config.text_config.hidden_size, size, std=config.initializer_range)

    def forward(self, z: Tensor) -> Tensor:
        """``(rows, H)`` to float32 logits ``(rows, K)``."""
        logits: Tensor = self.out(z)
        return logits.float()

    def loss(self, z: Tensor, codes: Tensor) -> ImageLoss:
        """Cross entropy of codes ``(rows,)`` given ``z (rows, H)``, nats."""
        per_row = functional.cross_entropy(self(z), codes, reduction="none")  # (rows,)
        return ImageLoss(per_row.mean(), per_row.detach(), None, len(codes))


class WholeImageHead(nn.Module):
    """The language model as denoiser: one Linear back to the channels (transfusion-like)."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        self.config = config
        self.out = ZeroLinear(config.text_config.hidden_size, config.image_config.channels)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The training schedule."""
        return self.config.schedule_config.build()

    def forward(self, z: Tensor) -> Tensor:
        """``(..., H)`` to ``(..., C)``, float32."""
        output: Tensor = self.out(z)
        return output.float()

    def step_of(self, timesteps: Tensor) -> Tensor:
        """``(n,)`` positions of timesteps in the schedule (rectified flow's are 1, 2, ..., about): rows of the time table."""
        distance = (self.schedule.timesteps - timesteps.cpu()[:, None]).abs()  # (n, steps)
        return distance.argmin(-1).to(timesteps.device)

    def loss(self, z: Tensor, tokens: Tensor, eps: Tensor, timesteps: Tensor) -> ImageLoss:
        """Squared error of the output for images ``(n, N, C)`` noised with ``eps`` at ``timesteps (n,)``."""
        head = self.config.diffusion_head_config
        phi = self.schedule.phi_at(timesteps.cpu())
        error = (self(z) - head.param.target(tokens.float(), eps, phi)).square().mean(-1)  # (n, N)
        weight = head.loss_weight(self.schedule)
        weighted = error if weight is None else error * weight[self.step_of(timesteps).cpu()].to(error)[:, None]
        per_row = error.detach().flatten()
        return ImageLoss(weighted.mean(), per_row, timesteps.repeat_interleave(error.shape[1]), len(per_row))
