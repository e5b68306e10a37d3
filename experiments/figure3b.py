r"""Figure 3B of the paper in small: quality against the scale of guidance, for two lengths of stage 1, on digit scans.

And what guidance does to rounding in the head of a trained MMAR: the error of the guided output over that of one branch,
measured, beside :math:`\sqrt{\omega^2 + (\omega-1)^2}`, which holds where the two branches round independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam import guidance_error_gain
from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.head_study.tables import number
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, DigitJudge, draw_digits, masked_tokens
from experiments.paper_study.study import GPU, QUICK, TINY, Study, load_arm, percent, reference, run_study
from mmar.generation.settings import ImageGenerationConfig
from mmar.image_head import DiffusionTokenHead
from mmar.pipeline import MMARPipeline


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        lengths: Steps of stage 1; stage 2 is the same after each.
        scales: Of guidance.
        timesteps: At which the rounding of the guided output is measured.
        scans: On which it is measured.
    """

    lengths: tuple[int, ...] = (100, 400)
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900, 990)
    scans: int = 400


PRESETS = {
    "smoke": Config((0,), TINY, Amount(2, 1, 3), lengths=(1, 2), scales=(1.0, 3.0), timesteps=(500,), scans=4, workers=0),
    "quick": Config((0,), QUICK, Amount(drawn=10, head_steps=25), lengths=(50, 200), scales=(1.0, 2.0, 5.0)),
    "cpu": Config((0,)),
    "gpu": Config(recipe=GPU, lengths=(750, 3000), workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """MMAR after one length of stage 1, with one seed: drawn with every scale; its roundings."""
    length, seed = (int(word) for word in key.removeprefix("stage1-").split("-seed"))
    pipeline = load_arm(replace(config, recipe=replace(config.recipe, stage1_steps=length)), ARMS["v_mixed"], seed)
    tick(1)
    judge, drawing = DigitJudge(), []
    for scale in config.scales:
        settings = ImageGenerationConfig(head_steps=config.amount.head_steps, guidance_scale=scale)
        pictures, wanted, _ = draw_digits(pipeline, settings, config.amount.drawn, seed=seed)
        drawing.append(judge.judge(pictures, wanted))
        tick(1)
    return {"drawing": drawing, "gain": rounding_gain(pipeline, config, seed)}


def rounding_gain(pipeline: MMARPipeline, config: Config, seed: int) -> list[list[float]]:
    """Rms error of the guided output in bf16 over that of the conditional branch: for each timestep, each scale.

    Both branches see the same masks and noise; their conditions are those of the model as it computes.
    """
    head = pipeline.model.image_model.head
    if not isinstance(head, DiffusionTokenHead):
        raise TypeError(f"pipeline must have a diffusion head, got {type(head).__name__}")
    branches = [
        masked_tokens(pipeline, "test", seed=seed, limit=config.scans, is_captioned=captioned) for captioned in (True, False)
    ]
    x0 = branches[0].tokens
    source = torch.Generator().manual_seed(seed)
    found = []
    for t in config.timesteps:
        x_t = head.schedule.add_noise(x0, torch.randn(x0.shape, generator=source), t)
        high, low = (
            [_output(head, x_t, t, branch.z, dtype) for branch in branches] for dtype in (torch.float32, torch.bfloat16)
        )
        single = _rms(low[0] - high[0])
        found.append([_rms(_guided(*low, scale) - _guided(*high, scale)) / single for scale in config.scales])
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All lengths and seeds."""
    keys = {length: [f"stage1-{length}-seed{seed}" for seed in config.seeds] for length in config.lengths}
    everything = [key for part in keys.values() for key in part]
    jobs = run_study(job, config, everything, units=1 + len(config.scales), folder=folder, resume=resume)
    curves = {
        str(length): {
            name: [over_seeds([jobs[key]["drawing"][i].get(name) for key in part]) for i in range(len(config.scales))]
            for name in ("frechet", "recognised", "recall")
        }
        for length, part in keys.items()
    }
    longest = keys[max(config.lengths)]
    gains = [
        [over_seeds([jobs[key]["gain"][row][i] for key in longest]) for i in range(len(config.scales))]
        for row in range(len(config.timesteps))
    ]
    predicted = [float(guidance_error_gain(scale)) for scale in config.scales]
    return {"reference": reference(config), "curves": curves, "gain": {"measured": gains, "predicted": predicted}}


def show(record: dict[str, Any]) -> str:
    """Quality by scale and length; then the gain of the rounding error."""
    found, config = record["results"], record["config"]
    scales, seeds = config["scales"], len(config["seeds"])
    head = f"{'guidance scale':24}" + "".join(f"{scale:>14g}" for scale in scales)
    lines = [head]
    for length, curves in found["curves"].items():
        lines.append(f"{'Frechet, stage 1 ' + length:24}" + "".join(f"{number(c, seeds):>14}" for c in curves["frechet"]))
        lines.append(f"{'recognised':24}" + "".join(f"{percent(c, seeds):>14}" for c in curves["recognised"]))
    lines.append("\nerror of the guided output over that of a branch")
    for t, row in zip(config["timesteps"], found["gain"]["measured"], strict=True):
        lines.append(f"{'t = ' + str(t):24}" + "".join(f"{number(c, seeds):>14}" for c in row))
    lines.append(f"{'independent roundings':24}" + "".join(f"{c:14.3g}" for c in found["gain"]["predicted"]))
    return "\n".join(lines)


def _output(head: DiffusionTokenHead, x_t: Tensor, t: int, z: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode():
        times = torch.full((len(x_t),), t, device=z.device)
        output: Tensor = head.head(x_t.to(z.device), times, z, dtype=dtype)
    return output.double().cpu()


def _guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    return unconditional + scale * (conditional - unconditional)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def main() -> None:
    run_command("figure3b", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
