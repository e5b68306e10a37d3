"""EmbeddingViT: a transformer on the known image tokens alone (paper section 3.3.2)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmar.config import EmbeddingViTConfig
from mmar.layers import Convolution, LearnedTable, ScaledLinear, XavierLinear, ZeroLinear


def _last(config: EmbeddingViTConfig) -> type[XavierLinear | ZeroLinear]:
    """How the layers that write into the residual stream start."""
    return ZeroLinear if config.zero_init_residual else XavierLinear


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: EmbeddingViTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = XavierLinear(config.hidden_size, 3 * config.hidden_size)
        self.out = _last(config)(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """``(B, n, D)`` to ``(B, n, D)``."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, -1)  # (B, n, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, heads, n, d)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, n, d)
        return self.out(h.transpose(1, 2).reshape(batch, count, width))  # (B, n, D)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: EmbeddingViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        inner = config.intermediate_size or 4 * width
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(config)
        self.up = XavierLinear(width, inner)
        self.down = _last(config)(inner, width)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """``(B, n, D)`` to ``(B, n, D)``."""
        x = x + self.attention(self.attention_norm(x), causal=causal)  # (B, n, D)
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))  # (B, n, D)


class ConvolutionalStem(nn.Module):
    """Convolutions over the latents of an image; unknown ones are zero, and a further channel says which are known.

    Attention alone learns from many images that shapes look the same everywhere; a convolution knows it.

    Args:
        config: Its ``stem_`` fields.
        channels: Numbers per token.
        count: Tokens of an image.
    """

    def __init__(self, config: EmbeddingViTConfig, channels: int, count: int) -> None:
        super().__init__()
        self.grid, self.patch_size = math.isqrt(count), config.stem_patch_size
        inside = [channels // self.patch_size**2 + 1] + [config.stem_width] * config.stem_layers
        self.layers = nn.ModuleList(Convolution(a, b, 3, padding=1) for a, b in pairwise(inside))
        self.out = Convolution(inside[-1], config.hidden_size, self.patch_size, stride=self.patch_size)

    def forward(self, tokens: Tensor, known: Tensor) -> Tensor:
        """``(n, N, channels)``, ``(n, N)`` to ``(n, N, hidden_size)``."""
        g, p = self.grid, self.patch_size
        given = torch.where(known[..., None], tokens, 0.0)  # (n, N, C)
        x = given.unflatten(1, (g, g)).unflatten(3, (p, p, -1)).permute(0, 5, 1, 3, 2, 4)  # (n, c, g, p, g, p)
        is_known = known.to(tokens.dtype).view(-1, 1, g, 1, g, 1).expand(-1, 1, g, p, g, p)
        x = torch.cat((x, is_known), dim=1).reshape(len(tokens), -1, g * p, g * p)  # (n, c + 1, g p, g p)
        for layer in self.layers:
            x = functional.gelu(layer(x))
        return self.out(x).flatten(2).transpose(1, 2)  # (n, N, D)


class EmbeddingViT(nn.Module):
    """Known tokens to features; unknown tokens neither enter nor come out.

    Args:
        config: Sizes. With ``enabled=False`` only the input layers, the position table and the last norm remain.
        channels: Numbers per token.
        count: Tokens of an image.
        causal: Let a token see only those before it in raster order.
    """

    def __init__(self, config: EmbeddingViTConfig, channels: int, count: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.token_in = ScaledLinear(channels, config.hidden_size, std=channels**-0.5)  # unit tokens to unit features
        self.stem = ConvolutionalStem(config, channels, count) if config.stem_layers else None
        self.position = LearnedTable(count, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers if config.enabled else 0))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Features of the known tokens, zero elsewhere.

        Args:
            tokens: ``(n, N, channels)``.
            known: ``(n, N)`` bool. Images are run in groups that know equally many tokens, so no padding takes part.

        Returns:
            ``(n, N, hidden_size)``.
        """
        features = self.token_in(tokens) + self.position.weight  # (n, N, D)
        if self.stem is not None:
            features = features + self.stem(tokens, known)
        out = torch.zeros_like(features)
        counts = known.sum(-1)  # (n,)
        for count in counts.unique().tolist():
            if count:
                rows = (counts == count).nonzero()  # (g, 1)
                columns = known[rows[:, 0]].nonzero()[:, 1].view(-1, count)  # (g, count), raster order
                out[rows, columns] = self._run(features[rows, columns]).to(out.dtype)
        return out

    def _run(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                h = torch.utils.checkpoint.checkpoint(block, h, causal=self.causal, use_reentrant=False)
            else:
                h = block(h, causal=self.causal)  # (g, count, D)
        return self.norm(h)  # (g, count, D)
