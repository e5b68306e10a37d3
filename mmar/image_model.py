"""How images are modelled: one class per family, each an input to the language model and a loss on its states.

:class:`TokenModel` is MMAR and its discrete and causal relatives, :class:`WholeImageModel` is transfusion-like,
:class:`ReadOnlyModel` is LLaVA-like. The language model around them is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmar.config import MMARConfig
from mmar.image_batch import ImageBatch
from mmar.image_head import CodebookHead, DiffusionTokenHead, ImageLoss, WholeImageHead
from mmar.image_input import ClearTokensInput, ContextNoise, KnownTokensInput, NoisyTokensInput
from mmar.noise_draws import Generators, draw_image_noise


@dataclass(frozen=True)
class Encoded:
    """Images as the language model reads them.

    Attributes:
        features: ``(n, N, H)``.
        eps: ``(n, N, C)`` noise that was put on them; None without.
        timesteps: ``(n,)`` its level.
    """

    features: Tensor
    eps: Tensor | None = None
    timesteps: Tensor | None = None


class ImageModel(nn.Module, ABC):
    """Input and loss of images."""

    @abstractmethod
    def encode(self, images: ImageBatch, generator: Generators) -> Encoded:
        """Images to features for the language model."""

    @abstractmethod
    def loss(
        self,
        images: ImageBatch,
        encoded: Encoded,
        z: Tensor,
        timesteps_per_token: int | None = None,
        generator: Generators = None,
    ) -> ImageLoss | None:
        """Loss given the states ``z (n, N, H)`` of all image tokens; None where no image is a target."""


class TokenModel(ImageModel):
    """A distribution per token given the known ones: masked or causal, continuous or codes."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        self.is_causal = config.is_causal
        self.input = KnownTokensInput(config)
        self.noise = ContextNoise(config) if config.noised_context else None
        self.head = CodebookHead(config) if config.has_codes else DiffusionTokenHead(config)

    def encode(self, images: ImageBatch, generator: Generators = None) -> Encoded:
        """Features of known and mask tokens."""
        if self.noise is None or not (self.training or images.timesteps is not None):
            return Encoded(self.input(images.tokens, images.known))
        return Encoded(self.input(self.noise(images, generator), images.known))

    def loss(
        self,
        images: ImageBatch,
        encoded: Encoded,
        z: Tensor,
        timesteps_per_token: int | None = None,
        generator: Generators = None,
    ) -> ImageLoss | None:
        """Mean over unknown tokens of target images; over all their tokens in raster order."""
        wanted = images.targets[:, None] & (self.is_causal | ~images.known)  # (n, N)
        if not bool(wanted.any()):
            return None
        z, tokens = z[wanted], images.tokens[wanted]  # (M, H), (M, C) or (M,): gathered before they are repeated K times
        if isinstance(self.head, CodebookHead):
            return self.head.loss(z, tokens)
        if isinstance(generator, Sequence):
            generator = [source for source, target in zip(generator, images.targets.tolist(), strict=True) if target]
        per_image = wanted.sum(-1)[images.targets].tolist()
        return self.head.loss(z, tokens, timesteps_per_token=timesteps_per_token, generator=generator, per_image=per_image)


class WholeImageModel(ImageModel):
    """The language model denoises all tokens of an image at one noise level.

    In training images that are drawn get a uniform timestep, images that are read one below ``image_first_timesteps``
    (appendix A.1), and both a loss, as in Transfusion. At inference images that are read are clean at time 0, or noised to a
    given level (figure 7).
    """

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        self.schedule_config = config.schedule_config
        self.input = NoisyTokensInput(config)
        self.head = WholeImageHead(config)

    def encode(self, images: ImageBatch, generator: Generators = None) -> Encoded:
        """Noise the images, then features."""
        device, given = images.tokens.device, images.timesteps
        if given is None and not (self.training or bool(images.targets.any())):
            at_zero = torch.zeros(len(images), dtype=torch.int64, device=device)
            return Encoded(self.input(images.tokens.float(), at_zero))
        limit, uniform, eps = self._limits(images.targets), *draw_image_noise(images.tokens.shape, generator)
        drawn = self.head.schedule.timesteps[(uniform * limit).long()]  # (n,)
        timesteps = drawn if given is None else given.cpu()  # (n,)
        eps = eps.to(device)  # (n, N, C)
        x_t = self.head.schedule.add_noise(images.tokens.float(), eps, timesteps)  # (n, N, C)
        timesteps = timesteps.to(device)
        return Encoded(self.input(x_t, self.head.step_of(timesteps)), eps, timesteps)

    def loss(
        self,
        images: ImageBatch,
        encoded: Encoded,
        z: Tensor,
        timesteps_per_token: int | None = None,
        generator: Generators = None,
    ) -> ImageLoss | None:
        """Squared error of the output for every token; K has no meaning here."""
        if encoded.eps is None or encoded.timesteps is None:
            return None
        return self.head.loss(z, images.tokens, encoded.eps, encoded.timesteps)

    def _limits(self, targets: Tensor) -> Tensor:
        """``(n,)``: below which step of the schedule each image is noised."""
        steps = torch.tensor([self.schedule_config.image_first_timesteps, self.schedule_config.num_train_timesteps])
        return steps[targets.cpu().long()]


class ReadOnlyModel(ImageModel):
    """Images are read, never modelled."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        self.input = ClearTokensInput(config)

    def encode(self, images: ImageBatch, generator: Generators = None) -> Encoded:
        """Project the frozen encoder's features."""
        if bool(images.targets.any()):
            raise ValueError("image_targets must be False: an understanding_only model draws no images; take another objective")
        return Encoded(self.input(images.tokens))

    def loss(
        self,
        images: ImageBatch,
        encoded: Encoded,
        z: Tensor,
        timesteps_per_token: int | None = None,
        generator: Generators = None,
    ) -> None:
        """There is none."""


def build_image_model(config: MMARConfig) -> ImageModel:
    """The family that ``config.image_objective`` names."""
    if config.image_objective == "whole_image_diffusion":
        return WholeImageModel(config)
    if config.image_objective == "understanding_only":
        return ReadOnlyModel(config)
    return TokenModel(config)
