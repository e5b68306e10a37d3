"""The PLoRA layer: peft's LoRA linear, for the rows of image tokens alone (paper section 3.3.2)."""

from __future__ import annotations

import functools
from typing import Any, Literal, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

from mmar.plora.rows import ImageRows, RowsInbox


class PLoRALinear(LoraLinear):
    r"""A LoRA linear whose adapter sees image tokens only.

    .. math:: y_i = W x_i + b + m_i \frac{\alpha}{r} B A x_i, \qquad m_i = 1 \text{ on image tokens, } 0 \text{ on text}

    Rows of text leave with the bits of the base layer, whatever the adapter holds: they are not multiplied by zero, which
    would turn an infinity into NaN, but never touched. peft makes and stores the parameters, and
    :func:`mmar.plora.add_image_expert` sets the attributes.

    Attributes:
        inbox: Where the rows of the running call are found.
        implementation: For mixed batches. gather: adapt the image rows alone and add them in their places; mask: adapt all
            rows and select. Both round alike.
    """

    inbox: RowsInbox | None = None
    implementation: Literal["gather", "mask"] = "gather"
    _merged_weight: Tensor | None = None

    @property
    def base(self) -> nn.Linear:
        """The frozen layer."""
        return cast(nn.Linear, self.get_base_layer())

    def factors(self, name: str) -> tuple[nn.Linear, nn.Linear]:
        """``lora_A`` and ``lora_B`` of an adapter."""
        return cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, in_features)`` to ``(B, L, out_features)``.

        Without rows (text, or the decoding of text) this is the base layer and costs what that costs. Where no row is an image
        token, gradients of the adapter are zero rather than None.

        Raises:
            RuntimeError: If the layer was not made by :func:`mmar.plora.add_image_expert`.
            ValueError: If the rows are of another shape.
        """
        rows = self._rows(x)
        if rows is None or self.disable_adapters:
            return self.base(x)
        if rows.is_all and self._merged_weight is not None and not torch.is_grad_enabled():
            return functional.linear(x, self._merged_weight, self.base.bias)
        y = self.base(x)  # (B, L, out)
        if rows.is_all:
            return (y + self._delta(x)).to(y.dtype)
        if self.implementation == "mask" and rows.count:
            return torch.where(rows.mask[..., None], (y + self._delta(x)).to(y.dtype), y)
        return self._gather(x, y, rows)

    def _rows(self, x: Tensor) -> ImageRows | None:
        if self.inbox is None:
            raise RuntimeError(
                "PLoRALinear must be told which rows are image tokens, and was not; make it by mmar.plora.add_image_expert, "
                "not by peft alone"
            )
        rows = self.inbox.rows
        if rows is not None and rows.mask.shape != x.shape[:-1]:
            raise ValueError(
                f"image_token_mask must have the leading shape of the activations {tuple(x.shape[:-1])}, got "
                f"{tuple(rows.mask.shape)}; pass one entry per token of this call"
            )
        return rows

    def _gather(self, x: Tensor, y: Tensor, rows: ImageRows) -> Tensor:
        flat = y.flatten(0, -2)  # (B * L, out)
        delta = self._delta(x.flatten(0, -2).index_select(0, rows.index))  # (n, out)
        if delta.dtype == y.dtype:
            return flat.index_add(0, rows.index, delta).view_as(y)
        adapted = (flat.index_select(0, rows.index) + delta).to(y.dtype)  # float32 on bf16: one rounding, as everywhere else
        return flat.index_copy(0, rows.index, adapted).view_as(y)

    def _delta(self, x: Tensor) -> Tensor:
        """``alpha / r * B A x`` of the active adapters, in their dtype or that of autocast."""
        return functools.reduce(torch.add, (self._delta_of(name, x) for name in self.active_adapters))

    def _delta_of(self, name: str, x: Tensor) -> Tensor:
        (down, up), scaling = self.factors(name), self.scaling[name]
        if not torch.is_autocast_enabled(x.device.type):  # else there and back again
            x = self._cast_input_dtype(x, down.weight.dtype)
        delta = up(down(self.lora_dropout[name](x)))
        return delta if scaling == 1 else delta * scaling

    # -- merging ----------------------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the base weight serves text as well.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "the image expert must not be merged into the base weights, which text uses too; where all tokens are image tokens "
            "there is mmar.plora.merged_image_expert, which leaves the base as it is"
        )

    def keep_merged_weight(self, dtype: torch.dtype | None = None) -> None:
        """Hold ``W + alpha / r * B A`` as a second weight, for calls without gradients in which all rows are image tokens.

        Args:
            dtype: Of the second weight; that of the base by default. Summed in float32 and rounded once.
        """
        base = self.base.weight.detach()
        merged = base.float()
        for name in self.active_adapters:
            down, up = (factor.weight.detach().float() for factor in self.factors(name))
            merged = merged + self.scaling[name] * (up @ down)
        self._merged_weight = merged.to(base.dtype if dtype is None else dtype)

    def drop_merged_weight(self) -> None:
        """Let go of the second weight."""
        self._merged_weight = None

    def extra_repr(self) -> str:
        """What ``print`` shows besides the parts."""
        return f"image tokens only, {self.implementation}"

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """As in peft; plain LoRA only.

        Raises:
            ValueError: For DoRA, aLoRA and the other variants, whose rules this layer does not follow.
        """
        super().update_layer(*args, **kwargs)
        if self.lora_variant:
            names = ", ".join(sorted({type(v).__name__ for v in self.lora_variant.values()}))
            raise ValueError(f"the image expert must be plain LoRA, got {names}; leave that option out of the LoraConfig")
