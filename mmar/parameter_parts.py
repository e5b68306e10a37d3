"""Which part of a model a parameter belongs to, and whether it is frozen: told by its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PARTS = ("language_model", "plora", "embedding_vit", "head", "projectors_and_tables")
"""The parts that sizes are given for; every parameter is in one of them."""

_BACKBONE = ("language_model.", "lm_head.")


@dataclass
class PartSize:
    """Parameters of a part.

    Attributes:
        parameters: All of them.
        trained: Those that are not frozen.
    """

    parameters: int = 0
    trained: int = 0


def part_of(name: str) -> str:
    """One of :data:`PARTS`. The head is the diffusion MLP, or the output layer of the families without one."""
    if "lora_" in name:
        return "plora"
    if name.startswith(_BACKBONE):
        return "language_model"
    if ".embedding_vit." in name:
        return "embedding_vit"
    if ".head.head." in name or ".head.out." in name:
        return "head"
    return "projectors_and_tables"


def is_frozen(name: str) -> bool:
    """Frozen are the language model without its adapters, and the entries of a codebook (paper section 3.3.2)."""
    return part_of(name) == "language_model" or "codebook" in name


def part_sizes(sizes: Iterable[tuple[str, int]]) -> dict[str, PartSize]:
    """Sizes of all parts.

    Args:
        sizes: Name and number of elements of each parameter.
    """
    parts = {part: PartSize() for part in PARTS}
    for name, size in sizes:
        part = parts[part_of(name)]
        part.parameters += size
        part.trained += 0 if is_frozen(name) else size
    return parts
