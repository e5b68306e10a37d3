r"""Does guidance multiply rounding errors by :math:`\sqrt{\omega^2 + (\omega - 1)^2}`? Exact branches, each rounded on its own.

Three questions. At one noise level: the gain of the guided output's error, the correlation of the two branches' roundings and
what a sawtooth says of it. Over a run: the final sample's error against ``predict_error(guidance=...)`` and against predictions
that know both branches, and what forming the guided output in bf16 adds. Nearly equal branches: the gain over their distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam import (
    EPSILON,
    AngularParam,
    ErrorModel,
    GaussianMixture,
    Plan,
    RoundingError,
    Schedule,
    V,
    guidance_error_gain,
    guide,
    plan_ddim,
    predict_error,
    round_to,
    sample,
    trace_sensitivity,
)
from diffparam.solvers.loop import Model, timestep_tensor
from diffparam.solvers.step import advance
from experiments.command import run_command
from experiments.jobs import run_jobs

SCHEDULE = Schedule.cosine(1000).up_to(980)
"""kappa of epsilon stays below 40: far less of the error is made by the first step alone than from t = 999."""
PARAMS = {"v_prediction": V, "epsilon": EPSILON}
ERRORS: dict[str, ErrorModel] = {"nearest": RoundingError("bfloat16"), "stochastic": RoundingError("bfloat16", "stochastic")}
"""Stochastic roundings of the two branches are independent even where the branches are equal: the control."""


def mixtures(separation: float = 1.0) -> tuple[GaussianMixture, GaussianMixture]:
    """All data, three classes of two modes each in four dimensions, and the first class; means times ``separation``."""
    means = separation * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    stds = torch.tensor([0.3, 0.5] * 3, dtype=torch.float64)
    return GaussianMixture(means, stds), GaussianMixture(means[:2], stds[:2])


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        count: Samples, also of the reverse pass: the same ones, some of which are far more sensitive than others.
        steps: DDIM steps of a run.
        omegas: Guidance scales.
        phis: Noise levels of the first question, radians.
        separations: Factors on the classes' means of the third question.
        seed: Of everything.
        device: Where it runs.
    """

    count: int = 4096
    steps: int = 50
    omegas: tuple[float, ...] = (1.0, 1.5, 3.0, 5.0, 7.5, 10.0)
    phis: tuple[float, ...] = (0.05, 0.2, 0.4, 0.8, 1.2, 1.5)
    separations: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0)
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config(1024, 8, (1.0, 7.5), (0.05, 0.8), (1.0, 0.1, 0.0)),
    "quick": Config(1024, 25),
    "cpu": Config(),
    "gpu": Config(1 << 15, device="cuda"),
}


# -- one noise level --------------------------------------------------------------------------------------------------


def branch_outputs(config: Config, phi: float, param: AngularParam, separation: float = 1.0) -> tuple[Tensor, Tensor]:
    """Unconditional and conditional output for noised samples of the class, each ``(count, 4)``."""
    everything, one_class = mixtures(separation)
    draws = torch.Generator().manual_seed(config.seed)
    x0 = one_class.sample(config.count, draws)
    x_t = (math.cos(phi) * x0 + math.sin(phi) * torch.randn(x0.shape, dtype=torch.float64, generator=draws)).to(config.device)
    return everything.output(x_t, phi, param=param), one_class.output(x_t, phi, param=param)


