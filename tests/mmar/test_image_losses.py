"""Losses of image tokens against their formulas: which tokens, which noise, which weight, which state z.

The networks are the model's; states, noise, targets and means are formed here from the paper's equations, in float64 where the
schedule is. Tolerance: sums of at most 1000 float32 numbers of order 1, 2^-24 each: 1e-5 with room.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_model import ANSWER_LABELS, BLOCK, CHANNELS, COUNT, rows, some_known, some_tokens, tiny_model
from torch import Tensor
from torch.nn import functional

from mmar.config import MMARConfig
from mmar.image_batch import ImageBatch, image_batch
from mmar.model import MMARForConditionalGeneration

QUESTION = [1, 20, 21, 2]
STEPS = 1000
REL = 1e-5


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
