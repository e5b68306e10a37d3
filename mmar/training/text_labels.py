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
    header = [start, *tokenizer.encode("assistant\n", add_special_tokens=False)]
    begins = torch.zeros(input_ids.shape, dtype=torch.bool, device=input_ids.device)  # where a header ends
    windows = input_ids.unfold(1, len(header), 1) if input_ids.shape[1] >= len(header) else None  # (B, L - h + 1, h)
    if windows is not None:
        begins[:, len(header) - 1 :] = (windows == torch.tensor(header, device=input_ids.device)).all(-1)
    return _last_before(begins) > _last_before((input_ids == start) | (input_ids == end))


def _last_before(marks: Tensor) -> Tensor:
    """``(B, L)``: the column of the last mark before each column, -1 where there is none."""
    columns = torch.arange(marks.shape[1], device=marks.device).expand_as(marks)
    last = torch.where(marks, columns, -1).cummax(dim=1).values
    return torch.nn.functional.pad(last, (1, 0), value=-1)[:, :-1]
