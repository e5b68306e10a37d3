"""MMAR as a plug-in model of lmms-eval: ``lmms-eval --model mmar --model_args pretrained=FOLDER --tasks ...``.

lmms-eval hands chat models messages (its default) and simple models a text with images beside it (``--force_simple``); tasks
that compare likelihoods exist for simple models only. Images stand before the text in MMAR's prompts, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from mmar.commands.loading import DTYPES, existing_device, existing_pipeline
from mmar.evaluation.adapters.requests import Prompt, generation_options, stopped
from mmar.evaluation.likelihood import answer_log_likelihood
from mmar.pipeline import MMARPipeline


class _Plugin(lmms):
    """What both kinds share.

    Args:
        pretrained: Folder of a pipeline.
        device: Where to compute.
        batch_size: Questions at a time.
        compute_dtype: As :class:`MMARPipeline`; as saved by default.
        max_batch_size: Passed by lmms-eval; not used.
    """

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        batch_size: int | str = 1,
        compute_dtype: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        dtype = None if compute_dtype is None else DTYPES[compute_dtype]
        where = existing_device(device)
        self.pipeline = MMARPipeline.from_pretrained(existing_pipeline(Path(pretrained)), compute_dtype=dtype, device=where)
        self.batch_size = int(batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers counts there."""
        return self.pipeline.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer; requests with the same options go together."""
        prompts = [self._prompt(request.args) for request in requests]
        answers: list[str] = []
        with tqdm(total=len(prompts), disable=self.rank != 0, unit="answer") as bar:
            for options, part in _grouped(prompts, self.batch_size):
                stops = options.pop("until")
                said = self.pipeline.answer_batch([(one.images, [one.text]) for one in part], **options)
                answers += [stopped(group[0], stops) for group in said]
                bar.update(len(part))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, its end included, and whether greedy decoding would give it."""
        found = []
        for request in requests:
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            answer = continuation if isinstance(continuation, str) else continuation(doc)
            found.append(answer_log_likelihood(self.pipeline, doc_to_visual(doc), context, answer))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: MMAR was trained to answer about images, not to act on what it said."""
        raise NotImplementedError("tasks must have one round, got one of several; leave it out of --tasks")

    def _prompt(self, arguments: tuple[Any, ...]) -> Prompt:
        raise NotImplementedError


class MMARSimple(_Plugin):
    """For tasks of a text with images."""

    is_simple = True

    def _prompt(self, arguments: tuple[Any, ...]) -> Prompt:
        context, options, doc_to_visual, doc_id, task, split = arguments
        return Prompt.of(doc_to_visual(self.task_dict[task][split][doc_id]), context, options)


class MMARChat(_Plugin):
    """For tasks of messages."""

    is_simple = False

    def _prompt(self, arguments: tuple[Any, ...]) -> Prompt:
        _, doc_to_messages, options, doc_id, task, split = arguments
        return Prompt.of_messages(doc_to_messages(self.task_dict[task][split][doc_id]), options)


def _grouped(prompts: Sequence[Prompt], size: int) -> Iterator[tuple[dict[str, Any], list[Prompt]]]:
    """Neighbours with equal options, at most ``size`` at a time; the options as the pipeline takes them."""
    for _, group in groupby(prompts, key=lambda prompt: repr(sorted(prompt.options.items()))):
        same = list(group)
        for start in range(0, len(same), size):
            yield generation_options(same[0].options), same[start : start + size]
