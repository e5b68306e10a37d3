"""Questions about captions: the prompts are those of stage 0, and the answers are the language model's."""

from __future__ import annotations

import pytest
import torch
from test_pipeline import pipeline as tiny_pipeline

from mmar.data.digits import DigitDataset
from mmar.data.example import Example
from mmar.evaluation.reading_text import _prompt, ask_caption
from mmar.pipeline import MMARPipeline
from mmar.training.tasks import as_text


@pytest.fixture(scope="module")
def pipe() -> MMARPipeline:
    return tiny_pipeline()


def test_the_prompt_is_that_of_a_row_of_stage_0(pipe: MMARPipeline) -> None:
    example = DigitDataset("test", questions=2)[0]
    row = pipe.processor.training_batch([as_text(example.turns, example.caption)])["input_ids"][0]
    prompt = _prompt(pipe, example)
    assert torch.equal(prompt, row[: len(prompt)])
    assert pipe.processor.tokenizer.decode(row[len(prompt) :]).startswith(example.turns[0][1])


def test_every_example_is_asked_its_first_question_whatever_the_batch(pipe: MMARPipeline) -> None:
    digits = DigitDataset("test", questions=2)
    examples = [digits[i] for i in range(5)]
    found = ask_caption(pipe, examples, batch_size=2, max_new_tokens=2)
    assert [(one.key, one.question, one.answer) for one in found] == [(e.key, *e.turns[0]) for e in examples]
    assert [one.family for one in found] == [e.meta["families"][0] for e in examples]
    alone = ask_caption(pipe, examples, batch_size=1, max_new_tokens=2)
    assert [one.said for one in alone] == [one.said for one in found]


def test_an_example_without_a_caption_is_refused(pipe: MMARPipeline) -> None:
    bare = Example("bare", DigitDataset("test")[0].image, None, (("which digit?", "one"),))
    with pytest.raises(ValueError, match="caption and a question, got none in bare"):
        ask_caption(pipe, [bare])
