"""The arms of a comparison: one thing changed in each, the frozen language model, the data and the steps the same for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.training_runs import CONFIGS
from mmar.baselines import BASELINES
from mmar.training.config import load_config
from mmar.training.loop import FINAL, train

WEIGHTS = Path(__file__).parent.parent / "weights"
CODES = 256
"""Entries of the codebook of ``vq-digits``."""


@dataclass(frozen=True)
class Arm:
    """One way to make an MMAR.

    Attributes:
        name: Key in records.
        label: As tables print it.
        baseline: A name in :data:`mmar.baselines.BASELINES`.
        precision: Of the training: bf16 (forward, with float32 masters), float32 or pure_bf16.
        options: ``key=value`` words for the first stage, beyond the baseline's: what the model is.
        stage2: Words for the second stage.
        image_tokenizer: Folder in ``experiments/weights``; None: ``kl-digits``, or ``vq-digits`` where codes are needed; an
            empty string: patches of pixels.
    """

    name: str
    label: str
    baseline: str = "mmar"
    precision: str = "bf16"
    options: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()
    image_tokenizer: str | None = None

    @property
    def has_head(self) -> bool:
        """Whether a diffusion head draws its tokens."""
        objective = BASELINES[self.baseline].options.get("image_objective", "masked_diffusion")
        return str(objective) in ("masked_diffusion", "causal_diffusion")


def _head(*words: str) -> tuple[str, ...]:
    return tuple(f"model.options.diffusion_head_config.{word}" for word in words)


def _named(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


TABLE3 = _named(
    Arm("v_mixed", "MMAR: v, bf16 forward"),
    Arm("eps_mixed", "epsilon, bf16 forward", "epsilon"),
    Arm("vq", "VQ, with EmbeddingViT", "vq"),
    Arm("vq_projector", "VQ as in A.1, no EmbeddingViT", "vq-projector"),
    Arm("transfusion", "transfusion-like as in A.1", "transfusion"),
    Arm("transfusion_vit", "transfusion-like, EmbeddingViT", "transfusion-vit"),
    Arm("v_float32", "v, float32", precision="float32"),
    Arm("eps_float32", "epsilon, float32", "epsilon", "float32"),
    Arm("v_pure", "v, pure bf16", precision="pure_bf16"),
    Arm("eps_pure", "epsilon, pure bf16", "epsilon", "pure_bf16"),
    Arm(
        "epsw_float32",
        "epsilon, v-weighted, float32",
        "epsilon",
        "float32",
        _head("loss_space=v_prediction", "max_loss_weight=1000"),
    ),
)
"""Table 3 of the paper, and what tells its causes apart. Names of v and epsilon are those of ``experiments.head_study``."""

_READ_ONLY = ("tasks.understanding=1", "tasks.generation=0", "tasks.unconditional=0")
TABLE1 = _named(
    TABLE3["v_mixed"],
    Arm("chameleon", "causal codes (Chameleon-like)", "chameleon"),
    TABLE3["vq"],
    TABLE3["transfusion"],
    Arm("understanding_only", "reads only (LLaVA-like)", "understanding-only", options=_READ_ONLY, stage2=_READ_ONLY),
)
"""The families of table 1: one backbone, one budget. Masked codes with EmbeddingViT stand for Show-o."""

MASKS = _named(
    Arm("stage1_only", "stage 1 alone, as many steps", stage2=("masking.shape=truncated_normal", "masking.low=0.7")),
    TABLE3["v_mixed"],
    Arm("normal", "stage 2 with a truncated normal", stage2=("masking.shape=truncated_normal",)),
    Arm("uniform", "stage 2 with a uniform density", stage2=("masking.shape=uniform",)),
)
"""Figure 5, and what the second stage's density does: cosine, a truncated normal on (0, 1], uniform."""

