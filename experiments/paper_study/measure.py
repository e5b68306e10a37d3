"""What a trained arm can do: digits named and drawn, and the error of its head at each noise level."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffparam import EPSILON, Schedule, V, largest_safe_timestep
from experiments.head_study import arms as head_arms
from experiments.head_study.decompose import by_bucket
from experiments.head_study.measure import Curves, measure
from experiments.tokens import TokenSet
from mmar.data.digits import DIGIT_FAMILIES, DigitDataset, captions
from mmar.evaluation.digits import DigitReader
from mmar.evaluation.feature_network import FeatureNetwork
from mmar.evaluation.feature_training import train_feature_network
from mmar.evaluation.fidelity import measure_fidelity
from mmar.evaluation.reading_text import ask_caption
from mmar.evaluation.understanding import ask, by_family, mean_accuracy
from mmar.generation.settings import ImageGenerationConfig
from mmar.image_head import DiffusionTokenHead
from mmar.inference import inference
from mmar.masking import MaskRatio, draw_known
from mmar.pipeline import MMARPipeline
from mmar.processing.chat import GenerationSample
from mmar.timestep_statistics import TimestepStatistics
from mmar.training.checkpoint_folder import load_latest

Ways = Mapping[str, ImageGenerationConfig]
"""Ways of drawing, by name."""


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        asked: Test scans, each asked about in every family.
        drawn: Pictures of each digit and way of drawing, over its captions in turn.
        head_steps: Diffusion steps of a token; 100 as in the paper.
    """

    asked: int = 445
    drawn: int = 40
    head_steps: int = 100


class DigitJudge:
    """Judges drawn digits by a classifier and by the distance of their features from those of test scans.

    Both have learnt real training scans alone. ``reference`` is what as many real training scans would score.
    """

    def __init__(self) -> None:
        self.reader = DigitReader()
        self.network = _digit_features()
        self.real = scans_of("test")

    def judge(self, pictures: list[Image.Image], wanted: list[int]) -> dict[str, Any]:
        """Share that is recognised as what was wanted, and distances."""
        seen = self.reader.read(pictures).tolist()
        right = sum(a == b for a, b in zip(seen, wanted, strict=True))
        few = len(pictures) <= 3  # a smoke test has no distances
        fidelity = {} if few else asdict(measure_fidelity(self.network, self.real, pictures, subsets=20))
        return {"recognised": right / len(pictures), "drawn": len(pictures), **fidelity}

    def reference(self, count: int) -> dict[str, Any]:
        """The ceiling: ``count`` real training scans for the distances, all test scans for the classifier."""
        scans = DigitDataset("train", caption_only=True)
        some = [scans[i] for i in range(min(count, len(scans)))]
        found = self.judge([scan.image for scan in some], [int(scan.meta["digit"]) for scan in some])
        return {**found, "recognised": self.reader.ceiling()}


def scans_of(split: str) -> list[Image.Image]:
    """All scans of a split."""
    data = DigitDataset(split, caption_only=True)  # type: ignore[arg-type]
    return [data[i].image for i in range(len(data))]


def read_digits(
    pipeline: MMARPipeline, asked: int, *, timestep: int | None = None, of_captions: bool = False
) -> dict[str, Any]:
    """Every family of questions asked about test scans; ``mean`` is our AVE.

    Args:
        pipeline: Answers.
        asked: Scans.
        timestep: Noise level of what is read, for whole-image diffusion.
        of_captions: Ask about the captions of the scans instead, in the place of images: what the language model can answer.
    """
    accuracies = {}
    for family in DIGIT_FAMILIES:
        scans = DigitDataset("test", questions=1, families=[family])
        some = [scans[i] for i in range(min(asked, len(scans)))]
        answers = ask_caption(pipeline, some) if of_captions else ask(pipeline, some, timestep=timestep)
        accuracies[family] = by_family(answers)[family]
    return {"families": {name: asdict(one) for name, one in accuracies.items()}, "mean": mean_accuracy(accuracies)}


def digit_captions(each: int) -> tuple[list[int], list[str]]:
    """``each`` of every digit, and their captions in turn."""
    wanted = [digit for digit in range(10) for _ in range(each)]
    return wanted, [captions(digit)[i % len(captions(digit))] for digit in range(10) for i in range(each)]


def draw_digits(
    pipeline: MMARPipeline, settings: ImageGenerationConfig, each: int, *, seed: int
) -> tuple[list[Image.Image], list[int], float]:
    """Pictures of every digit, what they should be, and seconds."""
    wanted, texts = digit_captions(each)
    start = time.perf_counter()
    pictures = pipeline.draw(texts, settings=settings, seed=[seed * len(texts) + i for i in range(len(texts))], batch_size=100)
    return pictures, wanted, time.perf_counter() - start


