"""Training arms and finding them again: stage 0 once for all, both stages of each, in folders named after their settings."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.paper_study.arms import Arm
from experiments.training_runs import CONFIGS
from mmar.baselines import BASELINES
from mmar.training.config import load_config
from mmar.training.loop import FINAL, train
from mmar.weight_files import SINGLE

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Subject:
    """What the images show, and the files that go with it.

    Attributes:
        stages: Names of configurations: of the language model, and of both stages.
        continuous: Folder in ``experiments/weights`` of the autoencoder.
        discrete: The same architecture with a codebook.
        codes: Entries of that codebook.
        image: Fields of ``image_config`` for the one and the other.
        patch_size: Latents of ``continuous`` on a side of one token.
        language: Folder in ``experiments/weights`` of the language model; None: it is trained, once in each folder of runs.
    """

    stages: tuple[str, str, str]
    continuous: str
    discrete: str
    codes: int
    image: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    patch_size: int = 1
    language: str | None = None


_PIXELS = {"image_size": 32}
SUBJECTS = {
    "digits": Subject(("digits-text", "digits-stage1", "digits"), "kl-digits", "vq-digits", 256),
    "objects": Subject(
        ("objects-text", "objects-stage1", "objects"), "kl-scenes", "vq-scenes", 1024,
        image=({**_PIXELS, "grid": 4, "channels": 32}, {**_PIXELS, "grid": 8, "channels": 8}), patch_size=2,
        language="lm-objects",
    ),
}  # fmt: skip
"""Digit scans, and drawn scenes of one object; codes cannot be packed, so of these there are four times as many a scene."""


@dataclass(frozen=True)
class Recipe:
    """What all arms share.

    Attributes:
        preset: Of the model's size.
        text_steps: Of the language model that all arms freeze.
        stage1_steps: With masks on [0.7, 1].
        stage2_steps: With masks on (0, 1], the last third of them with a falling rate.
        batch_size: Rows a step.
        text_seed: Of the language model; the arms have seeds of their own.
        words: ``key=value`` words for every stage.
        rate: Factor of every stage's learning rate.
        subject: Key of :data:`SUBJECTS`.
    """

    preset: str = "mmar-digits"
    text_steps: int = 800
    stage1_steps: int = 400
    stage2_steps: int = 400
    batch_size: int = 64
    text_seed: int = 0
    words: tuple[str, ...] = ()
    rate: float = 1.0
    subject: str = "digits"

    def identity(self) -> dict[str, Any]:
        """What a run depends on; fields that came later are left out where they change nothing: older runs are found."""
        usual = {"rate": 1.0, "subject": "digits"}
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class Runs:
    """Where arms of a recipe are trained and found again; a folder is named after everything that its run depends on.

    A run that is there is used, one that was cut off goes on. Two processes must not train the same arm at once.

    Attributes:
        folder: Of all runs.
        recipe: Shared by all arms.
    """

    folder: Path
    recipe: Recipe

    @property
    def language_folder(self) -> Path:
        """Of stage 0."""
        recipe = self.recipe
        part = {
            "preset": recipe.preset,
            "steps": recipe.text_steps,
            "batch": recipe.batch_size,
            "seed": recipe.text_seed,
            "words": recipe.words,
            **({"rate": recipe.rate} if recipe.rate != 1 else {}),
        }
        return self._folder("language", part)

    def arm_folder(self, arm: Arm, seed: int) -> Path:
        """Of both stages of an arm."""
        identity = {"arm": asdict(arm), "recipe": self.recipe.identity(), "seed": seed}
        language = SUBJECTS[self.recipe.subject].language
        if language is not None:
            identity["language"] = _digest(WEIGHTS / language / SINGLE)
        return self._folder(f"{arm.name}-seed{seed}", identity)

    def language_model(self) -> Path:
        """The language model that all arms freeze: the folder of the finished stage 0, or of a committed Qwen2.

        Raises:
            KeyboardInterrupt: If a signal ended the training; what is done is kept.
        """
        subject, steps = SUBJECTS[self.recipe.subject], self.recipe.text_steps
        if subject.language is not None:
            return WEIGHTS / subject.language
        words = (
            f"model.preset={self.recipe.preset}",
            f"steps={steps}",
            f"optimizer.decay={max(1, steps // 2)}",
            f"seed={self.recipe.text_seed}",
        )
        return self._train(subject.stages[0], self.language_folder, words)

    def train(self, arm: Arm, seed: int) -> Iterator[tuple[str, Path]]:
        """Both stages of an arm.

        Args:
            arm: What is different.
            seed: Of weights, data order, masks and noise.

        Yields:
            Name and folder of each stage when it is finished; the pipeline is in its subfolder ``final``.

        Raises:
            KeyboardInterrupt: If a signal ended the training; what is done is kept.
        """
        recipe, output, text = self.recipe, self.arm_folder(arm, seed), self.language_model()
        subject = SUBJECTS[recipe.subject]
        _, first, second = subject.stages
        shared = (f"seed={seed}", f"precision={arm.precision}", "saving.samples_every=0")
        if subject.language is None:
            language = (f"model.preset={recipe.preset}", f"model.language_model={text}", f"tokenizers.text={text}")
        else:
            language = (f"model.size={recipe.preset}", f"model.qwen2={text}")
        start = (*language, *image_words(arm, subject), *arm.options)
        self._train(first, output / "stage1", (*shared, *start, f"steps={recipe.stage1_steps}"))
        yield "stage1", output / "stage1"
        decay = f"optimizer.decay={max(1, recipe.stage2_steps // 3)}"
        checkpoint = f"model.checkpoint={output / 'stage1' / FINAL}"
        self._train(second, output / "stage2", (*shared, checkpoint, f"steps={recipe.stage2_steps}", decay, *arm.stage2))
        yield "stage2", output / "stage2"

    def _train(self, name: str, output: Path, words: tuple[str, ...]) -> Path:
        final = output / FINAL
        shared = ("needs=null", f"output={output}", f"batch_size={self.recipe.batch_size}", "saving.keep=1")
        config = load_config(CONFIGS / f"{name}.yaml", [*shared, *words, *self.recipe.words])
        config.optimizer.lr *= self.recipe.rate
        if not final.is_dir() and train(config, resume=True) != final:
            raise KeyboardInterrupt
        return final

    def _folder(self, name: str, identity: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{digest}"


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def image_words(arm: Arm, subject: Subject) -> tuple[str, ...]:
    """The baseline and its image tokenizer: the same autoencoder, with and without a codebook."""
    baseline = BASELINES[arm.baseline]
    if arm.image_tokenizer == "":
        return _words("model.options", baseline.options)
    has_codes = baseline.needs_codes
    name = arm.image_tokenizer or (subject.discrete if has_codes else subject.continuous)
    image = {"tokenizer": name, **subject.image[has_codes], **({"codebook_size": subject.codes} if has_codes else {})}
    words = _words("model.options", {"image_config": image, **baseline.options})
    packed = () if subject.patch_size == 1 else (f"tokenizers.image_patch_size={1 if has_codes else subject.patch_size}",)
    return (*words, f"tokenizers.image={WEIGHTS / name}", *packed)


def _words(prefix: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for key, value in options.items():
        name = f"{prefix}.{key}"
        found += _words(name, value) if isinstance(value, Mapping) else (f"{name}={json.dumps(value)}",)
    return found
