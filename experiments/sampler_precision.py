r"""What does low precision in the sampler of a trained MMAR cost, and is it predicted? Forward pass, state, everything in bf16.

The heads of table 3's v and epsilon arms, with the conditions that their models give, on masked tokens of test scans. The same
noise is sampled in float32 and in each precision; ``predict_error`` with the head's traced sensitivity, and its bf16 arithmetic
calibrated on training scans, says beforehand how far they will be apart: with how errors correlate from call to call, and, as a
control, as if they did not. A bf16 step is computed as a change of the state, and, as a control, plainly. Then whole digits are
drawn in each precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam import (
    EPSILON,
    NonFiniteError,
    RoundingError,
    largest_safe_timestep,
    plan_ddim,
    predict_error,
    sample,
    trace_sensitivity,
)
from diffparam.calibration import calibrate
from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.head_study.tables import number
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, DigitJudge, draw_digits, masked_tokens
from experiments.paper_study.study import GPU, NOTHING, QUICK, TINY, Study, arm_keys, parse_key, percent, run_study, trained
from experiments.tokens import TokenSet
from mmar.generation.settings import ImageGenerationConfig
from mmar.image_head import DiffusionTokenHead
from mmar.pipeline import MMARPipeline
from mmar.training.loop import FINAL

BF16 = RoundingError("bfloat16")
WAYS = ("forward", "plain", "state", "everything")
"""bf16 in the forward pass of the head; in state, coefficients and sums of the solver, by the plain update as a control, and by
changes of the state, as MMAR draws; in both."""


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        arms: Of table 3.
        steps: Of DDIM.
        scans: Whose masked tokens are sampled, of each split.
    """

    arms: tuple[str, ...] = ("v_mixed", "eps_mixed")
    steps: int = 50
    scans: int = 100


