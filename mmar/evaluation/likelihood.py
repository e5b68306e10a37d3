"""How likely an answer is, without generating one: for questions whose possible answers are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmar.inference import inference
from mmar.pipeline import MMARPipeline
from mmar.processing.chat import UnderstandingSample
from mmar.text_loss import IGNORED


def answer_log_likelihood(pipeline: MMARPipeline, images: Sequence[Any], question: str, answer: str) -> tuple[float, bool]:
    """Log-probability of an answer and of its end.

    Args:
        pipeline: Reads.
        images: At least one, as :meth:`MMARPipeline.answer` takes them.
        question: As asked.
        answer: What the assistant would say; white space around it does not count.

    Returns:
        The sum over the tokens of the answer and the token that ends it, nats; and whether each of them is the likeliest, so
        that greedy generation would give this answer.

    Raises:
        ValueError: If there is no image or no answer.
    """
    if not images or not answer.strip():
        raise ValueError(f"an answer must have text and at least one image, got {answer!r} and {len(images)} images")
    sample = UnderstandingSample([None] * len(images), ((question, answer.strip()),))
    batch = pipeline.processor.training_batch([sample]).to(pipeline.device)
    labels: Tensor = batch["labels"][0]
    places = (labels != IGNORED).nonzero()[:, 0]
    kept = len(labels) - int(places[0]) + 1  # the logits before the first token of the answer, and all after
    tokens = pipeline.encode(images)
    with inference(pipeline.model, pipeline.compute_dtype):
        out = pipeline.model(batch["input_ids"], batch["attention_mask"], image_tokens=tokens, logits_to_keep=kept)
    logits = out.logits[0].float().log_softmax(-1)[places - places[0]]  # (answer, V)
    wanted = labels[places]
    return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())
