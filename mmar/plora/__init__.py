"""The image expert: LoRA layers of peft that adapt image tokens only (PLoRA, paper section 3.3.2)."""

from mmar.plora.expert import (
    ADAPTER,
    TARGETS,
    add_image_expert,
    image_expert_layers,
    image_expert_parameters,
    merged_image_expert,
    start_adapter,
)
from mmar.plora.linear import PLoRALinear
from mmar.plora.rows import KEYWORD, ImageRows, RowsInbox

__all__ = [
    "ADAPTER",
    "KEYWORD",
    "TARGETS",
    "ImageRows",
    "PLoRALinear",
    "RowsInbox",
    "add_image_expert",
    "image_expert_layers",
    "image_expert_parameters",
    "merged_image_expert",
    "start_adapter",
]
