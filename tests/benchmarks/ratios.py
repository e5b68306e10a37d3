"""How fast and how exact a sampler step is, as ratios that travel between machines.

    python tests/benchmarks/ratios.py [--quick] [--out experiments/records/benchmarks-cpu.json]

Everything runs on one thread. Competitors take turns, a few calls each, many times over; medians are compared, so that a
change of clock or a busy neighbour meets all of them. The accuracy part is deterministic.

A million float32 numbers are measured twice. In a fresh process glibc gives the memory of temporaries back to the system at
almost every call of whoever makes several of them, and page faults are most of what is measured: a factor of three in favour
of few temporaries, not the same twice. "No faults" rows follow after glibc has been made to keep freed memory.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mpmath
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from diffparam import (
    EPSILON,
    AngularParam,
    Schedule,
    V,
    apply_step,
    ddim_coefficients,
    ddim_step,
    parse_parameterization,
)
from experiments.record import make_record, write_json
from mmar.diffusion_head import DiffusionHead
from mmar.diffusion_loss import diffusion_loss
from mmar.precision import native_bf16_matmul

LARGE, SMALL = (1_000_000,), (64, 16)
NO_FAULTS = "1M no faults"
STEP = (500, 480)
"""Timesteps of the step that is timed: from, to."""
BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
PARAMS = {"v_prediction": V, "epsilon": EPSILON}


@dataclass(frozen=True)
class Config:
    """How often things are repeated.

    Attributes:
        rounds_large: Turns of every competitor on a million numbers.
        rounds_small: Turns on 64 x 16 numbers.
        rounds_training: Turns of the training step.
        calls: Calls per turn; one more, untimed, comes first.
        width: Of the diffusion head.
        depth: Its blocks.
        rows: Tokens of a training step.
        digits: Decimal digits of the reference coefficients.
        diffusers: Version compared with.
        native_bf16: Whether the processor multiplies bf16 matrices.
    """

    rounds_large: int = 60
    rounds_small: int = 1000
    rounds_training: int = 60
    calls: int = 5
    width: int = 256
    depth: int = 3
    rows: int = 512
    digits: int = 50
    diffusers: str = version("diffusers")
    native_bf16: bool = native_bf16_matmul()


FULL = Config()
QUICK = replace(FULL, rounds_large=3, rounds_small=20, rounds_training=2, calls=2, width=64, rows=64)


def keep_freed_memory() -> None:
    """Free one block of 30 MB: glibc then keeps that much for reuse (its largest dynamic threshold is 32 MB)."""
    block = torch.empty(7_500_000)
    del block


# -- speed ------------------------------------------------------------------------------------------------------------


def median_seconds(competitors: dict[str, Callable[[], Any]], rounds: int, calls: int, bar: tqdm) -> dict[str, float]:
    """Median time of one call of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, call in competitors.items():
            call()  # pays for what the one before left behind: caches, the allocator's free list
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - start) / calls)
        bar.update(1)
    return {name: statistics.median(values) for name, values in times.items()}


def sampler_competitors(shape: tuple[int, ...], prediction: str = "v_prediction") -> dict[str, Callable[[], Tensor]]:
    """One DDIM step on float32 tensors of ``shape``: ours with and without checks, diffusers', and the sum it comes down to."""
    draws = torch.Generator().manual_seed(0)
    x, u = torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)
    schedule, param = Schedule.cosine(), parse_parameterization(prediction)
    phi_t, phi_s = (schedule.phi_at(t) for t in STEP)
    ready = ddim_coefficients(phi_t, phi_s, param=param)
    a, b = ready.gain_x, ready.gain_u
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(50)
    return {
        "bare_sum": lambda: a * x + b * u,
        "apply_step": lambda: apply_step(ready, u, x),
        "ddim_step": lambda: ddim_step(u, x, phi_t, phi_s, param=param),
        "diffusers": lambda: scheduler.step(u, STEP[0], x).prev_sample,
    }


def step_ratios(shape: tuple[int, ...], prediction: str, rounds: int, calls: int, bar: tqdm) -> dict[str, float]:
    """Times in microseconds and their ratios."""
    seconds = median_seconds(sampler_competitors(shape, prediction), rounds, calls, bar)
    return {
        **{f"{name}_us": 1e6 * value for name, value in seconds.items()},
        "apply_step_over_bare_sum": seconds["apply_step"] / seconds["bare_sum"],
        "diffusers_over_apply_step": seconds["diffusers"] / seconds["apply_step"],
        "diffusers_over_ddim_step": seconds["diffusers"] / seconds["ddim_step"],
    }


