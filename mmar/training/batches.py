"""Examples to what a forward pass takes: rows, image tokens, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmar.config import MMARConfig
from mmar.data.example import Example
from mmar.data.latent_dataset import CachedImage
from mmar.masking import MaskRatio, draw_known
from mmar.processing import MMARProcessor
from mmar.text_loss import IGNORED
from mmar.tokenizers import ImageTokenizer
from mmar.training.mixture import TEXT
from mmar.training.tasks import Place, Row, make_row, step_generator
from mmar.training.text_labels import text_labels

Item = Example | tuple[CachedImage, Example]
"""An example with its image, or with its tokens from a latent cache."""
Source = torch.Generator


class NoRows(ValueError):
    """None of a batch's samples made a row."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        inputs: Arguments of the model, tensors on its device.
        generators: One per image.
        text_count: Answer tokens.
        image_count: Image tokens that have a loss.
        keys: Of the examples.
    """

    inputs: dict[str, Tensor]
    generators: list[torch.Generator]
    text_count: int
    image_count: int
    keys: list[str]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.inputs["attention_mask"].sum())


@dataclass
class BatchMaker:
    """Makes micro-batches.

    Attributes:
        config: Of the model.
        processor: Text to rows, images to pixels.
        image_tokenizer: Pixels to tokens, on the device of the model.
        ratio: Share of masked tokens.
        questions: In a row at most.
        describing: Share of rows with questions that ask for a description too.
        max_length: Tokens of a row at most.
        device: Of the model.
        dtype: What the image tokenizer computes in; None: float32.
        left_out: Samples that made no row, by reason.
    """

    config: MMARConfig
    processor: MMARProcessor
    image_tokenizer: ImageTokenizer
    ratio: MaskRatio
    questions: int = 4
    describing: float = 0.5
    max_length: int = 1024
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def make(self, items: Sequence[Item], tasks: Sequence[str], places: Sequence[Place], micro_batch: int) -> Batch:
        """A batch for one task per item.

        Args:
            items: Examples with images, or all of them with cached tokens, in the order of ``places``.
            tasks: One per item.
            places: One per item.
            micro_batch: Number within the step.

        Raises:
            NoRows: If no item made a row.
        """
        rows, kept, keys, row_places = [], [], [], []
        for row, item, task, place in self._fitting(items, tasks, places):
            cached, example = item if isinstance(item, tuple) else (None, item)
            rows.append(row)
            keys.append(example.key)
            kept += [] if task == TEXT else [(cached, place.generator())]
            row_places += [place]
        if not rows:
            raise NoRows(f"items must make at least one row of a batch, got none: {dict(self.left_out)}")
        made = self.processor.training_batch(rows)
        inputs = {name: made[name].to(self.device) for name in ("input_ids", "attention_mask", "labels")}
        sources = [source for _, source in kept]
        if not kept:
            inputs["labels"] = text_labels(inputs["input_ids"], inputs["attention_mask"], self.processor.tokenizer, row_places)
        else:
            targets: Tensor = made["image_targets"]
            inputs["image_targets"] = targets.to(self.device)
            inputs["image_tokens"] = self._tokens(made, targets, kept)
            if self.config.is_masked:
                ratio = self.ratio.sample(step_generator(places[0].seed, places[0].step, micro_batch))
                known = draw_known(len(targets), self.config.image_config.count, ratio, sources)
                inputs["known"] = (known | ~targets[:, None]).to(self.device)
        return Batch(inputs, sources, _answers(inputs["labels"]), self._with_loss(inputs), keys)

    def _fitting(
        self, items: Sequence[Item], tasks: Sequence[str], places: Sequence[Place]
    ) -> Iterator[tuple[Row, Item, str, Place]]:
        """Rows with what they are of; items that make no row, or one too long, are left out and counted."""
        found: list[tuple[Row, Item, str, Place]] = []
        for item, task, place in zip(items, tasks, places, strict=True):
            example = item[1] if isinstance(item, tuple) else item
            try:
                found.append((self._row(example, task, place), item, task, place))
            except ValueError as error:
                self._leave_out(error)
        faults = self.processor.faults([row for row, *_ in found], max_length=self.max_length)
        for entry, fault in zip(found, faults, strict=True):
            if fault is None:
                yield entry
            else:
                self._leave_out(fault)

    def _row(self, example: Example, task: str, place: Place) -> Row:
        return make_row(example, task, place.random(), questions=self.questions, describing=self.describing)

    def _leave_out(self, error: Exception) -> None:
        self.left_out[str(error).split(",")[0][:80]] += 1

    @torch.no_grad()
    def _tokens(self, made: Mapping[str, Tensor], targets: Tensor, kept: list[tuple[CachedImage | None, Source]]) -> Tensor:
        """``(n, N, C)``: a draw from the posterior for images that are drawn, its mode for those that are read; or codes."""
        images = self._cached(kept) or self._encoded(made["pixel_values"].to(self.device))
        drawn = [
            image.tokens(sample=target, generator=source)
            for image, (_, source), target in zip(images, kept, targets.tolist(), strict=True)
        ]
        return torch.stack(drawn).to(self.device)

    def _cached(self, kept: list[tuple[CachedImage | None, Source]]) -> list[CachedImage]:
        cached = [image for image, _ in kept if image is not None]
        if cached and len(cached) < len(kept):
            raise ValueError(f"items must all have cached tokens or none, got {len(cached)} of {len(kept)} with them")
        return cached

    def _encoded(self, pixels: Tensor) -> list[CachedImage]:
        if self.config.has_codes:
            return [CachedImage(codes) for codes in self.image_tokenizer.encode_codes(pixels, dtype=self.dtype).cpu()]
        mean, std = self.image_tokenizer.encode_posterior(pixels, dtype=self.dtype)
        stds = [None] * len(mean) if std is None else list(std.cpu())
        return [CachedImage(image, spread) for image, spread in zip(mean.cpu(), stds, strict=True)]

    def _with_loss(self, inputs: dict[str, Tensor]) -> int:
        """Image tokens that have a loss, known before the forward pass so that means can be taken over all ranks."""
        if "image_tokens" not in inputs or self.config.image_objective == "understanding_only":
            return 0
        targets, count = inputs["image_targets"], self.config.image_config.count
        if self.config.image_objective == "whole_image_diffusion":
            return count * len(targets)
        if self.config.is_causal:
            return count * int(targets.sum())
        return int((~inputs["known"]).sum())


def _answers(labels: Tensor) -> int:
    return int((labels[:, 1:] != IGNORED).sum())
