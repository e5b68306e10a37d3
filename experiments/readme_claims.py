"""The paper's claims beside our measurements, from the committed records; called by :mod:`experiments.readme`."""

from __future__ import annotations

from collections.abc import Callable

from experiments.claims import model, precision
from experiments.claims.numbers import Cells
from experiments.readme_mmar import table
from experiments.readme_paper import OPEN, exists
from experiments.record import read_record


def claims() -> str:
    """A row a claim: what the paper says, what was found, how, and whether they agree."""
    rows = []
    for claim, source, record, found in _CLAIMS:
        measured, verdict = found(_cells(record)) if exists(record) else (OPEN, "open")
        experiment, _, preset = record.rpartition("-")
        rows.append([claim, source, measured, f"`python experiments/{experiment}.py --preset {preset}`", verdict])
    return table(["the paper says", "where", "measured here", "command", "verdict"], rows)


def _cells(record: str) -> Cells:
    whole = read_record(record)
    return {**whole["results"], "config": whole["config"]}


Found = Callable[[Cells], tuple[str, str]]
"""What a record says of a claim: numbers, and the verdict."""
_CLAIMS: tuple[tuple[str, str, str, Found], ...] = (
    (
        "A relative error of the output is multiplied by 1/\\|sin(ψ - φ)\\| in a DDIM step",
        "eq. 18", "prediction_check-cpu", precision.amplification,
    ),
    ("v is the optimal output", "A.2, eq. 21", "optimum-cpu", precision.optimum),
    ("v is the safe output in bf16", "section 3.2", "safe_in_bf16-cpu", precision.v_is_safe),
    ("The gap between the losses of ε and v is bf16's error", "figure 3A", "eps_vs_v-cpu", precision.gap),
    ("The same, with a head of the paper's size (1024 wide, 8 deep)", "figure 3A", "eps_vs_v-gpu", precision.gap),
    ("The same, in MMAR's own head", "figure 3A", "table3-cpu", precision.gap_in_mmar),
    ("The direct error is 1/(128² ᾱ)", "eq. 27", "eps_vs_v-cpu", precision.direct),
    ("The same, in MMAR's own head", "eq. 27", "table3-cpu", precision.direct_in_mmar),
    ("bf16 also hinders the optimization of ε", "section 4.5", "eps_vs_v-cpu", precision.pure_training),
    ("The same, with a head of the paper's size", "section 4.5", "eps_vs_v-gpu", precision.pure_training),
    ("The same, in MMAR's own head", "section 4.5", "table3-cpu", precision.pure_training_in_mmar),
    ("Outputs go to float32 before the sampler, for its accuracy", "section 3.3.4", "sampler_precision-cpu", precision.sampler),
    ("v reads and draws better than ε, VQ, transfusion-like", "table 3", "table3-cpu", model.table3),
    ("The same, on scenes", "table 3", "table3_scenes-cpu", model.table3_scenes),
    ("ε draws worse than v because of bf16", "section 4.4", "table3-cpu", precision.cause),
    ("Diffusion on whole images, and codes, cost reading", "sections 1, 4.4", "table3-cpu", model.diffusion_reading),
    ("The same, on scenes", "sections 1, 4.4", "table3_scenes-cpu", model.diffusion_reading_scenes),
    ("A codebook loses information of the image", "section 1", "digit_tokenizers-cpu", model.codes),
    ("One model reads and draws well", "section 4", "mmar_digits-cpu", model.digits),
    ("The same, of several objects", "section 4", "mmar_scenes-cpu", model.scenes),
    ("MMAR reads better than the other joint models", "table 1", "table1-cpu", model.families),
    ("The tokens of an image share one position", "section 3.3.2", "ablations-cpu", model.positions),
    ("Larger models do both better", "tables 1, 2", "table1-cpu", model.scaling),
    ("Guidance up to a scale of 10 lowers the FID", "figure 3B", "figure3b-cpu", model.guidance),
    ("A longer stage 1 is better at every scale", "figure 3B", "figure3b-cpu", model.longer),
    ("Understanding grows through both stages, unsaturated", "figure 3C", "figure3c-cpu", model.steps),
    ("Stage 2 removes holes", "figure 5", "figure5-cpu", model.holes),
    ("A transfusion-like model reads most things best at some noise", "A.8, figure 7", "figure7-cpu", model.noise),
    ("256 x 100 steps make an image slow", "section 4.6", "speed_quality-cpu", model.speed),
)  # fmt: skip
