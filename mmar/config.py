"""What an MMAR is made of: one checked configuration with a part for each module (paper section 3.3.2)."""

# Annotations are read at run time by `strict`, which checks the type of every field: no `from __future__ import annotations`.
import copy
import dataclasses
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Config

from diffparam import AngularParam, Schedule, loss_weight, parse_parameterization
from mmar.presets import PRESETS

ImageObjective = Literal[
    "masked_diffusion", "causal_diffusion", "masked_codes", "causal_codes", "whole_image_diffusion", "understanding_only"
]
"""How images are modelled.

- masked_diffusion: MMAR: masked tokens in any order, a diffusion head per token.
- causal_diffusion: raster order, causal image attention, a diffusion head per token.
- masked_codes: the paper's "w/ VQ": masked codebook entries, cross entropy.
- causal_codes: raster order, next codebook entry, cross entropy (Chameleon-like).
- whole_image_diffusion: the language model denoises all tokens at once (transfusion-like, appendix A.1).
- understanding_only: images are read, never modelled (LLaVA-like).
"""


class _Part(PreTrainedConfig):
    """A configuration that refuses options it does not know."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _refuse_unknown(self)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}.{name} must be at least 1, got {getattr(self, name)}")


def _refuse_unknown(config: PreTrainedConfig) -> None:
    """An option that transformers does not know becomes an attribute: a misspelt one would change nothing."""
    known = {f.name for f in dataclasses.fields(config)}
    foreign = (k for k in vars(config) if k not in known and not hasattr(type(config), k))
    unknown = sorted(k for k in foreign if not k.startswith("_"))
    if unknown:
        own = sorted(known - {f.name for f in dataclasses.fields(PreTrainedConfig)})
        raise ValueError(f"{type(config).__name__} options must be among {', '.join(own)}; got {', '.join(unknown)}")


@strict
class ImageTokensConfig(_Part):
    """The images as the model sees them; fixed by the image tokenizer.

    Attributes:
        tokenizer: Name of the image tokenizer: kl-16, vq-16, dc-ae, patches, vision-encoder, or your own.
        image_size: Side of the square image, pixels.
        grid: Tokens per side; an image is ``grid * grid`` tokens in raster order.
        channels: Numbers per token (16 for KL-16); for codes, the dimension of a codebook vector.
        codebook_size: Entries of the codebook; None for continuous tokens.
    """

    model_type = "mmar_image_tokens"
    tokenizer: str = "kl-16"
    image_size: int = 256
    grid: int = 16
    channels: int = 16
    codebook_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._require_positive("image_size", "grid", "channels")
        if self.codebook_size is not None and self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, or None for continuous tokens, got {self.codebook_size}")
        if self.tokenizer == "patches" and self.image_size % self.grid:
            raise ValueError(f"image_size must be a multiple of grid for patches, got {self.image_size} and {self.grid}")

    @property
    def count(self) -> int:
        """Tokens of an image."""
        return self.grid * self.grid


@strict
class EmbeddingViTConfig(_Part):
    """The transformer on the known image tokens. Without it (``enabled=False``) its input layer and position table remain.

    Attributes:
        enabled: Whether there are any blocks; the fair switch of the baselines.
        hidden_size: Width.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads; they must divide the width.
        intermediate_size: Width of the MLP; 4 times ``hidden_size`` by default.
        zero_init_residual: Let every block start as the identity, its last layers at zero: a small model sees sooner.
        stem_layers: Convolutions of 3 x 3 before the blocks, beside the linear input layer (Xiao et al. 2021, "Early
            convolutions"); 0 for none, as in the paper.
        stem_width: Their channels.
        stem_patch_size: Latents on a side of a token, which the convolutions see one by one: that of a packed image tokenizer.
    """

    model_type = "mmar_embedding_vit"
    enabled: bool = True
    hidden_size: int = 1024
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    intermediate_size: int | None = None
    zero_init_residual: bool = False
    stem_layers: int = 0
    stem_width: int = 64
    stem_patch_size: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        positive = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "stem_width",
            "stem_patch_size",
        )
        self._require_positive(*positive)
        if self.stem_layers < 0:
            raise ValueError(f"stem_layers must be at least 0, got {self.stem_layers}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} and {self.hidden_size}"
            )


@strict
class ProjectorConfig(_Part):
    """VisProjector and PostProjector: a Linear, then blocks of (activation, Linear) (appendix A.1).

    Attributes:
        vis_blocks: Blocks of the VisProjector.
        post_blocks: Blocks of the PostProjector.
    """

    model_type = "mmar_projector"
    vis_blocks: int = 2
    post_blocks: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if min(self.vis_blocks, self.post_blocks) < 0:
            raise ValueError(f"vis_blocks and post_blocks must be at least 0, got {self.vis_blocks} and {self.post_blocks}")


@strict
class DiffusionHeadConfig(_Part):
    """The diffusion MLP and what its output means.

    Attributes:
        width: Hidden width.
        depth: AdaLN residual blocks.
        prediction_type: Name of an :class:`diffparam.AngularParam`: v_prediction, epsilon, sample, flow, edm, ...
        sigma_data: Standard deviation of the tokens; for edm, trigflow and optimal only.
        timesteps_per_token: Noise levels per condition z in training (K): 4 in stage 1, 8 in stage 2.
        loss_space: Prediction type in whose space all timesteps weigh the same; that of the output by default (eq. 8). An
            epsilon head with v_prediction here separates the paper's ablation from its weighting.
        max_loss_weight: Bound on the weights that ``loss_space`` gives; None for none. From epsilon to v they are
            ``1 / alpha_bar``, 4e8 at the last step of the cosine schedule.
    """

    model_type = "mmar_diffusion_head"
    width: int = 1024
    depth: int = 8
    prediction_type: str = "v_prediction"
    sigma_data: float | int | None = None
    timesteps_per_token: int = 4
    loss_space: str | None = None
    max_loss_weight: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._require_positive("width", "depth", "timesteps_per_token")
        parse_parameterization(self.prediction_type, sigma_data=self.sigma_data)
        if self.loss_space is not None:
            parse_parameterization(self.loss_space)
        if self.max_loss_weight is not None and (self.loss_space is None or not self.max_loss_weight > 0):
            raise ValueError(
                f"max_loss_weight must be positive and needs a loss_space, got {self.max_loss_weight} and {self.loss_space!r}"
            )

    @property
    def param(self) -> AngularParam:
        """What the output means."""
        return parse_parameterization(self.prediction_type, sigma_data=self.sigma_data)

    def loss_weight(self, schedule: Schedule) -> Tensor | None:
        """Weight of each timestep in the loss of the output, ``(len(schedule),)`` float64; None where all are 1."""
        if self.loss_space is None:
            return None
        weight: Tensor = loss_weight(schedule.phi, source=self.param, target=parse_parameterization(self.loss_space))
        return weight if self.max_loss_weight is None else weight.clamp_max(self.max_loss_weight)


@strict
class NoiseScheduleConfig(_Part):
    """The training schedule.

    Attributes:
        name: cosine (the paper's figure 3A fits it), linear, scaled_linear or rectified_flow.
        num_train_timesteps: Steps.
        zero_terminal_snr: Rescale so that the last step is pure noise; an error for epsilon.
        image_first_timesteps: Transfusion-like models, and ``noised_context``: images that are read are noised below this
            timestep (appendix A.1).
    """

    model_type = "mmar_noise_schedule"
    name: Literal["cosine", "linear", "scaled_linear", "rectified_flow"] = "cosine"
    num_train_timesteps: int = 1000
    zero_terminal_snr: bool = False
    image_first_timesteps: int = 500

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._require_positive("num_train_timesteps", "image_first_timesteps")
        if self.image_first_timesteps > self.num_train_timesteps:
            raise ValueError(
                f"image_first_timesteps must be at most num_train_timesteps = {self.num_train_timesteps}, "
                f"got {self.image_first_timesteps}; half of them is the paper's choice"
            )

    def build(self) -> Schedule:
        """The schedule."""
        schedule: Schedule = getattr(Schedule, self.name)(self.num_train_timesteps)
        return schedule.rescale_zero_terminal_snr() if self.zero_terminal_snr else schedule


@strict
class PLoRAConfig(_Part):
    """Adapters on every linear layer of every decoder layer, applied to image tokens only.

    Attributes:
        rank: 512 for 0.5B, 1280 for 7B.
        alpha: Scale is ``alpha / rank``; equal to the rank by default.
        implementation: gather (image rows only) or mask (all rows, multiplied).
    """

    model_type = "mmar_plora"
    rank: int = 512
    alpha: float | int | None = None
    implementation: Literal["gather", "mask"] = "gather"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._require_positive("rank")
        if self.alpha is None:
            self.alpha = float(self.rank)


@strict
class MMARConfig(_Part):
    """A whole model. :meth:`preset` gives the paper's sizes.

    Attributes:
        text_config: The frozen language model.
        image_config: Image tokens.
        embedding_vit_config: EmbeddingViT.
        projector_config: Projectors.
        diffusion_head_config: Diffusion MLP.
        schedule_config: Noise schedule.
        plora_config: Image expert.
        image_objective: See :data:`ImageObjective`.
        image_positions: shared: all tokens of an image have one RoPE position (the paper); sequential: the ablation.
        noised_context: Read images noised in training, below ``schedule_config.image_first_timesteps``; the ablation of
            masked_diffusion's clean context. False for the paper's MMAR.
        image_loss_weight: lambda in ``text loss + lambda image loss`` (eq. 4 has 1).
        image_token_id: Placeholder of an image token in ``input_ids``.
        boi_token_id: Begin of image.
        eoi_token_id: End of image.
    """

    model_type = "mmar"
    sub_configs_defaults: ClassVar = {
        "text_config": Qwen2Config,
        "image_config": ImageTokensConfig,
        "embedding_vit_config": EmbeddingViTConfig,
        "projector_config": ProjectorConfig,
        "diffusion_head_config": DiffusionHeadConfig,
        "schedule_config": NoiseScheduleConfig,
        "plora_config": PLoRAConfig,
    }

    text_config: Any = None
    image_config: Any = None
    embedding_vit_config: Any = None
    projector_config: Any = None
    diffusion_head_config: Any = None
    schedule_config: Any = None
    plora_config: Any = None
    image_objective: ImageObjective = "masked_diffusion"
    image_positions: Literal["shared", "sequential"] = "shared"
    noised_context: bool = False
    image_loss_weight: float | int = 1.0
    image_token_id: int = 151646
    boi_token_id: int = 151647
    eoi_token_id: int = 151648
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _refuse_unknown(self.text_config)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self._check_ids()
        self._check_objective()
        self._check_stem()
        if not self.image_loss_weight >= 0:
            raise ValueError(f"image_loss_weight must be at least 0, got {self.image_loss_weight}")

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """A named size: mmar-0.5b and mmar-7b (the paper's), mmar-tiny, mmar-digits (also -small and -large), mmar-scenes.

        Args:
            name: Of the preset.
            **options: Fields to replace; a dict for a part replaces the entries that it names.
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
        fields = copy.deepcopy(PRESETS[name])  # a configuration keeps its dicts, and whoever has it may change them
        for key, value in options.items():
            fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) else value
        return cls(**fields)

    @property
    def has_codes(self) -> bool:
        """Whether image tokens are entries of a codebook."""
        return self.image_objective.endswith("_codes")

    @property
    def is_causal(self) -> bool:
        """Whether image tokens see only the image tokens before them."""
        return self.image_objective.startswith("causal_")

    @property
    def is_masked(self) -> bool:
        """Whether unknown tokens enter as mask tokens, and any order can be drawn."""
        return self.image_objective.startswith("masked_")

    def _check_ids(self) -> None:
        ids = {name: getattr(self, name) for name in ("image_token_id", "boi_token_id", "eoi_token_id")}
        if len(set(ids.values())) < 3 or min(ids.values()) < 0:
            raise ValueError(f"image_token_id, boi_token_id and eoi_token_id must be different and not negative, got {ids}")

    def _check_stem(self) -> None:
        vit, channels = self.embedding_vit_config, self.image_config.channels
        if vit.stem_layers and self.is_causal:
            raise ValueError(
                f"embedding_vit_config.stem_layers must be 0 for {self.image_objective!r}, got {vit.stem_layers}: convolutions "
                "see later tokens too"
            )
        if vit.stem_layers and channels % vit.stem_patch_size**2:
            raise ValueError(
                f"embedding_vit_config.stem_patch_size must be the latents on a side of a token of {channels} numbers, got "
                f"{vit.stem_patch_size}; 1 for an image tokenizer that is not packed"
            )

    def _check_objective(self) -> None:
        if self.has_codes and self.image_config.codebook_size is None:
            raise ValueError(f"image_config.codebook_size must be given for {self.image_objective!r}, got None")
        if not self.has_codes and self.image_objective != "understanding_only" and self.image_config.codebook_size is not None:
            raise ValueError(
                f"image_config.codebook_size must be None for {self.image_objective!r}, got {self.image_config.codebook_size}; "
                "codes are modelled by masked_codes or causal_codes"
            )
        if self.noised_context and self.image_objective != "masked_diffusion":
            raise ValueError(
                f"noised_context must be False for {self.image_objective!r}, got True; it is the ablation of masked_diffusion"
            )
        at_pure_noise = self.schedule_config.zero_terminal_snr
        if at_pure_noise and abs(float(self.param.sin_theta(self.schedule_config.build().phi[-1]))) < 1e-12:
            raise ValueError(
                f"zero_terminal_snr must be False for {self.param.name}: its output says nothing about the data where there is "
                "only noise; use v_prediction, sample or flow"
            )

    @property
    def param(self) -> AngularParam:
        """What the diffusion output means."""
        param: AngularParam = self.diffusion_head_config.param
        return param
