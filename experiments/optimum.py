r"""Is v the best angle? The psi that loses least to rounding, found by search, against the closed form; and what v loses.

At one noise level the output of an exact network is formed for every angle psi, rounded to bf16 and taken back to v-space: the
angle of least loss against :math:`\tan\psi^* = -\sigma_d^2\cot\phi`, for Gaussian data and a mixture of every scale. Then the
loss of v over the least, for the training target and for the network's own output, and the final error of whole runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    X0,
    AngularParam,
    GaussianMixture,
    OutputMoments,
    RoundingError,
    Schedule,
    V,
    convert,
    gaussian_sensitivity,
    loss_floor,
    optimal_angle,
    plan_ddim,
    predict_error,
    predict_v,
    sample,
    trace_sensitivity,
)
from experiments.command import run_command
from experiments.jobs import run_jobs

SCHEDULE = Schedule.cosine(1000).up_to(980)
"""kappa of epsilon stays below 40, so that its runs can be compared with the others."""
ROUNDING = RoundingError("bfloat16")
DELTA_SQ = ROUNDING.rms**2
"""Losses are in units of it: 1 is what v costs if its output has unit variance (eq. 19)."""
TINY = 1e-9
"""Below it a loss or an error is that of float64: the network says nothing that could be rounded."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        count: Samples.
        grid: Angles of the search, over half a turn.
        steps: DDIM steps of a run.
        sigmas: Standard deviations of the data.
        phis: Noise levels, radians.
        kinds: ``gaussian`` and ``mixture``.
        seed: Of everything.
        device: Where it runs.
    """

    count: int = 8192
    grid: int = 180
    steps: int = 50
    sigmas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    phis: tuple[float, ...] = (0.1, 0.4, 0.8, 1.2, 1.5)
    kinds: tuple[str, ...] = ("gaussian", "mixture")
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config(1024, 60, 10, (0.5, 1.0), (0.8, 1.2)),
    "quick": Config(2048, 90, 25),
    "cpu": Config(),
    "gpu": Config(1 << 18, 720, device="cuda"),
}


def data_of(kind: str, sigma_data: float) -> GaussianMixture:
    """Two dimensions, of second moment ``sigma_data**2`` per element: one Gaussian, or two of different widths."""
    if kind == "gaussian":
        return GaussianMixture.gaussian(sigma_data, dim=2)
    means = torch.tensor([[-1.0, 0.4], [0.9, -0.2]], dtype=torch.float64)
    stds = torch.tensor([0.3, 0.6], dtype=torch.float64)
    scale = sigma_data / math.sqrt(float(means.square().mean() + stds.square().mean()))
    return GaussianMixture(scale * means, scale * stds)


# -- one noise level --------------------------------------------------------------------------------------------------


def rounding_loss(psi: float, phi: float, x_t: Tensor, v_hat: Tensor) -> float:
    """Mean square in v-space of one rounding of u(psi), over delta^2; float64 but for the rounding."""
    param = AngularParam(psi)
    u = convert(v_hat, x_t, phi, source=V, target=param)
    return float((predict_v(ROUNDING.apply(u), x_t, phi, param=param) - v_hat).square().mean()) / DELTA_SQ


def search(phi: float, x_t: Tensor, v_hat: Tensor, grid: int) -> tuple[float, list[float]]:
    """Psi of the least :func:`rounding_loss` in ``(phi, phi + pi)``: the best of a grid, then Brent's method around it.

    Returns:
        The angle, and the losses on the grid (:func:`thetas`).
    """
    losses = [rounding_loss(phi + theta, phi, x_t, v_hat) for theta in thetas(grid)]
    best, width = phi + thetas(grid)[int(np.argmin(losses))], math.pi / grid
    bounds = (max(best - width, phi + 1e-3), min(best + width, phi + math.pi - 1e-3))
    found = minimize_scalar(rounding_loss, bounds=bounds, args=(phi, x_t, v_hat), method="bounded", options={"xatol": 1e-7})
    return float(found.x) if found.fun < min(losses) else float(best), losses


def thetas(grid: int) -> np.ndarray:
    """Angles between output and state on the grid, radians in (0, pi); v is the middle."""
    return np.arange(1, grid) * (math.pi / grid)


def angle_row(config: Config, kind: str, sigma_data: float, phi: float) -> dict[str, Any]:
    """Search and closed form at one noise level."""
    data = data_of(kind, sigma_data)
    draws = torch.Generator().manual_seed(config.seed)
    x0 = data.sample(config.count, draws).to(config.device)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=draws).to(config.device)
    x_t = math.cos(phi) * x0 + math.sin(phi) * eps
    v_hat = data.predict_v(x_t, phi)
    measured = OutputMoments.measure(x_t, v_hat)
    psi, losses = search(phi, x_t, v_hat, config.grid)
    closed, of_sigma = float(optimal_angle(phi, measured)), AngularParam.optimal(sigma_data)

    def predicted(param: AngularParam) -> float:
        return float(loss_floor(phi, param=param, delta=1.0, moments=measured))

    target = {
        name: float((ROUNDING.apply(u := param.target(x0, eps, phi)) - u).square().mean())
        * float(param.condition_number(phi) / param.r_at(phi)) ** 2
        for name, param in (("v", V), ("optimal", of_sigma))
    }
    return {
        "phi": phi,
        "psi_search": psi,
        "psi_moments": closed,
        "psi_sigma_data": float(of_sigma.psi_at(phi)),
        "gap_moments": turn_between(psi, closed),
        "gap_sigma_data": turn_between(psi, float(of_sigma.psi_at(phi))),
        "loss_search": rounding_loss(psi, phi, x_t, v_hat),
        "loss_moments": rounding_loss(closed, phi, x_t, v_hat),
        "loss_v": rounding_loss(phi + math.pi / 2, phi, x_t, v_hat),
        "predicted_moments": predicted(AngularParam(closed)),
        "predicted_v": predicted(V),
        "target_ratio": target["v"] / target["optimal"],
        "target_ratio_predicted": target_ratio(phi, sigma_data),
        "losses": losses,
        "predicted": [predicted(AngularParam(phi + theta)) for theta in thetas(config.grid)],
    }


def turn_between(a: float, b: float) -> float:
    """Signed angle from b to a up to the sign of u, radians in [-pi/2, pi/2]."""
    return math.remainder(a - b, math.pi)


def target_ratio(phi: float, sigma_data: float) -> float:
    r"""Loss floor of v over the least, for a network that outputs its target: 1 + ((1 - sigma_d^2) sin 2phi / 2 sigma_d)^2.

    With E[u^2] = r^2 (cos^2 psi sigma_d^2 + sin^2 psi) the floor over delta^2 is cos^2 phi + sin^2 phi sigma_d^2 for v and
    sigma_d^2 / (cos^2 phi sigma_d^2 + sin^2 phi) at psi*. The same for sigma_d and 1 / sigma_d.
    """
    return 1.0 + ((1.0 - sigma_data**2) * math.sin(2.0 * phi) / (2.0 * sigma_data)) ** 2


# -- whole runs -------------------------------------------------------------------------------------------------------


def run_rows(config: Config, kind: str, sigma_data: float) -> dict[str, Any]:
    """Final rms error of DDIM runs with a rounded output over the rms of the sample, by parameterization."""
    data, rows = data_of(kind, sigma_data), {}
    noise = torch.randn(config.count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed))
    noise = noise.to(config.device)
    for param in (V, AngularParam.optimal(sigma_data), FLOW, X0, EPSILON):
        plan = plan_ddim(SCHEDULE.respace(config.steps), param=param)
        model = data.model(SCHEDULE, param)
        draws = torch.Generator(config.device).manual_seed(config.seed + 1)
        sizes = (
            gaussian_sensitivity(plan, sigma_data)
            if kind == "gaussian"
            else trace_sensitivity(model, plan, noise[: config.count // 4], generator=draws)
        )
        budget = predict_error(plan, sizes, output=ROUNDING, arithmetic=None, state=None, timestep=None)
        right = sample(model, noise, plan)
        error = (sample(model, noise, plan, output_error=ROUNDING) - right).square().mean().sqrt()
        rows[param.name.partition("(")[0]] = {
            "measured": float(error / right.square().mean().sqrt()),
            "predicted": budget.relative,
            "flags": sorted({flag.kind for flag in budget.flags}),
        }
    return rows


# -- the experiment ---------------------------------------------------------------------------------------------------


def run_part(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: all noise levels and the runs of one data set."""
    kind, _, sigma_text = key.partition("-")
    levels = []
    for phi in config.phis:
        levels.append(angle_row(config, kind, float(sigma_text), phi))
        tick(1)
    found: dict[str, Any] = {label: [level[label] for level in levels] for label in levels[0]}
    found["runs"] = run_rows(config, kind, float(sigma_text))
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All data sets."""
    keys = [f"{kind}-{sigma:g}" for kind in config.kinds for sigma in config.sigmas]
    units = len(config.phis) + 1
    found = run_jobs(run_part, config, keys, units_per_job=units, folder=folder, workers=0, resume=resume)
    return {"theta": thetas(config.grid).tolist(), "data": found, "worst": {kind: worst(found, kind) for kind in config.kinds}}


def worst(found: dict[str, Any], kind: str) -> dict[str, float | None]:
    """Largest gap between search and closed form, and the largest excess of the closed form's loss over the search's."""
    parts = [part for key, part in found.items() if key.startswith(kind)]
    pairs = [pair for part in parts for pair in zip(part["loss_moments"], part["loss_search"], strict=True)]
    return {
        **{gap: max(abs(g) for part in parts for g in part[gap]) for gap in ("gap_moments", "gap_sigma_data")},
        "excess": max((closed / best - 1.0 for closed, best in pairs if best > TINY), default=None),
    }


def tables(record: dict[str, Any]) -> str:
    """Angles and losses by data set and noise level, then the runs."""
    lines = [
        "psi of the least loss, found by search, minus two closed forms (radians); losses over delta^2 (measured / predicted);"
    ]
    lines += ["loss of v over the least: of the network's output, of its target (closed form)", ""]
    lines += ["data           phi  psi*     - moments  - sigma_d    least loss       loss of v        v/least  target"]
    for key, part in record["results"]["data"].items():
        for i, phi in enumerate(part["phi"]):
            least, v = part["loss_moments"][i], part["loss_v"][i]
            columns = (
                f"{key:13} {phi:4g} {part['psi_search'][i]:7.4f}",
                f"{part['gap_moments'][i]:10.1e} {part['gap_sigma_data'][i]:10.1e}",
                f"{_loss(least, part['predicted_moments'][i]):>16} {_loss(v, part['predicted_v'][i]):>15}",
                f"{_ratio(v, least):>8}  {part['target_ratio'][i]:.3g} ({part['target_ratio_predicted'][i]:.3g})",
            )
            lines.append(" ".join(columns))
    lines.append("")
    for kind, row in record["results"]["worst"].items():
        excess = "no loss to compare" if row["excess"] is None else f"loss of the closed form at most {row['excess']:.1%} above"
        lines.append(f"{kind}: largest gap {row['gap_moments']:.1e} (moments), {row['gap_sigma_data']:.1e} (sigma_d); {excess}")
    names = next(iter(record["results"]["data"].values()))["runs"]
    lines += ["", f"relative final error of {record['config']['steps']} DDIM steps (measured / predicted)"]
    lines += [f"{'data':13}" + "".join(f"{name:>19}" for name in names) + "   v / optimal"]
    for key, part in record["results"]["data"].items():
        cells = "".join(f"{_loss(row['measured'], row['predicted']):>19}" for row in part["runs"].values())
        v, best = (part["runs"][name]["measured"] for name in ("v_prediction", "optimal"))
        lines.append(f"{key:13}{cells}   {_ratio(v, best)}")
    return "\n".join(lines)


def _ratio(value: float, least: float) -> str:
    if least > TINY:
        return f"{value / least:.3g}"
    return "inf" if value > TINY else "0/0"


def _loss(measured: float, predicted: float) -> str:
    if measured < TINY:
        return "0"
    return f"{measured:.3g} ({measured / predicted:.2f})" if predicted > TINY else f"{measured:.3g} (-)"


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("optimum", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
