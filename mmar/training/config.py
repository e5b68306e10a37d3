"""What a training run is: one checked configuration from a YAML file and ``key=value`` words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmar.masking import MaskRatio
from mmar.training.mixture import GENERATION, UNCONDITIONAL, UNDERSTANDING

PRECISIONS = ("float32", "bf16", "pure_bf16")
SHARDINGS = ("ddp", "fsdp")
TASKS = (UNDERSTANDING, GENERATION, UNCONDITIONAL)


@dataclass
class ModelSource:
    """Where the model comes from: exactly one of preset, qwen2, checkpoint.

    Attributes:
        preset: Name of a preset, with random weights.
        qwen2: Folder of a Qwen2; the rest of the model is new, sized by ``size``.
        checkpoint: Folder of a saved MMAR.
        size: Preset for the parts around a Qwen2.
        embedding_vit: Folder of weights that the EmbeddingViT of a new model starts from; it is trained on.
        diffusion_head: Folder of weights that PostProjector and diffusion MLP start from, also in place of a checkpoint's.
        language_model: Folder of a language model to load into a preset of the same text sizes and freeze (a stage 0 run).
        options: Fields of MMARConfig to replace, nested.
    """

    preset: str | None = None
    qwen2: str | None = None
    checkpoint: str | None = None
    size: str | None = None
    embedding_vit: str | None = None
    diffusion_head: str | None = None
    language_model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSource:
    """One source of examples.

    Attributes:
        kind: digits, scenes, repeats (of words of scenes, for stage 0), folder, llava, shards or latents.
        path: Folder, file or shard pattern, where the kind has one.
        split: Where the kind has splits.
        weight: Share among the sources.
        options: Arguments of its class.
    """

    kind: str = MISSING
    path: str | None = None
    split: str = "train"
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tokenizers:
    """Frozen parts that turn text and pictures into tokens.

    Attributes:
        text: Folder with a tokenizer; None: that of the model's folder, or a small one trained on the captions and questions
            of the data.
        image: Folder with an image tokenizer; None: that of the model's folder, or patches of unit scale.
        image_patch_size: Latents of ``image`` on a side of one token; 2 for a quarter of the tokens.
        system_prompt: Of the chat format; an empty string for none.
    """

    text: str | None = None
    image: str | None = None
    image_patch_size: int = 1
    system_prompt: str = ""


@dataclass
class Masking:
    """Share of masked tokens; see :class:`mmar.masking.MaskRatio`."""

    shape: str = "truncated_normal"
    low: float = 0.7
    high: float = 1.0
    width: float = 0.25


@dataclass
class Optimizer:
    """AdamW, linear warm-up, then constant (section 4.2).

    Attributes:
        lr: Learning rate after the warm-up.
        betas: Of AdamW.
        weight_decay: On matrices outside the diffusion head; none on biases, norms, tables.
        warmup: Steps.
        decay: Steps at the end in which the rate falls to zero in a line; 0: constant to the end, as in the paper.
        clip: Largest norm of the gradient.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    warmup: int = 100
    decay: int = 0
    clip: float = 1.0


@dataclass
class Saving:
    """Checkpoints and pictures.

    Attributes:
        every: Steps between checkpoints.
        keep: Checkpoints kept.
        log_every: Steps between log lines.
        samples_every: Steps between sample grids; 0: none.
        samples: Captions to draw; empty: the first ones of the data.
        sample_steps: Autoregressive steps and head steps of the grids.
        tensorboard: Write event files beside the JSON lines.
    """

    every: int = 500
    keep: int = 3
    log_every: int = 20
    samples_every: int = 0
    samples: list[str] = field(default_factory=list)
    sample_steps: tuple[int, int] = (8, 10)
    tensorboard: bool = False