def level_row(uncond: Tensor, cond: Tensor, omegas: Sequence[float], seed: int) -> dict[str, Any]:
    r"""Errors of the guided output, in units of one branch's, and what predicts them.

    Rounding to nearest is a sawtooth of the value, and two values that lie f units apart (its fractional part) are rounded with
    correlation 1 - 6 f (1 - f): 1 for equal branches, 0 on average over many units. With it the mean square is
    :math:`\omega^2e_c^2 + (\omega-1)^2e_u^2 - 2\omega(\omega-1)\rho\,e_ce_u`. ``formula`` is what ``predict_error`` says of
    independent branches, each of the size of the guided output.
    """
    draws = torch.Generator(uncond.device).manual_seed(seed)
    made = {name: (error.apply(uncond, draws) - uncond, error.apply(cond, draws) - cond) for name, error in ERRORS.items()}
    at_uncond, at_cond = made["nearest"]
    one = math.sqrt((at_uncond.square().mean().item() + at_cond.square().mean().item()) / 2)
    unit = unit_in_last_place(torch.maximum(uncond.abs(), cond.abs()))
    apart = (cond - uncond).abs() / unit
    weight = unit.square() / unit.square().sum()  # as the errors enter the mean square
    rho = float((weight * (1.0 - 6.0 * apart.frac() * (1.0 - apart.frac()))).sum())
    e_u, e_c = (math.sqrt(ERRORS["nearest"].energy(v.square().mean().item())) for v in (uncond, cond))
    row: dict[str, Any] = {
        "apart": _rms(cond - uncond) / _rms(unit),
        "within_a_unit": (apart < 1.0).double().mean().item(),
        "rho": float((at_uncond * at_cond).sum() / (at_uncond.norm() * at_cond.norm())),
        "rho_predicted": rho,
        "formula": [],
        "correlated": [],
    }
    for omega in omegas:
        size = guide(uncond, cond, omega).square().mean().item()
        square = (omega * e_c) ** 2 + ((omega - 1.0) * e_u) ** 2 - 2 * omega * (omega - 1.0) * rho * e_c * e_u
        row["formula"].append(guidance_error_gain(omega) * math.sqrt(ERRORS["nearest"].energy(size)) / one)
        row["correlated"].append(math.sqrt(square) / one)
    for name, (in_uncond, in_cond) in made.items():
        alone = math.sqrt((in_uncond.square().mean().item() + in_cond.square().mean().item()) / 2)
        row[name] = [_rms(guide(in_uncond, in_cond, omega)) / alone for omega in omegas]
    return row


def unit_in_last_place(x: Tensor) -> Tensor:
    """Of bf16 at ``x``: the spacing of its binade, 2^-7 times the power of two below."""
    _, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(x), exponent - 8)


# -- whole runs -------------------------------------------------------------------------------------------------------


def run_row(config: Config, plan: Plan, omega: float) -> dict[str, Any]:
    """Final errors of one guidance scale: predicted, then measured."""
    branches = [data.model(SCHEDULE, plan.param) for data in mixtures()]
    exact = partial(guided, branches, omega, None, None)
    noise = torch.randn(config.count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed))
    noise = noise.to(config.device)
    sizes = trace_sensitivity(exact, plan, noise, generator=_generator(config, 1))
    row: dict[str, Any] = {}
    for name, error in ERRORS.items():
        budget = predict_error(plan, sizes, output=error, arithmetic=None, state=None, timestep=None, guidance=omega)
        row[f"{name}_formula"] = budget.rms
        row[f"{name}_flags"] = sorted({flag.kind for flag in budget.flags})
        both = branch_errors(branches, omega, plan, noise, error, _generator(config, 2))
        row |= {f"{name}_{label}": value for label, value in both.items()}
    right = sample(exact, noise, plan)
    for name, error in ERRORS.items():
        wrong = partial(guided, branches, omega, error, _generator(config, 3))
        row[f"{name}_measured"] = _rms(sample(wrong, noise, plan) - right)
    for name, formed in (("rounded_once", guided_once), ("in_bf16", guided_in_bf16)):
        row[f"{name}_measured"] = _rms(sample(partial(formed, branches, omega), noise, plan) - right)
    return row


def guided(
    branches: Sequence[Model], omega: float, error: ErrorModel | None, draws: torch.Generator | None, x: Tensor, t: Tensor
) -> Tensor:
    """The guided output in float64, with an error in each branch."""
    uncond, cond = (model(x, t) if error is None else error.apply(model(x, t), draws) for model in branches)
    return guide(uncond, cond, omega)


def guided_once(branches: Sequence[Model], omega: float, x: Tensor, t: Tensor) -> Tensor:
    """:func:`diffparam.guide` of bf16 branches: formed in float32, rounded once more to bf16."""
    uncond, cond = (model(x, t).to(torch.bfloat16) for model in branches)
    return guide(uncond, cond, omega).to(x.dtype)


def guided_in_bf16(branches: Sequence[Model], omega: float, x: Tensor, t: Tensor) -> Tensor:
    """Difference, product and sum each rounded to bf16."""
    uncond, cond = (round_to(model(x, t), "bfloat16") for model in branches)
    change = round_to(round_to(cond - uncond, "bfloat16") * omega, "bfloat16")
    return round_to(uncond + change, "bfloat16")


