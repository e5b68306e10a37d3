"""Write the numbers of both README files from the records: blocks between ``<!-- numbers: NAME -->`` and ``<!-- end -->``.

``python experiments/readme.py`` rewrites them, ``--check`` fails if they are not what the records say (the tests call it).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffparam import EPSILON, Schedule
from diffparam.report import report
from experiments.readme_claims import claims
from experiments.readme_mmar import mmar_speed, overfit, sizes
from experiments.readme_mmar import table as _table
from experiments.readme_paper import (
    ablations,
    image_order,
    question_families,
    sampler_precision,
    speed_quality,
    table1,
    table3,
    table3_scenes,
)
from experiments.readme_training import (
    digits,
    reliability,
    scene_hand,
    scene_sight,
    scene_words,
    scenes,
    tokenizers,
    training_speed,
)
from experiments.record import read_record

README = Path(__file__).parent.parent / "README.md"
PAGES = (README, Path(__file__).parent / "README.md")
_BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HIGH = ("500-599", "700-799", "900-949", "980-989", "999")


def gap() -> str:
    """What the gap between eps and v is made of, by timestep."""
    results = read_record("eps_vs_v-cpu")["results"]
    mixed, pure = results["gaps"]["mixed"], results["gaps"]["pure"]
    rows = []
    for bucket in _HIGH:
        cells = [bucket]
        for regime in (mixed, pure):
            whole, training = (regime["parts"][part][bucket] for part in ("gap", "training"))
            shares = [100 * regime["parts"][part][bucket]["mean"] / whole["mean"] for part in ("float32_gap", "direct")]
            low, mean, high = (100 * training[k] / whole["mean"] for k in ("min", "mean", "max"))
            cells += [_g(whole["mean"]), *(f"{share:.1f} %" for share in shares), f"{mean:.1f} % ({low:.1f} to {high:.1f})"]
        rows.append(cells)
    parts = ["float32 control", "rounding", "training"]
    return _table(["t", "gap, bf16 forward", *parts, "gap, pure bf16", *parts], rows)


def predictions() -> str:
    """Direct rounding of the eps head: measured over predicted."""
    ratios = read_record("eps_vs_v-cpu")["results"]["gaps"]["mixed"]["measured_over_predicted"]
    names = {
        "paper": "eq. 27, δ = 1/128",
        "single_rounding": "one rounding, δ ≈ 1/603",
        "calibrated": "δ calibrated per bucket",
        "one_delta": "one calibrated δ",
    }
    rows = [[label, *(f"{ratios[name][b]['mean']:.3g}" for b in _HIGH)] for name, label in names.items()]
    return _table(["measured / predicted at t", *_HIGH], rows)


def samples() -> str:
    """Quality of samples by where sampling starts, 25 DDIM steps."""
    results = read_record("eps_vs_v-cpu")["results"]
    arms = {
        "v_float32": "v, float32",
        "v_mixed": "v, bf16",
        "eps_float32": "ε, float32",
        "eps_mixed": "ε, bf16",
        "epsw_float32": "ε, v-weighted, float32",
    }
    starts: dict[str, int] = results["starts"]
    rows = []
    for arm, label in arms.items():
        cells = {r["start"]: r for r in results["samples"][arm] if r["steps"] == 25}
        rows.append(
            [label, *(f"{_g(cells[s]['frechet']['mean'])} ({100 * cells[s]['accuracy']['mean']:.1f} %)" for s in starts)]
        )
    return _table(["arm", *(f"from t = {t}" for t in starts.values())], rows)


def safe() -> str:
    """What the report says, what is predicted for the trained head, what it does."""
    rows = []
    for row in read_record("safe_in_bf16-cpu")["results"]["rows"]:
        name = {"v": "v", "eps": "ε"}[row["head"]]
        first = [
            f"{name} from t = {row['start']}",
            f"{_g(row['report']['relative'])}, {'safe' if row['report']['safe'] else 'unsafe'}",
        ]
        for kind, what in _IN_BF16.items():
            part = row[kind]
            rows.append([*first, what, _g(part["predicted"]), _g(part["measured"]), _g(part["ratio"]["mean"])])
            first = ["", ""]
    return _table(["head", "report", "in bf16", "predicted", "measured", "ratio"], rows)


_IN_BF16 = {
    "output": "its output",
    "network": "all of it",
    "everything": "all, and the sampler",
    "increments": "all, and the sampler, in increments",
}


def check() -> str:
    """Predicted against measured over all cases."""
    results = read_record("prediction_check-cpu")["results"]
    groups, total = results["groups"], results["all"]
    above = sorted({row[0] for row in results["worst_exceeded"]})
    rows = []
    for name, v in groups.items():
        span = [_span(v[key]) for key in ("one_step", "final", "flagged_final")]
        within = "" if v["final_within"] is None else f"{100 * v['final_within']:.0f} %"
        rows.append([name, v["cases"], span[0], v["unflagged"], span[1], within, span[2]])
    ranges = [f"{what}: range (median)" for what in ("one call", "final", "flagged")]
    header = ["data, format", "cases", ranges[0], "unflagged", ranges[1], "within 10 %", ranges[2]]
    exceeded = f"{len(results['worst_exceeded'])} of {total['cases']}"
    return (
        f"{_table(header, rows)}\n\n"
        f"Of {total['unflagged']} unflagged cases {100 * total['final_within']:.1f} % are within 10 %. "
        f"The worst case is exceeded in {exceeded}, all of {', '.join(above)} data: a rounding sends a sample to the other "
        "point, which no first-order bound knows."
    )


def _span(values: Sequence[float | None] | None) -> str:
    if values is None:
        return ""
    low, middle, high = ("∞" if v is None else _g(v) for v in values)
    return f"{low} to {high} ({middle})"


def said() -> str:
    """What ``diffparam report --schedule cosine --steps 50 --prediction epsilon`` prints."""
    return f"```text\n{report(Schedule.cosine(1000), EPSILON, steps=50)}\n```"


def laws() -> str:
    """One line for each of the smaller experiments."""
    state = read_record("low_precision_state-cpu")["results"]
    best = [str(found["measured"]) for found in state["best_steps"]["gaussian-0.5-ddim"]["bfloat16"].values()]
    right = state["right"]
    counts = [str(n) for n in (right["independent"], state["flags"]["wrong_and_not_flagged"], right["runs"])]
    guidance = read_record("guidance_error-cpu")["results"]["run-v_prediction"]
    over = {
        w: m / p for w, m, p in zip(*(guidance[k] for k in ("omega", "stochastic_measured", "stochastic_formula")), strict=True)
    }
    optimum = read_record("optimum-cpu")["results"]["worst"]
    noisy, clean = (read_record("field_reports-cpu")["results"]["reports"][k] for k in ("noisy_end", "clean_end"))
    shares = [r["parts"]["float32_gap"][i]["mean"] / r["parts"]["gap"][i]["mean"] for r, i in ((noisy, -1), (clean, 0))]
    distances = [noisy["samples"]["eps_bf16"][k]["bf16"]["frechet"]["mean"] for k in ("reported", "clip_data")]
    spikes = [f"{clean['training'][arm]['tail']['spike']['mean']:.3g}" for arm in ("x_float32", "x_bf16", "xclamp_bf16")]
    race = read_record("parameterization_race-cpu")["results"]["samples"]
    raced = {
        precision: [
            next(r for r in race[f"{arm}_own_{precision}"] if (r["timestep"], r["steps"]) == (948, 25))["frechet"]["mean"]
            for arm in ("edm", "v", "flow", "x", "eps")
        ]
        for precision in ("float32", "bf16")
    }
    rows = [
        [
            "low_precision_state",
            "steps nearest to the exact flow, state in bf16: to nearest, stochastic, compensated",
            ", ".join(best),
        ],
        ["low_precision_state", "runs within 10 % of independent roundings; beyond without a flag; of all", ", ".join(counts)],
        ["low_precision_state", "runs within 10 % of the recursion for lost updates", right["refined"]],
        ["guidance_error", "final sample, measured over predicted, at scale 3 and 10", f"{over[3.0]:.2g}, {over[10.0]:.2g}"],
        ["optimum", "closed form against a search, Gaussian data, rad", f"{optimum['gaussian']['gap_moments']:.0e}"],
        ["optimum", "loss that the closed form costs on mixtures, at most", f"{100 * optimum['mixture']['excess']:.0f} %"],
        ["field_reports", "noisy end, eps: share of the gap to v that is there in float32", f"{100 * shares[0]:.1f} %"],
        ["field_reports", "its Fréchet distance: as reported, clean sample clipped", ", ".join(map(_g, distances))],
        ["field_reports", "clean end, x0 with v-loss: share of the gap to flow in float32", f"{100 * shares[1]:.1f} %"],
        ["field_reports", "largest loss over its median: float32, bf16, bf16 with the clamp", ", ".join(spikes)],
        [
            "parameterization_race",
            "Fréchet distance of F, v, flow, x0, eps heads (σ_d = 0.5, bf16, 25 steps from t = 948)",  # noqa: RUF001
            ", ".join(map(_g, raced["bf16"])),
        ],
        ["parameterization_race", "the same in float32", ", ".join(map(_g, raced["float32"]))],
    ]
    return _table(["experiment", "what", "found"], rows)


def speed() -> str:
    """Ratios of the sampler's step, its coefficients' accuracy, and training in bf16."""
    results = read_record("benchmarks-cpu")["results"]
    rows = []
    for size, label in (("1M", "1 M float32"), ("1M no faults", "1 M float32, memory kept"), ("64x16", "64 x 16 float32")):
        for param in ("v_prediction", "epsilon"):
            r = results["sampler_step"][f"{size}, {param}"]
            names = ("apply_step_over_bare_sum", "diffusers_over_apply_step", "diffusers_over_ddim_step")
            rows.append([f"{label}, {param}", *(f"{r[name]:.2g}" for name in names)])
    table = _table(
        ["one step", "time / bare `a*x + b*u`", "diffusers' time / ours", "diffusers' time / `ddim_step` alone"], rows
    )
    ours, theirs = (max(c[who]["max"] for c in results["coefficients"].values()) for who in ("diffparam", "diffusers"))
    training = results["training_step"]["bf16_over_float32"]
    fast = read_record("prediction_speed-cpu")["results"]
    predict, sampler = 1e3 * fast["predictions_s"]["predict_error"], fast["sampler_s"]["sample_over_network"]
    shell, torch_alone = fast["commands_s"]["report"], fast["commands_s"]["import_torch"]
    return (
        f"{table}\n\nCoefficients: largest relative error {ours:.0e} against 50 digits, with diffusers' float32 tables "
        f"{theirs:.0e}. `predict_error` for five parameterizations of 1000 steps takes {predict:.0f} ms, `diffparam report` "
        f"from the shell {shell:.1f} s ({torch_alone:.1f} s of it importing torch), and `sample` {sampler:.2f} times the "
        f"network calls alone. A training step of the head in bf16 takes {training:.2f} of the float32 time on this CPU."
    )


_LIBRARY = (gap, predictions, samples, said, safe, check, laws, speed)
_MODEL = (
    sizes,
    overfit,
    mmar_speed,
    digits,
    scenes,
    scene_hand,
    scene_sight,
    scene_words,
    tokenizers,
    reliability,
    training_speed,
)
_PAPER = (claims, table3, question_families, table3_scenes, table1, ablations, image_order, speed_quality, sampler_precision)
BLOCKS: Mapping[str, Callable[[], str]] = {block.__name__: block for block in (*_LIBRARY, *_MODEL, *_PAPER)}


def rewritten(text: str) -> str:
    """``text`` with every block made anew.

    Raises:
        KeyError: For a block that no function makes.
    """
    return _BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]]()}\n{m[3]}", text)


def _g(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description="Write the numbers of the README files from the committed records.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a number is not what the records say")
    arguments = parser.parse_args(argv)
    for page in PAGES:
        text = page.read_text()
        new = rewritten(text)
        if arguments.check and new != text:
            name = page.relative_to(README.parent)
            raise SystemExit(f"{name} must say what the records say, but does not; run: python experiments/readme.py")
        if not arguments.check:
            page.write_text(new)


if __name__ == "__main__":
    main()