@dataclass
class TrainingConfig:
    """A run.

    Attributes:
        output: Folder of the run.
        needs: Configuration of a run that must be finished before, relative to this file; it is run first if it is not.
        stage: text (stage 0: the language model alone), joint (stages 1 and 2) or instruction (reading only).
        model: Where the model comes from.
        tokenizers: Frozen tokenizers.
        data: Sources of examples.
        tasks: Weights of the tasks: the paper's 1:1 and 9:1 are 10, 9 and 1. A file with ``tasks`` replaces those below it:
            what it does not name has weight 0.
        masking: Share of masked tokens.
        timesteps_per_token: K: 4 in stage 1, 8 in stage 2.
        batch_size: Samples of a micro-batch on one rank.
        accumulation: Micro-batches per step.
        steps: Optimizer steps.
        max_length: Tokens of a row at most; longer ones are left out and counted.
        questions: Questions of one image in a row at most: several are dense supervision at almost no cost.
        describing: Share of rows with questions that ask for a description too: a dense lesson about images. In text it is a
            copy of what has just been read, soon learned.
        optimizer: AdamW and its rate.
        ema: Decay of the average; 0: none.
        precision: bf16 (forward in bf16, float32 masters), float32, or pure_bf16 for the experiment.
        timestep_statistics: Whether to collect the loss per timestep.
        sharding: What many processes hold: ddp, all of the model each; fsdp, a part of it each. Nothing on one process.
        gradient_checkpointing: Trade time for memory.
        workers: Processes that read data.
        threads: Of torch; None: as torch chooses.
        strict: Raise at the first bad sample.
        max_nan: Steps with a loss that is not finite before the run stops.
        saving: Checkpoints, logs, pictures.
        seed: Of everything.
    """

    output: str = MISSING
    needs: str | None = None
    stage: str = "joint"
    model: ModelSource = field(default_factory=ModelSource)
    tokenizers: Tokenizers = field(default_factory=Tokenizers)
    data: list[DataSource] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=lambda: {UNDERSTANDING: 10.0, GENERATION: 9.0, UNCONDITIONAL: 1.0})
    masking: Masking = field(default_factory=Masking)
    timesteps_per_token: int = 4
    batch_size: int = 32
    accumulation: int = 1
    steps: int = 1000
    max_length: int = 1024
    questions: int = 4
    describing: float = 0.5
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema: float = 0.9999
    precision: str = "bf16"
    timestep_statistics: bool = True
    sharding: str = "ddp"
    gradient_checkpointing: bool = False
    workers: int = 0
    threads: int | None = None
    strict: bool = False
    max_nan: int = 10
    saving: Saving = field(default_factory=Saving)
    seed: int = 0


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a YAML file, put ``key=value`` words over it, check everything.

    Args:
        path: Of the file. A top-level ``defaults: FILE`` names another file, beside it, that it is put over.
        overrides: ``optimizer.lr=1e-4`` and the like.

    Raises:
        ValueError: If a key is unknown or missing, or a value has the wrong type or range: with the key.
        FileNotFoundError: If there is no such file.
    """
    try:
        layers = [OmegaConf.structured(TrainingConfig), *_layers(Path(path)), OmegaConf.from_dotlist(list(overrides))]
        config = OmegaConf.to_object(OmegaConf.merge(*layers))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} must be a training configuration: {error}".splitlines()[0]) from error
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"{path} must hold a mapping, got {type(config).__name__}")
    check_config(config)
    return config


def save_config(config: TrainingConfig, path: Path) -> None:
    """Write a configuration so that :func:`load_config` reads it back."""
    OmegaConf.save(OmegaConf.structured(config), path)


def check_config(config: TrainingConfig) -> None:
    """Rules that types do not express.

    Raises:
        ValueError: Naming the key.
    """
    _one_of("stage", config.stage, ("text", "joint", "instruction"))
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("sharding", config.sharding, SHARDINGS)
    sources = {name: getattr(config.model, name) for name in ("preset", "qwen2", "checkpoint")}
    if sum(value is not None for value in sources.values()) != 1:
        raise ValueError(f"model must have exactly one of preset, qwen2 and checkpoint, got {sources}")
    if config.model.checkpoint is not None and config.model.embedding_vit is not None:
        raise ValueError(
            f"model.embedding_vit must be null beside a checkpoint, which has one, got {config.model.embedding_vit}; "
            "give it to the first stage"
        )
    if not config.data:
        raise ValueError("data must list at least one source, got none; for example data: [{kind: digits}]")
    source = config.model
    if source.size is not None and source.qwen2 is None:
        raise ValueError(f"model.size must be null without model.qwen2, whose other parts it sizes, got {source.size!r}")
    if source.language_model is not None and source.preset is None:
        raise ValueError(
            f"model.language_model must be null without model.preset, got {source.language_model!r}: a qwen2 and a checkpoint "
            "have a language model"
        )
    drawing = {name: config.tasks.get(name, 0) for name in (GENERATION, UNCONDITIONAL) if config.tasks.get(name, 0)}
    if config.stage == "instruction" and drawing:
        raise ValueError(
            f"tasks must be understanding alone in stage instruction, got {drawing}; set tasks: {{understanding: 1}}"
        )
    unknown = sorted(set(config.tasks) - set(TASKS))
    if unknown:
        raise ValueError(
            f"tasks must be among {', '.join(TASKS)}, got {', '.join(unknown)}; text teaches a frozen language model nothing, "
            "stage: text trains it alone"
        )
    MaskRatio(config.masking.shape, config.masking.low, config.masking.high, config.masking.width)  # type: ignore[arg-type]
    for name in ("timesteps_per_token", "batch_size", "accumulation", "steps", "max_length", "questions", "max_nan"):
        _at_least(name, getattr(config, name), 1)
    if config.threads is not None:
        _at_least("threads", config.threads, 1)
    for name in ("workers", "seed"):
        _at_least(name, getattr(config, name), 0)
    _at_least("saving.samples_every", config.saving.samples_every, 0)
    for name in ("every", "keep", "log_every"):
        _at_least(f"saving.{name}", getattr(config.saving, name), 1)
    for name in ("lr", "clip"):
        value = getattr(config.optimizer, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"optimizer.{name} must be positive, got {value}")
    for name in ("warmup", "decay", "weight_decay"):
        value = getattr(config.optimizer, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"optimizer.{name} must not be negative, got {value}")
    for steps in config.saving.sample_steps:
        _at_least("saving.sample_steps", steps, 1)
    if not 0 <= config.describing <= 1:
        raise ValueError(f"describing must lie in [0, 1], a share of rows, got {config.describing}")
    if not 0 <= config.ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {config.ema}; 0 switches it off")


def _layers(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config must be a YAML file, got {path}; see configs/")
    try:
        layer: Any = OmegaConf.load(path)
    except YAMLError as error:
        raise ValueError(f"{path} must be YAML, got: {' '.join(str(error).split())}") from error
    below = layer.pop("defaults", None)
    if isinstance(layer.get("tasks"), DictConfig):
        layer.tasks = {**dict.fromkeys(TASKS, 0.0), **layer.tasks}
    if layer.get("needs") is not None:
        layer.needs = str((path.parent / layer.needs).resolve())
    return [layer] if below is None else [*_layers(path.parent / below), layer]


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