def branch_errors(
    branches: Sequence[Model], omega: float, plan: Plan, x: Tensor, error: ErrorModel, draws: torch.Generator
) -> dict[str, float]:
    r"""Final rms error from both branches' outputs along a traced run; errors of different steps are independent.

    ``branches``: independent errors, each of its own branch's size, :math:`\delta^2(\omega^2u_c^2 + (\omega-1)^2u_u^2)`.
    ``emulated``: the roundings that these very values suffer, which are the same where the branches are.
    """
    bumps, locals_ = [], []
    memory: Tensor | None = None
    with torch.enable_grad():
        for step in plan.steps():
            uncond, cond = (model(x, timestep_tensor(step.timestep, x)) for model in branches)
            bumps.append(torch.zeros_like(x, requires_grad=True))
            x, memory = advance(step.coefficients, guide(uncond, cond, omega) + bumps[-1], x, memory)
            u, c = uncond.detach(), cond.detach()
            own = math.sqrt(error.energy(1.0)) * torch.hypot(omega * c, (omega - 1.0) * u)
            locals_.append((own, guide(error.apply(u, draws) - u, error.apply(c, draws) - c, omega)))
        zeta = torch.randn(x.shape, generator=draws, dtype=x.dtype, device=x.device)
        gains = torch.autograd.grad((zeta * x).sum(), bumps)

    def total(which: int) -> float:
        return math.sqrt(sum((g * local[which]).square().mean().item() for g, local in zip(gains, locals_, strict=True)))

    return {"branches": total(0), "emulated": total(1)}


def _generator(config: Config, offset: int) -> torch.Generator:
    return torch.Generator(config.device).manual_seed(config.seed + offset)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


# -- the experiment ---------------------------------------------------------------------------------------------------


def run_part(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: ``levels`` or ``run`` of a parameterization, or ``separation``."""
    question, _, name = key.partition("-")
    if question == "run":
        plan = plan_ddim(SCHEDULE.respace(config.steps), param=PARAMS[name])
        rows = []
        for omega in config.omegas:
            rows.append(run_row(config, plan, omega))
            tick(1)
        return {"omega": list(config.omegas), **_columns(rows)}
    if question == "levels":
        cases = [branch_outputs(config, phi, PARAMS[name]) for phi in config.phis]
    else:
        cases = [branch_outputs(config, 0.8, V, separation) for separation in config.separations]
    tick(len(config.omegas))
    return _columns([level_row(*case, config.omegas, config.seed + 1) for case in cases])


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {label: [row[label] for row in rows] for label in rows[0]}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All three questions."""
    keys = [f"{question}-{name}" for question in ("levels", "run") for name in PARAMS] + ["separation"]
    return run_jobs(run_part, config, keys, units_per_job=len(config.omegas), folder=folder, workers=0, resume=resume)


def tables(record: dict[str, Any]) -> str:
    """One table per question and parameterization."""
    results, config = record["results"], record["config"]
    omegas = config["omegas"]
    lines = [
        "error of the guided output over one branch's; (measured / predicted: both branches and correlation, predict_error)"
    ]
    top = "apart  rho (pred)  " + "".join(f"{f'w={w:g}: {guidance_error_gain(w):.4g}':>22}" for w in omegas)
    for key in (*(f"levels-{name}" for name in PARAMS), "separation"):
        part, labels = results[key], config["separations"] if key == "separation" else config["phis"]
        lines += ["", f"{key + (' of the classes, v' if key == 'separation' else ', by phi'):12}", f"{'':8}{top}"]
        for i, label in enumerate(labels):
            columns = (part["nearest"][i], part["correlated"][i], part["formula"][i])
            cells = "".join(f"{f'{m:.2f} ({m / c:.2f}, {m / f:.2f})':>22}" for m, c, f in zip(*columns, strict=True))
            lines.append(f"{label:<8g}{part['apart'][i]:5.3g} {part['rho'][i]:5.2f} ({part['rho_predicted'][i]:4.2f})  {cells}")
    for name in PARAMS:
        part = results[f"run-{name}"]
        lines += ["", f"{name}, {config['steps']} DDIM steps: final rms error, and measured / predicted", _RUN_HEADER]
        for i, omega in enumerate(part["omega"]):
            line = [f"{omega:<6g}"]
            for error in ERRORS:
                measured = part[f"{error}_measured"][i]
                ratios = (measured / part[f"{error}_{p}"][i] for p in ("formula", "branches", "emulated"))
                line.append(f"{measured:9.2e} " + " ".join(f"{r:8.2f}" for r in ratios))
            line += [f"{part[f'{v}_measured'][i] / part['nearest_measured'][i]:8.2f}" for v in ("rounded_once", "in_bf16")]
            lines.append("  ".join(line))
    return "\n".join(lines)


_RUN_HEADER = (
    "omega   nearest    formula branches emulated    stochastic formula branches emulated  to bf16  in bf16 (over float32)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("guidance_error", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
