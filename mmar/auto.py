"""Tells transformers' Auto classes about MMAR: after ``import mmar.auto``, ``AutoModel.from_pretrained(folder)`` knows it.

Any public name taken from :mod:`mmar` imports this module too. ``AutoConfig`` and the processors are told by
:mod:`mmar.processing`.
"""

from __future__ import annotations

from transformers import AutoModel, AutoModelForImageTextToText

import mmar.processing  # noqa: F401 - registers configuration, processor and image processor
from mmar.config import MMARConfig
from mmar.model import MMARForConditionalGeneration

for _auto in (AutoModel, AutoModelForImageTextToText):
    _auto.register(MMARConfig, MMARForConditionalGeneration, exist_ok=True)
