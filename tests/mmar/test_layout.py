"""Blocks, positions and the attention pattern, against a slow definition written from the words of the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmar.layout import ImageIds, SequenceLayout, sequence_layout

IDS = ImageIds(image=100, boi=101, eoi=102, count=3)
IMAGE = [101, 100, 100, 100, 102]


def row(*parts: int | str) -> list[int]:
    """Text lengths and "I" for an image."""
    out: list[int] = []
    for part in parts:
        out += IMAGE if part == "I" else [7] * int(part)
    return out


def batch(rows: list[list[int]], side: str = "right") -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, r in enumerate(rows):
        where = slice(0, len(r)) if side == "right" else slice(width - len(r), width)
        ids[i, where], mask[i, where] = torch.tensor(r), 1
    return ids, mask


def slow_pattern(ids: list[int], valid: list[int]) -> Tensor:
    """Row i sees column j: earlier or itself, or a token of the same image; never padding, but itself."""
    image, current = [], 0
    for token in ids:
        current += token == IDS.boi
        image.append(current if token == IDS.image else 0)
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for i in range(len(ids)):
        for j in range(len(ids)):
            same = image[i] > 0 and image[i] == image[j]
            seen[i, j] = i == j or (bool(valid[i]) and bool(valid[j]) and (j < i or same))
    return seen


parts = st.lists(st.one_of(st.integers(1, 3), st.just("I")), min_size=1, max_size=6)


@given(rows=st.lists(parts, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_the_pattern_is_that_of_the_definition(rows: list[list[int | str]], side: str) -> None:
    ids, mask = batch([row(*r) for r in rows], side)
    layout = sequence_layout(ids, mask, ids=IDS)
    for i in range(len(rows)):
        assert torch.equal(layout.attend[i, 0], slow_pattern(ids[i].tolist(), mask[i].tolist()))


@given(rows=st.lists(parts, min_size=1, max_size=4), shared=st.booleans())
def test_padding_changes_neither_positions_nor_blocks(rows: list[list[int | str]], shared: bool) -> None:
    flat = [row(*r) for r in rows]
    for side in ("left", "right"):
        ids, mask = batch(flat, side)
        layout = sequence_layout(ids, mask, ids=IDS, shared_positions=shared)
        for i, r in enumerate(flat):
            alone = sequence_layout(torch.tensor([r]), ids=IDS, shared_positions=shared)
            assert torch.equal(layout.position_ids[i][mask[i] == 1], alone.position_ids[0])
            assert torch.equal(layout.block[i][mask[i] == 1], alone.block[0])


def test_an_image_takes_one_position() -> None:
    layout = sequence_layout(torch.tensor([row(2, "I", 1, "I", 1)]), ids=IDS)
    assert layout.position_ids[0].tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7, 8, 9]
    assert layout.block[0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 2, 2, 0, 0]


def test_the_ablation_counts_every_token() -> None:
    layout = sequence_layout(torch.tensor([row(2, "I", 1)]), ids=IDS, shared_positions=False)
    assert layout.position_ids[0].tolist() == list(range(8))


def test_causal_images_see_only_what_is_before_them() -> None:
    ids = torch.tensor([row(2, "I", 1)])
    causal: SequenceLayout = sequence_layout(ids, ids=IDS, causal_images=True)
    assert torch.equal(causal.attend[0, 0], torch.ones(8, 8, dtype=torch.bool).tril())
    assert not torch.equal(causal.attend, sequence_layout(ids, ids=IDS).attend)  # the control


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([7, 101, 100, 100, 102], "3 image tokens"),
        ([7, 101, 100, 100, 100], "end-of-image"),
        ([7, 100, 7, 7, 7], "stray"),
        ([7, 102, 7, 7, 7], "stray"),
        ([101, 100, 100, 100, 102, 100], "stray"),
        ([101], "3 image tokens"),
    ],
)
def test_broken_blocks_are_refused(ids: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sequence_layout(torch.tensor([ids]), ids=IDS)


def test_bad_masks_are_refused() -> None:
    ids = torch.tensor([row(4)])
    with pytest.raises(ValueError, match="shape of input_ids"):
        sequence_layout(ids, torch.ones(1, 3), ids=IDS)
    for holes in ([1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0]):
        with pytest.raises(ValueError, match="between tokens"):
            sequence_layout(ids, torch.tensor([holes]), ids=IDS)
    with pytest.raises(ValueError, match="image tokens"):
        sequence_layout(torch.tensor([row(1, "I")]), torch.tensor([[1, 1, 1, 0, 0, 0]]), ids=IDS)
    both = torch.tensor([[0, 1, 1, 0]])
    assert sequence_layout(ids, both, ids=IDS).position_ids[0].tolist() == [0, 0, 1, 1]