def ways_of(pipeline: MMARPipeline, head_steps: int) -> dict[str, ImageGenerationConfig]:
    """The paper's recipe from the last timestep, and from the largest that one bf16 rounding leaves safe for epsilon."""
    config = pipeline.model.config
    if config.image_objective == "understanding_only":
        return {}
    if config.has_codes:
        return {"last": ImageGenerationConfig()}
    safe = largest_safe_timestep(config.schedule_config.build(), param=EPSILON, delta="rms")
    return {
        "last": ImageGenerationConfig(head_steps=head_steps),
        "safe": ImageGenerationConfig(head_steps=head_steps, max_timestep=None if safe is None else float(safe)),
    }


def head_curves(
    pipeline: MMARPipeline, prediction: str, timesteps: list[int], *, draws: int, seed: int, limit: int | None = None
) -> dict[str, Curves]:
    """Errors of the head of an arm at each timestep, on held-out and on training scans; see ``head_study.measure``.

    The condition z of each masked token comes from the model as it computes, with masks of stage 2.

    Args:
        pipeline: Of an arm with a diffusion head.
        prediction: Name of the arm in ``head_study``, for what its output means.
        timesteps: Where.
        draws: Noise draws per token.
        seed: Of masks and noise.
        limit: Scans of each split at most.
    """
    head = pipeline.model.image_model.head
    if not isinstance(head, DiffusionTokenHead):
        raise TypeError(f"pipeline must have a diffusion head, got {type(head).__name__}")
    found = {}
    for name, split, offset in (("held_out", "test", 1_000_000), ("calibration", "train", 2_000_000)):
        tokens = masked_tokens(pipeline, split, seed=offset + seed, limit=limit)
        with torch.inference_mode():
            found[name] = measure(
                head.head, head_arms.ARMS[prediction], tokens, head.schedule, timesteps,
                draws=draws, seed=offset + seed, device=str(pipeline.device),
            )  # fmt: skip
    return found


def masked_tokens(
    pipeline: MMARPipeline, split: str, *, seed: int, limit: int | None = None, is_captioned: bool = True
) -> TokenSet:
    """Masked tokens of scans of a split, each with the condition that the head gets, under one mask for each scan.

    Without captions the condition is that of the unconditional branch, under the same masks.
    """
    data = DigitDataset(split, caption_only=True)  # type: ignore[arg-type]
    scans = [data[i] for i in range(len(data) if limit is None else min(limit, len(data)))]
    tokens, conditions, labels = [], [], []
    source = torch.Generator().manual_seed(seed)
    head = pipeline.model.image_model.head
    for start in range(0, len(scans), 100):
        part = scans[start : start + 100]
        samples = [GenerationSample(str(scan.caption) if is_captioned else None, scan.image) for scan in part]
        batch = pipeline.processor.training_batch(samples).to(pipeline.device)
        latents = pipeline.encode([scan.image for scan in part])
        known = draw_known(len(part), latents.shape[1], MaskRatio.stage2().sample(source), source)
        with inference(pipeline.model, pipeline.compute_dtype):
            out = pipeline.model(
                batch["input_ids"], batch["attention_mask"], image_tokens=latents, known=known, output_image_states=True
            )
            z = head.condition(out.image_states[~known])  # type: ignore[operator, union-attr]
        tokens.append(latents[~known].float())
        conditions.append(z.float())
        digits = torch.tensor([scan.meta["digit"] for scan in part])
        labels.append(digits[:, None].expand(-1, latents.shape[1])[~known])
    return TokenSet(torch.cat(tokens), torch.cat(conditions), torch.cat(labels), mean=0.0, scale=1.0)


def training_loss(stage: Path, pipeline: MMARPipeline) -> dict[str, Any]:
    """Mean v-space loss of a whole stage, by bucket of timesteps, from the statistics that the trainer keeps."""
    config = pipeline.model.config
    schedule: Schedule = config.schedule_config.build()
    checkpoint, _ = load_latest(stage)
    if checkpoint is None:
        raise FileNotFoundError(f"stage must hold a checkpoint, got {stage}")
    statistics = TimestepStatistics(schedule)
    statistics.load_state_dict(checkpoint.tensors["statistics"])
    mean = statistics.mean(source=config.diffusion_head_config.param, target=V).nan_to_num(0.0).numpy()
    return {"rows": int(statistics.count.sum()), "by_bucket": by_bucket(mean, range(len(schedule)))}


@functools.cache
def _digit_features() -> FeatureNetwork:
    """Seconds to train, and the same each time."""
    return train_feature_network("digits")
