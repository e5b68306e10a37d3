r"""How few calls of the head draw as well as the paper's recipe? Autoregressive and head steps and solvers on one model a seed.

The paper's stated limitation is its 256 x 100 calls and three minutes an image. Here the same recipe in small, one token a
step and 100 DDPM steps each, is drawn with several seeds, which is the spread that any other way is measured against: DDPM,
DDIM and DPM-Solver++ with fewer steps, several tokens a step, and head steps that fall as the image fills.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, DigitJudge, draw_digits
from experiments.paper_study.study import GPU, QUICK, TINY, Study, load_arm, run_study
from mmar.generation.settings import ImageGenerationConfig

PAPER = "paper"
"""Name of the full recipe."""


@dataclass(frozen=True)
class Config(Study):
    """One preset; ``seeds`` are those of the drawing, for each model; times are of one thread.

    Attributes:
        models: Seeds of the MMAR arm of table 3 that are drawn from.
        ar_steps: Autoregressive steps.
        heads: Solver, first and last number of head steps.
    """

    workers: int = 2
    models: tuple[int, ...] = (0, 1, 2)
    ar_steps: tuple[int, ...] = (2, 4, 8, 16)
    heads: tuple[tuple[str, int, int], ...] = (
        ("ddpm", 100, 100),
        ("ddpm", 50, 50),
        ("ddpm", 25, 25),
        ("ddim", 50, 50),
        ("ddim", 25, 25),
        ("ddim", 10, 10),
        ("ddim", 10, 5),
        ("dpm_solver", 20, 20),
        ("dpm_solver", 10, 10),
        ("dpm_solver", 5, 5),
        ("dpm_solver", 20, 5),
        ("dpm_solver", 10, 3),
    )


PRESETS = {
    "smoke": Config(
        (0, 1), TINY, Amount(drawn=1), models=(0,), ar_steps=(2, 16), heads=(("ddpm", 3, 3), ("dpm_solver", 2, 1)), workers=0
    ),
    "quick": Config(
        (0, 1), QUICK, Amount(drawn=10), models=(0,), ar_steps=(4, 16), heads=(("ddpm", 100, 100), ("dpm_solver", 10, 10))
    ),
    "cpu": Config(),
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def ways(config: Config) -> dict[str, ImageGenerationConfig]:
    """Every way of drawing by name, the full recipe first: as many steps as tokens, and the first of ``heads``."""
    found = {}
    for (solver, first, last), steps in product(config.heads, sorted(config.ar_steps, reverse=True)):
        end = None if first == last else last
        name = f"{steps} x {first if end is None else f'{first}-{last}'} {solver}" if found else PAPER
        options = {"ar_steps": steps, "solver": solver, "head_steps": first, "head_steps_end": end}
        found[name] = ImageGenerationConfig.from_dict(options)
    return found


def head_calls(settings: ImageGenerationConfig) -> int:
    """Calls of the head that an image takes, whatever the number of tokens in each."""
    total = settings.ar_steps or 1
    return sum(settings.head_steps_at(i, total) for i in range(total)) * (2 if settings.solver == "heun" else 1)


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """All ways of one model, with every seed; ways in turn, so that a slow minute of the machine meets all of them."""
    model = int(key.split("-")[0].removeprefix("model"))
    pipeline, judge = load_arm(config, ARMS["v_mixed"], model), DigitJudge()
    draw_digits(pipeline, ImageGenerationConfig(ar_steps=2, head_steps=2), 1, seed=0)  # not timed: first calls are slow
    found: dict[str, Any] = {name: [] for name in ways(config)}
    for seed, (name, settings) in product(config.seeds, ways(config).items()):
        pictures, wanted, seconds = draw_digits(pipeline, settings, config.amount.drawn, seed=1000 * (1 + seed) + model)
        found[name].append({**judge.judge(pictures, wanted), "seconds": seconds})
        tick(1)
    return {"ways": found, "tokens": pipeline.model.config.image_config.count}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All models; what each way costs and how good it is beside the full recipe."""
    drawings = "-".join(map(str, config.seeds))
    keys, settings = [f"model{seed}-drawn{drawings}" for seed in config.models], ways(config)
    units = len(config.seeds) * len(settings)
    jobs = run_study(job, config, keys, units=units, folder=folder, resume=resume)
    table = {name: _over_models([jobs[key]["ways"][name] for key in keys]) for name in settings}
    full = table[PAPER]
    for name, way in table.items():
        way |= {
            "head_calls": head_calls(settings[name]),
            "fewer_calls": head_calls(settings[PAPER]) / head_calls(settings[name]),
            "faster": full["seconds"]["mean"] / way["seconds"]["mean"],
            "within_spread": _within(way, full),
            "settings": settings[name].to_dict(),
        }
    return {"tokens": jobs[keys[0]]["tokens"], "ways": table, "front": pareto(table), "best": best(table)}


def pareto(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the ways that no other beats in both time and Frechet distance, the fastest first."""
    found: list[str] = []
    lowest = float("inf")
    for name in sorted(table, key=lambda n: table[n]["seconds"]["mean"]):
        distance = table[name]["frechet"]["mean"]
        if distance is not None and distance < lowest:
            found.append(name)
            lowest = distance
    return found


def best(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The fastest way whose quality is within the spread of the full recipe; that recipe itself if there is none."""
    good = [name for name, way in table.items() if way["within_spread"]]
    return min(good, key=lambda name: table[name]["seconds"]["mean"], default=PAPER)


def show(record: dict[str, Any]) -> str:
    """A line a way, the fastest first."""
    found = record["results"]
    columns = ("calls", "fewer", "faster", "Frechet", "recognised", "recall", "as good")
    lines = [f"{'':24}" + "".join(f"{column:>12}" for column in columns)]
    for name, way in sorted(found["ways"].items(), key=lambda item: item[1]["seconds"]["mean"]):
        mark = "*" if name in found["front"] else " "
        cells = [f"{way['head_calls']}", f"{way['fewer_calls']:.1f}", f"{way['faster']:.1f}"]
        cells += ["-" if way[k]["mean"] is None else f"{way[k]['mean']:.3g}" for k in ("frechet", "recognised", "recall")]
        lines.append(f"{mark} {name:22}" + "".join(f"{cell:>12}" for cell in [*cells, "yes" if way["within_spread"] else "no"]))
    return "\n".join([*lines, f"\nbest: {found['best']} (* on the front of time and Frechet distance)"])


def _within(way: Mapping[str, Any], full: Mapping[str, Any]) -> bool:
    """Whether means are worse by no more than drawing again with the full recipe differs: :func:`_over_models`'s spread."""
    worse = {"frechet": 1, "recognised": -1, "recall": -1}
    for name, sign in worse.items():
        if way[name]["mean"] is None:
            return False
        if sign * (way[name]["mean"] - full[name]["mean"]) > full[name]["spread"]:
            return False
    return True


def _over_models(models: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Numbers of a way: mean, smallest and largest over all models and seeds, each, and ``spread``.

    The spread is the largest distance of a seed from the mean of its model: what drawing again does.
    """
    found: dict[str, Any] = {}
    for name in ("frechet", "recognised", "kernel", "precision", "recall", "seconds"):
        values = [[seed.get(name) for seed in model] for model in models]
        flat = [value for model in values for value in model]
        spread = None
        if None not in flat:
            spread = max(abs(v - sum(model) / len(model)) for model in values for v in model)
        found[name] = {**over_seeds(flat), "spread": spread, "each": values}
    return found


def main() -> None:
    run_command("speed_quality", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