PRESETS = {
    "smoke": Config((0,), TINY, Amount(drawn=1, head_steps=2), steps=3, scans=4, workers=0),
    "quick": Config((0,), QUICK, Amount(drawn=10, head_steps=25), steps=25, scans=40),
    "cpu": Config((0,)),  # further seeds are trained beside this one
    "gpu": Config(recipe=GPU, scans=400, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm with one seed: predicted and measured, then drawn."""
    arm, seed = parse_key(key)
    stage2 = trained(config.runs, arm, seed, lambda _: None)["stage2"]
    tick(1)
    pipeline = MMARPipeline.from_pretrained(stage2 / FINAL, dtype=torch.float32, compute_dtype=torch.float32)
    found = {"errors": _errors(pipeline, config, seed)}
    tick(1)
    judge, drawing = DigitJudge(), {}
    for name, forward, sampler in (
        ("float32", torch.float32, "float32"),
        ("forward", torch.bfloat16, "float32"),
        ("state", torch.float32, "bfloat16"),
        ("everything", torch.bfloat16, "bfloat16"),
    ):
        pipeline.compute_dtype = forward
        settings = ImageGenerationConfig(
            head_steps=config.amount.head_steps, max_timestep=_start(pipeline), sampler_dtype=sampler
        )  # type: ignore[arg-type]
        pictures, wanted, _ = draw_digits(pipeline, settings, config.amount.drawn, seed=seed)
        drawing[name] = judge.judge(pictures, wanted)
    tick(1)
    return {**found, "drawing": drawing}


def _errors(pipeline: MMARPipeline, config: Config, seed: int) -> dict[str, dict[str, float | None]]:
    """Rms distance of the final tokens from those of float32: predicted, if errors were independent or all alike, measured."""
    token_head = pipeline.model.image_model.head
    if not isinstance(token_head, DiffusionTokenHead):
        raise TypeError(f"pipeline must have a diffusion head, got {type(token_head).__name__}")
    held_out, seen = (masked_tokens(pipeline, split, seed=seed, limit=config.scans) for split in ("test", "train"))
    schedule, param = token_head.schedule, pipeline.model.config.diffusion_head_config.param
    plan = plan_ddim(schedule.up_to(_start(pipeline)).respace(config.steps), param=param)
    draws = torch.Generator().manual_seed(5_000_000 + seed)
    noise = torch.randn(held_out.tokens.shape, generator=draws)
    head, z = token_head.head.requires_grad_(False), held_out.z
    wide = copy.deepcopy(head).double()
    traced = trace_sensitivity(
        _network(wide, z, torch.float64), plan, noise.double(), generator=draws, emulate_arithmetic=BF16.fmt
    )
    calibrated = calibrate(head, _batches(seen, plan.timestep.tolist(), schedule, draws), correlated=True).at(plan)
    exact = sample(_network(head, z, torch.float32), noise, plan)
    found = {}
    for way in WAYS:
        forward, solver, increments = way in ("forward", "everything"), way != "forward", way in ("state", "everything")
        budget = predict_error(
            plan, traced, output=calibrated if forward else None, arithmetic="bfloat16" if solver else None,
            state=BF16 if solver else None, timestep=None, increments=increments,
        )  # type: ignore[arg-type]  # fmt: skip
        options = {"state_error": BF16, "arithmetic": "bfloat16", "increments": increments} if solver else {}
        model = _network(head, z, torch.bfloat16 if forward else torch.float32)
        found[way] = {
            "predicted": budget.rms,
            "independent": budget.independent,
            "correlated": budget.correlated,
            "measured": _distance(model, noise, plan, exact, options),
        }
    return {"rms": {"sample": _rms(exact)}, **found}


NOTHING_DRAWN = {"recognised": NOTHING, "frechet": NOTHING}
"""Of the way that is a control of the error alone."""


def _start(pipeline: MMARPipeline) -> float:
    """The last timestep; for epsilon the largest that one rounding leaves safe."""
    schedule = pipeline.model.config.schedule_config.build()
    if pipeline.model.config.diffusion_head_config.param != EPSILON:
        return float(schedule.timesteps[-1])
    return float(largest_safe_timestep(schedule, param=EPSILON, delta="rms") or 0.0)


def _network(head: Any, z: Tensor, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: head(x, t, z, dtype=dtype)


def _batches(data: TokenSet, timesteps: list[float], schedule: Any, draws: torch.Generator) -> Any:
    eps = torch.randn(data.tokens.shape, generator=draws)
    for t in timesteps:  # the same samples at each, as in a run
        yield schedule.add_noise(data.tokens, eps, t), torch.full((len(data),), t), data.z


def _distance(model: Any, noise: Tensor, plan: Any, exact: Tensor, options: dict[str, Any]) -> float | None:
    try:
        with torch.no_grad():
            return _rms(sample(model, noise, plan, **options) - exact)
    except NonFiniteError:
        return None


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds."""
    jobs = run_study(job, config, arm_keys(config.arms, config.seeds), units=3, folder=folder, resume=resume)
    found = {}
    for name in config.arms:
        seeds = [jobs[f"{name}-seed{seed}"] for seed in config.seeds]
        found[name] = {
            "errors": {
                way: {
                    key: over_seeds([s["errors"][way][key] for s in seeds])
                    for key in ("predicted", "independent", "correlated", "measured")
                }
                for way in WAYS
            },
            "sample_rms": over_seeds([s["errors"]["rms"]["sample"] for s in seeds]),
            "drawing": {
                way: {key: over_seeds([s["drawing"][way].get(key) for s in seeds]) for key in ("recognised", "frechet")}
                for way in seeds[0]["drawing"]
            },
        }
    return {"arms": found}


def show(record: dict[str, Any]) -> str:
    """Errors predicted and measured; then what was drawn."""
    seeds = len(record["config"]["seeds"])
    columns = ("predicted", "independent", "all one way", "measured", "ratio", "recognised", "Frechet")
    lines = [f"{'':44}" + "".join(f"{column:>14}" for column in columns)]
    for name, arm in record["results"]["arms"].items():
        for way in ("float32", *WAYS):
            error, drawn = arm["errors"].get(way), arm["drawing"].get(way, NOTHING_DRAWN)
            cells = [""] * 5
            if error is not None:
                cells = [number(error[key], seeds) for key in ("predicted", "independent", "correlated", "measured")]
                ratio = None if error["measured"]["mean"] is None else error["measured"]["mean"] / error["predicted"]["mean"]
                cells.append("-" if ratio is None else f"{ratio:.2f}")
            cells += [percent(drawn["recognised"], seeds), number(drawn["frechet"], seeds)]
            title = f"{ARMS[name].label}: {way}"
            lines.append(f"{title:44}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    run_command("sampler_precision", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
