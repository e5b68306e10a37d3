"""LDM's autoencoders (Rombach et al. 2022; taming-transformers) in the names of diffusers.

diffusers' own converter leaves out the attentions of the f16 models' blocks (50 of 342 weights). The map here is strict: all
weights of the file are used, but for the loss network's, and all of the model are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_RULES: tuple[tuple[str, str], ...] = (
    (r"^(encoder|decoder)\.(conv_in|conv_out)\.", r"\1.\2."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.<\1>.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.<\1>.attentions.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.<\1>.upsamplers.0."),
    (r"^(quant_conv|post_quant_conv|quantize\.embedding)\.", r"\1."),
)
"""Places. LDM counts the levels of the decoder from the pixels, diffusers from the latents: <i> is counted backwards."""

_LEAVES = {
    "resnets": {"nin_shortcut": "conv_shortcut"},
    "attentions": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
}
"""Layers inside a residual block and inside an attention, where the names differ."""

_DROPPED = "loss."
"""Discriminator and perceptual network, used in training only."""


def diffusers_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint under the names, and in the shapes, of a diffusers autoencoder.

    Args:
        state: Weights by LDM's names.
        model: ``AutoencoderKL`` or ``VQModel`` of the same architecture; gives the names that must come out.

    Raises:
        ValueError: One, that says what is left over, what is missing and which shapes differ.
    """
    wanted = model.state_dict()
    levels = len({m[1] for key in wanted if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", key))})
    named = {key: _diffusers_key(key, levels) for key in state if not key.startswith(_DROPPED)}
    got = {new: _linear(new, state[old]) for old, new in named.items() if new is not None}
    problems = {
        "left over in the file": [old for old, new in named.items() if new not in wanted],
        "missing in the file": [key for key in wanted if key not in got],
        "of another shape": [
            f"{key} {tuple(got[key].shape)} instead of {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in got and got[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"the checkpoint's weights must be exactly those of {type(model).__name__}, but {found}")
    return got


def ldm_config(state: Mapping[str, Tensor], *, codebook: bool) -> dict[str, Any]:
    """The arguments of ``AutoencoderKL`` (or ``VQModel`` with ``codebook``) that the shapes of the weights imply.

    Group norms have 32 groups and activations are SiLU in all of LDM's autoencoders: they leave no trace in the shapes.

    Raises:
        ValueError: If these are not the weights of such an autoencoder.
    """
    try:
        levels = range(len({m[1] for key in state if (m := re.match(r"encoder\.down\.(\d+)\.", key))}))
        if not levels:
            raise KeyError("encoder.down.0.block.0.conv1.weight")
        attention = [f"encoder.down.{i}.attn.0.q.weight" in state for i in levels]
        up_attention = [f"decoder.up.{i}.attn.0.q.weight" in state for i in reversed(levels)]
        config: dict[str, Any] = {
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_channels": state["decoder.conv_out.weight"].shape[0],
            "latent_channels": state["decoder.conv_in.weight"].shape[1],
            "layers_per_block": len({m[1] for key in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", key))}),
            "act_fn": "silu",
            "norm_num_groups": 32,
            "block_out_channels": tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels),
            "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention),
            "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in up_attention),
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
            "scaling_factor": 1.0,
            "force_upcast": False,
        }
        if not codebook:
            convolutions = ("quant_conv", "post_quant_conv")
            return {**config, **{f"use_{name}": f"{name}.weight" in state for name in convolutions}}
        entries, dim = state["quantize.embedding.weight"].shape
        return {**config, "norm_type": "group", "num_vq_embeddings": entries, "vq_embed_dim": dim}
    except KeyError as error:
        what = "a VQ autoencoder" if codebook else "an autoencoder"
        raise ValueError(
            f"the checkpoint must be {what} in the names of LDM's code, but {error} is missing; its first names are "
            f"{_listed(state)}. A folder of diffusers is read by from_pretrained"
        ) from error


def _diffusers_key(key: str, levels: int) -> str | None:
    """The name in diffusers, or None for a name that LDM's autoencoders do not have."""
    for pattern, place in _RULES:
        if match := re.match(pattern, key):
            place = re.sub(r"<(\d+)>", lambda m: str(levels - 1 - int(m[1])), match.expand(place))
            layer, _, parameter = key[match.end() :].rpartition(".")
            leaves = next((names for part, names in _LEAVES.items() if f".{part}." in place), {})
            return place + ".".join(filter(None, (leaves.get(layer, layer), parameter)))
    return None


def _linear(key: str, weight: Tensor) -> Tensor:
    """LDM's attentions are 1 x 1 convolutions, those of diffusers linear layers."""
    return weight[:, :, 0, 0] if ".attentions." in key and weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def _listed(keys: Iterable[str], most: int = 4) -> str:
    keys = list(keys)
    return ", ".join(keys[:most]) + (f", ... ({len(keys)} in all)" if len(keys) > most else "")
