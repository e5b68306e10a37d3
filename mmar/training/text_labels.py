"""What is learned of a conversation without images: the answers, and now and then all of it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmar.processing.chat import IM_END, IM_START
from mmar.text_loss import IGNORED
from mmar.training.tasks import Place

WHOLE = 0.05
"""Share of rows that are learned from end to end: descriptions are long, cannot be guessed, and would be most of the loss."""


def text_labels(input_ids: Tensor, attention_mask: Tensor, tokenizer: PreTrainedTokenizerBase, places: list[Place]) -> Tensor:
    """Labels ``(B, L)``, not shifted; -100 where nothing is learned.

    Args:
        input_ids: ``(B, L)``, conversations in Qwen2's chat format.
        attention_mask: ``(B, L)``, 0 on padding.
        tokenizer: Of the ids.
        places: One per row: the same rows are whole on any number of ranks.
    """
    learned = answers(input_ids, tokenizer)
    whole = torch.tensor([place.random("whole").random() < WHOLE for place in places])
    learned |= whole[:, None].to(learned.device)
    return input_ids.masked_fill(~learned | (attention_mask == 0), IGNORED)


def answers(input_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``(B, L)`` bool: the words of the assistant, and the end of each of its turns."""
    start, end = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
    header = tokenizer.encode("assistant\n", add_special_tokens=False)
    found = torch.zeros(input_ids.shape, dtype=torch.bool)
    for row, ids in enumerate(input_ids.tolist()):
        inside = False
        for column, token in enumerate(ids):
            found[row, column] = inside
            if token in (start, end):
                inside = False
            elif ids[column - len(header) : column + 1] == [start, *header]:
                inside = True
    return found.to(input_ids.device)
