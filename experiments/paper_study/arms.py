"""The arms of a comparison: one thing changed in each, the frozen language model, the data and the steps the same for all."""

from __future__ import annotations

from dataclasses import dataclass

from mmar.baselines import BASELINES


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
    Arm("edm", "EDM head, sigma_data 1: v itself", options=_head("prediction_type=edm", "sigma_data=1.0")),
    Arm("edm_half", "EDM head, sigma_data 0.5", options=_head("prediction_type=edm", "sigma_data=0.5")),
    Arm("sample", "clean-token head", options=_head("prediction_type=sample")),
    Arm("raster", "raster order, causal image", "raster"),
    Arm("sequential", "a position for each token", options=("model.options.image_positions=sequential",)),
    Arm("noised_context", "reads noised images", options=("model.options.noised_context=true",)),
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
"""One thing changed: other heads, orders, positions, a noised context, switches of precision, numbers of tokens."""

ARMS = {**TABLE3, **TABLE1, **MASKS, **ABLATIONS}
"""All arms by name."""