ABLATIONS = _named(
    TABLE3["v_mixed"],
    Arm("flow", "flow head", options=_head("prediction_type=flow")),
    Arm("edm", "EDM head, sigma_data 1", options=_head("prediction_type=edm", "sigma_data=1.0")),
    Arm("sample", "clean-token head", options=_head("prediction_type=sample")),
    Arm("raster", "raster order, causal image", "raster"),
    Arm("sequential", "a position for each token", options=("model.options.image_positions=sequential",)),
    Arm("bf16_then_float32", "bf16, then float32 in stage 2", stage2=("precision=float32",)),
    Arm("float32_then_bf16", "float32, then bf16 in stage 2", precision="float32", stage2=("precision=bf16",)),
    *(
        Arm(
            f"patches_{grid**2}",
            f"{grid**2} tokens of {(8 // grid) ** 2} pixels",
            options=tuple(
                f"model.options.image_config.{word}"
                for word in ("tokenizer=patches", f"grid={grid}", f"channels={(8 // grid) ** 2}")
            ),
            image_tokenizer="",
        )
        for grid in (2, 4, 8)
    ),
)
"""What nobody has shown: other heads, orders, positions, switches of precision, numbers of tokens."""

ARMS = {**TABLE3, **TABLE1, **MASKS, **ABLATIONS}
"""All arms by name."""


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
    """

    preset: str = "mmar-digits"
    text_steps: int = 800
    stage1_steps: int = 400
    stage2_steps: int = 400
    batch_size: int = 64
    text_seed: int = 0
    words: tuple[str, ...] = ()


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
        }
        return self._folder("language", part)

    def arm_folder(self, arm: Arm, seed: int) -> Path:
        """Of both stages of an arm."""
        identity = {"arm": asdict(arm), "recipe": asdict(self.recipe), "seed": seed}
        return self._folder(f"{arm.name}-seed{seed}", identity)

    def language_model(self) -> Path:
        """Stage 0, once for all arms: the folder of the finished model.

        Raises:
            KeyboardInterrupt: If a signal ended the training; what is done is kept.
        """
        steps = self.recipe.text_steps
        words = (
            f"model.preset={self.recipe.preset}",
            f"steps={steps}",
            f"optimizer.decay={max(1, steps // 2)}",
            f"seed={self.recipe.text_seed}",
        )
        return self._train("digits-text", self.language_folder, words)

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
        shared = (f"seed={seed}", f"precision={arm.precision}", "saving.samples_every=0")
        language = (f"model.language_model={text}", f"tokenizers.text={text}")
        start = (f"model.preset={recipe.preset}", *language, *_image_words(arm), *arm.options)
        self._train("digits-stage1", output / "stage1", (*shared, *start, f"steps={recipe.stage1_steps}"))
        yield "stage1", output / "stage1"
        decay = f"optimizer.decay={max(1, recipe.stage2_steps // 3)}"
        checkpoint = f"model.checkpoint={output / 'stage1' / FINAL}"
        self._train("digits", output / "stage2", (*shared, checkpoint, f"steps={recipe.stage2_steps}", decay, *arm.stage2))
        yield "stage2", output / "stage2"

    def _train(self, name: str, output: Path, words: tuple[str, ...]) -> Path:
        final = output / FINAL
        shared = ("needs=null", f"output={output}", f"batch_size={self.recipe.batch_size}", "saving.keep=1")
        config = load_config(CONFIGS / f"{name}.yaml", [*shared, *words, *self.recipe.words])
        if not final.is_dir() and train(config, resume=True) != final:
            raise KeyboardInterrupt
        return final

    def _folder(self, name: str, identity: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{digest}"


def _image_words(arm: Arm) -> tuple[str, ...]:
    """The baseline and its image tokenizer: the same autoencoder, with and without a codebook."""
    baseline = BASELINES[arm.baseline]
    if arm.image_tokenizer == "":
        return _words("model.options", baseline.options)
    name = arm.image_tokenizer or ("vq-digits" if baseline.needs_codes else "kl-digits")
    image: dict[str, Any] = {"tokenizer": name, **({"codebook_size": CODES} if baseline.needs_codes else {})}
    words = _words("model.options", {"image_config": image, **baseline.options})
    return (*words, f"tokenizers.image={WEIGHTS / name}")


def _words(prefix: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for key, value in options.items():
        name = f"{prefix}.{key}"
        found += _words(name, value) if isinstance(value, Mapping) else (f"{name}={json.dumps(value)}",)
    return found