def training_step(dtype: torch.dtype, config: Config) -> Callable[[], None]:
    """One optimizer step of the diffusion head with float32 weights and a forward pass in ``dtype``."""
    torch.manual_seed(0)
    head = DiffusionHead(16, 64, config.width, config.depth)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    draws = torch.Generator().manual_seed(0)
    tokens, z = torch.randn(config.rows, 16, generator=draws), torch.randn(config.rows, 64, generator=draws)
    schedule = Schedule.cosine()

    def network(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return head(x_t, t, condition, dtype=dtype)

    def step() -> None:
        loss = diffusion_loss(network, tokens, z, schedule, param=V, generator=draws)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()

    return step


def training_ratios(config: Config, bar: tqdm) -> dict[str, float]:
    """Microseconds per token of a training step, bf16 forward and float32."""
    steps = {"float32": training_step(torch.float32, config), "bf16": training_step(torch.bfloat16, config)}
    seconds = median_seconds(steps, config.rounds_training, 1, bar)
    return {
        **{f"{name}_us_per_token": 1e6 * value / config.rows for name, value in seconds.items()},
        "bf16_over_float32": seconds["bf16"] / seconds["float32"],
    }


# -- accuracy ---------------------------------------------------------------------------------------------------------


def exact_angles(name: str) -> list[mpmath.mpf]:
    """Angles of a 1000-step schedule from the definition of its betas, at the working precision."""
    mp = mpmath.mp
    if name == "linear":
        low, high = mp.mpf(1) / 10**4, mp.mpf(2) / 100
        betas = [low + (high - low) * i / 999 for i in range(1000)]
    else:
        edge = [mp.cos((mp.mpf(i) / 1000 + mp.mpf(8) / 1000) / (mp.mpf(1008) / 1000) * mp.pi / 2) ** 2 for i in range(1001)]
        betas = [min(1 - b / a, mp.mpf(999) / 1000) for a, b in itertools.pairwise(edge)]
    angles, alpha_bar = [], mp.mpf(1)
    for beta in betas:
        alpha_bar *= 1 - beta
        angles.append(mp.atan2(mp.sqrt(1 - alpha_bar), mp.sqrt(alpha_bar)))
    return angles


def exact_gains(phi_t: mpmath.mpf, phi_s: mpmath.mpf, prediction: str) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Eq. 14 with psi = phi_t + pi/2 or pi/2: gains on u and on x_t."""
    mp = mpmath.mp
    psi = mp.pi / 2 + (phi_t if prediction == "v_prediction" else 0)
    s = mp.sin(psi - phi_t)
    return mp.sin(phi_s - phi_t) / s, mp.sin(psi - phi_s) / s


def diffusers_gains(name: str, prediction: str, *, arithmetic: torch.dtype) -> list[tuple[float, float]]:
    """What one step of diffusers multiplies u and x_t by, read off unit inputs, for all 1000 timesteps.

    The table is its own, in float32; ``arithmetic`` float64 shows the error of the table alone.
    """
    scheduler = DDIMScheduler(beta_schedule=BETA_SCHEDULES[name], prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(1000)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(arithmetic)
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(arithmetic)
    u, x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=arithmetic)
    return [tuple(scheduler.step(u, t, x).prev_sample.tolist()) for t in range(1000)]


def our_gains(name: str, param: AngularParam) -> list[tuple[float, float]]:
    """The same from :class:`diffparam.Schedule`."""
    phi = (Schedule.cosine() if name == "cosine" else Schedule.linear()).phi.tolist()
    steps = [ddim_coefficients(now, then, param=param) for now, then in zip(phi, [0.0, *phi[:-1]], strict=True)]
    return [(step.gain_u, step.gain_x) for step in steps]


def relative_errors(gains: Sequence[tuple[float, float]], exact: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """Largest and root mean square relative error of all 2 x 1000 coefficients, none of which is 0."""
    pairs = [pair for g, e in zip(gains, exact, strict=True) for pair in zip(g, e, strict=True)]
    errors = [float(abs((got - want) / want)) for got, want in pairs]
    return {"max": max(errors), "rms": math.sqrt(statistics.fmean(e * e for e in errors))}


def coefficient_accuracy(name: str, prediction: str, digits: int) -> dict[str, dict[str, float]]:
    """Relative errors of diffusers (as it steps, and of its table alone) and of diffparam, against ``digits`` digits."""
    with mpmath.workdps(digits):
        angles = exact_angles(name)
        exact = [exact_gains(now, then, prediction) for now, then in zip(angles, [mpmath.mpf(0), *angles[:-1]], strict=True)]
        return {
            "diffusers": relative_errors(diffusers_gains(name, prediction, arithmetic=torch.float32), exact),
            "diffusers_table_alone": relative_errors(diffusers_gains(name, prediction, arithmetic=torch.float64), exact),
            "diffparam": relative_errors(our_gains(name, PARAMS[prediction]), exact),
        }


# -- the report -------------------------------------------------------------------------------------------------------


def run(config: Config) -> dict[str, Any]:
    """All measurements, by section, on one thread."""
    sizes = (("1M", LARGE, config.rounds_large), (NO_FAULTS, LARGE, config.rounds_large), ("64x16", SMALL, config.rounds_small))
    jobs = [(label, shape, p, rounds) for label, shape, rounds in sizes for p in PARAMS]
    accuracy = [(name, prediction) for name in BETA_SCHEDULES for prediction in PARAMS]
    results: dict[str, Any] = {"sampler_step": {}, "coefficients": {}}
    total = sum(rounds for *_, rounds in jobs) + config.rounds_training + len(accuracy)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tqdm(total=total, unit="turn") as bar:
            for label, shape, prediction, rounds in jobs:
                bar.set_description(f"step {label}")
                if label == NO_FAULTS:
                    keep_freed_memory()
                results["sampler_step"][f"{label}, {prediction}"] = step_ratios(shape, prediction, rounds, config.calls, bar)
            bar.set_description("training step")
            results["training_step"] = training_ratios(config, bar)
            bar.set_description("coefficients")
            for name, prediction in accuracy:
                results["coefficients"][f"{name}, {prediction}"] = coefficient_accuracy(name, prediction, config.digits)
                bar.update(1)
    finally:
        torch.set_num_threads(threads)
    return results


def ratios(results: dict[str, Any]) -> list[tuple[str, float, str]]:
    """(what, ratio, aim) for every ratio; aims are for v, the parameterization this library recommends."""
    rows = []
    for label, step in results["sampler_step"].items():
        size, _, prediction = label.partition(", ")
        limits = {
            "apply_step_over_bare_sum": "at most 4" if size == "64x16" else "at most 1.2",
            "diffusers_over_apply_step": "at least 10" if size == "1M" else "",
            "diffusers_over_ddim_step": "at least 5",
        }
        for key, aim in limits.items():
            rows.append((f"{label}: {key.replace('_over_', ' / ')}", step[key], aim if prediction == "v_prediction" else ""))
    rows.append(("training step: bf16 forward / float32", results["training_step"]["bf16_over_float32"], ""))
    return rows


def is_met(value: float, aim: str) -> bool:
    """Whether a ratio reaches its aim, ``at least x`` or ``at most x``; true where there is none."""
    side, _, limit = aim.rpartition(" ")
    return not aim or (value >= float(limit) if side == "at least" else value <= float(limit))


def show(results: dict[str, Any]) -> str:
    """The tables printed on stdout."""
    lines = [f"{'ratio of median times':<53}   value  aim"]
    lines += [
        f"{what:<53} {x:>7.2f}  {aim}{'' if is_met(x, aim) else '   MISSED'}".rstrip() for what, x, aim in ratios(results)
    ]
    lines += ["", f"{'relative error of the step coefficients':<53}     max      rms"]
    for label, rows in results["coefficients"].items():
        lines += [f"{label + ': ' + who:<53} {row['max']:>7.1e}  {row['rms']:>7.1e}" for who, row in rows.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    parser = argparse.ArgumentParser(description="Speed and accuracy of a sampler step, as ratios")
    parser.add_argument("--quick", action="store_true", help="a few turns only: shows that it runs, measures little")
    parser.add_argument("--out", type=Path, help="write a JSON record there (experiments/records/benchmarks-cpu.json)")
    arguments = parser.parse_args(argv)
    config = QUICK if arguments.quick else FULL
    start = time.monotonic()
    results = run(config)
    print(show(results))
    if arguments.out:
        write_json(make_record("benchmarks", config, results, duration_s=time.monotonic() - start, device="cpu"), arguments.out)
        print(f"\nrecord: {arguments.out}")


if __name__ == "__main__":
    main()
