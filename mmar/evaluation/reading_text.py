"""The control of an understanding test: the same questions with the caption in place of the image.

What a frozen language model cannot look up in a perfect description it can hardly find in an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmar.data.example import Example
from mmar.evaluation.understanding import Answered
from mmar.generation.text import padded_left
from mmar.inference import inference
from mmar.pipeline import MMARPipeline


def ask_caption(
    pipeline: MMARPipeline, examples: Sequence[Example], *, batch_size: int = 64, max_new_tokens: int = 8
) -> list[Answered]:
    """Ask the first question of each example about its fullest caption, greedily.

    Args:
        pipeline: Of which the language model alone takes part.
        examples: With a caption, questions, and their ``families`` in ``meta``.
        batch_size: Rows at a time.
        max_new_tokens: Of an answer.

    Raises:
        ValueError: If an example lacks a caption or questions.
    """
    found: list[Answered] = []
    for start in range(0, len(examples), batch_size):
        group = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        rows = [_prompt(pipeline, example) for example in group]
        ids, mask = padded_left(rows, pipeline.processor.tokenizer.pad_token_id)
        with inference(pipeline.model, pipeline.compute_dtype):
            out = pipeline.model.generate(
                ids.to(pipeline.device),
                attention_mask=mask.to(pipeline.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        said = pipeline.processor.batch_decode(out[:, ids.shape[1] :])
        for example, text in zip(group, said, strict=True):
            question, answer = example.turns[0]
            family = (example.meta.get("families") or ["other"])[0]
            found.append(Answered(example.key, family, question, answer, text.strip()))
    return found


def _prompt(pipeline: MMARPipeline, example: Example) -> torch.Tensor:
    """``(L,)`` ids, as a row of stage 0 (:func:`mmar.training.tasks.as_text`) up to its first answer."""
    if example.caption is None or not example.turns:
        raise ValueError(f"examples must have a caption and a question, got none in {example.key}")
    message = {"role": "user", "content": f"{example.caption}. {example.turns[0][0]}"}
    text = pipeline.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    ids = pipeline.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)
