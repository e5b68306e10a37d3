"""The paper's claims beside our measurements, from the committed records; called by :mod:`experiments.readme`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.readme_mmar import table
from experiments.readme_paper import OPEN, exists, results_of

Cells = Mapping[str, Any]
_ALONE = "one seed tells no small difference"


def claims() -> str:
    """A row a claim: what the paper says, what was found, how, and whether they agree."""
    rows = []
    for claim, source, command, record, found in _CLAIMS:
        measured, verdict = found(results_of(record)) if exists(record) else (OPEN, "open")
        rows.append([claim, source, measured, f"`python experiments/{command}`", verdict])
    return table(["the paper says", "where", "measured here", "command", "verdict"], rows)


def _shares(r: Cells, part: str, buckets: Sequence[str]) -> list[float]:
    """Of the gap in bf16, by bucket of timesteps."""
    parts = r["gaps"]["mixed"]["parts"]
    return [parts[part][b]["mean"] / parts["gap"][b]["mean"] for b in buckets]


def _gap(r: Cells) -> tuple[str, str]:
    shares = _shares(r, "float32_gap", ("500-599", "900-949", "999"))
    return (
        f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the gap is there in float32",
        "disagrees: the cause is conditioning and weighting, not bf16",
    )


def _gap_at_paper_size(r: Cells) -> tuple[str, str]:
    high = ("900-949", "980-989", "999")  # lower ones have next to no gap at this size
    shares, direct = _shares(r, "float32_gap", high), _shares(r, "direct", high)
    return (
        f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the gap above t = 900 is there in float32, "
        f"{100 * min(direct):.1f} to {100 * max(direct):.1f} % is rounding (one seed)",
        "disagrees: the cause is conditioning and weighting, not bf16",
    )


def _gap_in_mmar(r: Cells) -> tuple[str, str]:
    share, verdict = _gap(r["head"])
    ratios = r["head"]["gaps"]["mixed"]["measured_over_predicted"]["paper"]
    values = [1 / ratios[b]["mean"] for b in ("500-599", "900-949", "999")]
    return f"{share}; eq. 27 is {min(values):.1f} to {max(values):.1f} times the direct rounding", verdict


def _direct(r: Cells) -> tuple[str, str]:
    ratios = r["gaps"]["mixed"]["measured_over_predicted"]["paper"]
    values = [1 / ratios[b]["mean"] for b in ("500-599", "900-949", "999")]
    return (
        f"eq. 27 is {min(values):.1f} to {max(values):.1f} times the measured rounding; its slope in t is right",
        "agrees in form; the constant is that of truncation, not of rounding to nearest",
    )


def _amplification(r: Cells) -> tuple[str, str]:
    spans = [group["one_step"] for group in r["groups"].values() if group["one_step"] is not None]
    low, high = min(span[0] for span in spans), max(span[2] for span in spans)
    return f"measured over predicted, one call of an exact denoiser: {low:.3g} to {high:.3g}", "agrees"


def _v_is_safe(r: Cells) -> tuple[str, str]:
    texts = [
        f"{'ε' if row['head'] == 'eps' else row['head']} from t = {row['start']}: {row['output']['measured']:.2g}"
        for row in r["rows"]
    ]
    return "relative error of the sample when outputs are rounded: " + "; ".join(
        texts
    ), "agrees: v from any t, ε not from the last"


def _table3(r: Cells) -> tuple[str, str]:
    arms = r["arms"]
    names = ("v_mixed", "eps_mixed", "vq", "transfusion")
    read = ", ".join(f"{100 * arms[n]['reading']['mean']:.0f} %" for n in names)
    drawn = ", ".join(f"{arms[n]['drawing']['last']['frechet']['mean']:.3g}" for n in names)
    order = sorted(names, key=lambda n: arms[n]["drawing"]["last"]["frechet"]["mean"])
    same = order[0] == "v_mixed"
    return (
        f"v, ε, VQ, transfusion-like: read {read}; Fréchet distance {drawn}",
        "agrees that v draws best" if same else f"disagrees: {order[0]} draws best here",
    )


def _table3_scenes(r: Cells) -> tuple[str, str]:
    """The same on scenes, with the control of rounding: what epsilon draws in float32."""
    arms, names = r["arms"], ("v_mixed", "eps_mixed", "vq", "transfusion")
    reading = {n: arms[n]["reading"]["test"]["mean"]["mean"] for n in names}
    distance = {n: arms[n]["drawing"]["last"]["frechet"]["mean"] for n in names}
    read, drawn = ", ".join(f"{100 * reading[n]:.0f} %" for n in names), ", ".join(f"{distance[n]:.4g}" for n in names)
    exact = arms["eps_mixed"]["drawing"]["last_float32"]["frechet"]["mean"]
    text = f"v, ε, VQ, transfusion-like: read {read}; Fréchet distance {drawn}; ε drawn in float32 {exact:.4g}"
    reads, draws = max(reading, key=lambda n: reading[n]), min(distance, key=lambda n: distance[n])
    shown = {"v_mixed": "v", "eps_mixed": "ε", "vq": "VQ", "transfusion": "transfusion-like"}
    verdict = f"{'agrees' if draws == 'v_mixed' else 'disagrees'}: {shown[draws]} draws closest" + (
        "" if reads == draws else f"; disagrees: {shown[reads]} reads best here"
    )
    alone = _alone(arms["v_mixed"]["reading"]["test"]["mean"])
    return text + alone, verdict + (f"; {_ALONE}" if alone else "")


def _cause(r: Cells) -> tuple[str, str]:
    """How much of the gap of epsilon to v in what is drawn is there in float32, and what the start does to it."""
    arms = r["arms"]

    def distance(name: str, way: str = "last") -> float:
        return float(arms[name]["drawing"][way]["frechet"]["mean"])

    gap, exact = distance("eps_mixed") - distance("v_mixed"), distance("eps_float32") - distance("v_float32")
    safe = distance("eps_mixed", "safe") - distance("v_mixed", "safe")
    start = f"{r['safe_start']:g}"
    text = f"ε draws {gap:.1f} worse than v in bf16 from t = 999, {exact:.1f} in float32; {safe:.1f} in bf16 from t = {start}"
    if abs(exact - gap) < abs(exact) / 2:
        return text, "disagrees: float32 does not close it, a safe start " + ("does most" if safe < gap / 2 else "does not")
    return text, "agrees: float32 closes it" if exact < gap / 2 else "cannot be told: float32 changes it"


def _digits(r: Cells) -> tuple[str, str]:
    way = next(iter(r["drawing"].values()))
    identity = r["reading"]["identity"]
    right = identity["right"] / identity["asked"]
    return f"digits: {100 * right:.1f} % named, {100 * way['recognised']:.1f} % of drawn ones recognised", "agrees, in small"


def _scenes(r: Cells) -> tuple[str, str]:
    *_, way = r["drawing"]["test"].values()
    parts = {"position": "of places", "colour": "of colours", "shape": "of shapes", "exact": "exactly"}
    drawn = ", ".join(f"{100 * way[name]:.0f} % {words}" for name, words in parts.items())
    text = f"scenes: {100 * r['reading']['test']['mean']:.0f} % of questions right; drawn: {drawn}"
    return text, "reads well; draws well" if way["exact"] > 0.5 else "reads well; does not draw shapes well"


def _speed(r: Cells) -> tuple[str, str]:
    best = r["ways"][r["best"]]
    text = f"{best['fewer_calls']:.0f} times fewer calls of the head, {best['faster']:.1f} times faster, within the spread"
    recall = f"recall {best['recall']['mean']:.2f} against {r['ways']['paper']['recall']['mean']:.2f}"
    return f"{text} ({r['best']}; {recall})", "a limit of the recipe, not of the model"


def _steps(r: Cells) -> tuple[str, str]:
    """Through both stages, after tuning: at the first checkpoint, at the end of each stage."""
    tuned = [cell["mean"] for cell in r["tuned"]]
    turn = next(i for i, point in enumerate(r["points"]) if point["stage"] == "stage2") - 1
    first, middle, last = tuned[0], tuned[turn], tuned[-1]
    text = f"after tuning {100 * first:.0f} % at first, {100 * middle:.0f} % after stage 1, {100 * last:.0f} % after both"
    return text + _alone(r["tuned"][0]), "agrees" if first < middle < last else "disagrees"


def _holes(r: Cells) -> tuple[str, str]:
    before, after = r["holes"]["stage1_only"], r["holes"]["v_mixed"]
    text = f"holes in {100 * before['mean']:.1f} % of patches after stage 1 alone, {100 * after['mean']:.1f} % after both"
    if before["min"] == before["max"]:
        return f"{text} (one seed)", f"not seen here; {_ALONE}"
    return text, "agrees" if after["max"] < before["min"] else "disagrees"


def _noise(r: Cells) -> tuple[str, str]:
    levels = r["arms"]["transfusion"]
    clean = next(iter(r["arms"]["v_mixed"].values()))["mean"]["mean"]
    first, last = (levels[t]["mean"]["mean"] for t in (min(levels, key=int), max(levels, key=int)))
    noised = f"transfusion-like {100 * first:.0f} % at t = 0, {100 * last:.0f} % at t = {max(levels, key=int)}"
    return f"{noised}; MMAR {100 * clean:.0f} %", "agrees" if last < first else "disagrees"


def _guidance(r: Cells) -> tuple[str, str]:
    best = {length: min(range(len(c["frechet"])), key=lambda i: c["frechet"][i]["mean"]) for length, c in r["curves"].items()}
    values = {length: r["curves"][length]["frechet"][i]["mean"] for length, i in best.items()}
    text = "; ".join(f"{length} steps of stage 1: {value:.3g}" for length, value in values.items())
    alone = _alone(next(iter(r["curves"].values()))["frechet"][0])
    agrees = values[max(values, key=int)] == min(values.values())
    verdict = ("agrees" if agrees else "disagrees") + (f" in sign; {_ALONE}" if alone else "")
    return f"best Fréchet distance, {text}{alone}", verdict


def _families(r: Cells) -> tuple[str, str]:
    arms = r["arms"]
    read = "; ".join(f"{name} {100 * one['reading']['mean']:.0f} %" for name, one in arms.items())
    best, second = sorted(arms, key=lambda n: -arms[n]["reading"]["mean"])[:2]
    alone = _alone(arms[best]["reading"])
    near = arms[best]["reading"]["mean"] - arms[second]["reading"]["mean"] < 0.01
    verdict = "agrees" if best == "v_mixed" else f"{best} reads best here"
    return f"read: {read}{alone}", verdict + (f", {second} within a point; {_ALONE}" if alone and near else "")


def _scaling(r: Cells) -> tuple[str, str]:
    sizes = r["sizes"]
    plain = [name for name in sizes if " x" not in name]
    rated = [next((n for n in sizes if n.startswith(f"{name} x")), name) for name in plain]

    def reading(names: list[str]) -> list[float]:
        return [sizes[name]["reading"]["mean"] for name in names]

    def distances(names: list[str]) -> list[float]:
        return [sizes[name]["drawing"]["last"]["frechet"]["mean"] for name in names]

    def told(names: list[str]) -> str:
        read, distance = ", ".join(f"{100 * m:.0f} %" for m in reading(names)), ", ".join(f"{d:.3g}" for d in distances(names))
        return f"read {read}; Fréchet {distance}"

    text = (
        f"three sizes, the smallest first: {told(plain)} at one learning rate; {told(rated)} at rates that fall with the width"
    )
    agrees = reading(rated) == sorted(reading(rated)) and distances(rated) == sorted(distances(rated), reverse=True)
    alone = _alone(sizes[plain[0]]["reading"])
    return text + alone, ("agrees in sign" if agrees else "not seen at this scale") + (f"; {_ALONE}" if alone else "")


def _alone(cell: Cells) -> str:
    """A remark where there is one seed, which has no spread."""
    return " (one seed)" if cell["min"] == cell["max"] else ""


Found = Callable[[Cells], tuple[str, str]]
_CLAIMS: tuple[tuple[str, str, str, str, Found], ...] = (
    (
        "A relative error of the output is multiplied by 1/\\|sin(ψ - φ)\\| in a DDIM step",
        "eq. 18", "prediction_check.py --preset cpu", "prediction_check-cpu", _amplification,
    ),
    ("v is the safe output in bf16", "section 3.2", "safe_in_bf16.py --preset cpu", "safe_in_bf16-cpu", _v_is_safe),
    ("The gap between the losses of ε and v is bf16's error", "figure 3A", "eps_vs_v.py --preset cpu", "eps_vs_v-cpu", _gap),
    ("Its size is 1/(128² ᾱ)", "eq. 27", "eps_vs_v.py --preset cpu", "eps_vs_v-cpu", _direct),
    (
        "The gap, with a head of the paper's size (1024 wide, 8 deep)", "figure 3A",
        "eps_vs_v.py --preset gpu", "eps_vs_v-gpu", _gap_at_paper_size,
    ),
    ("The same in MMAR's own head", "figure 3A", "table3.py --preset cpu", "table3-cpu", _gap_in_mmar),
    ("v reads and draws better than ε, VQ, transfusion-like", "table 3", "table3.py --preset cpu", "table3-cpu", _table3),
    ("The same, on scenes", "table 3", "table3_scenes.py --preset cpu", "table3_scenes-cpu", _table3_scenes),
    ("ε draws worse than v because of bf16", "section 4.4", "table3.py --preset cpu", "table3-cpu", _cause),
    ("One model reads and draws well", "section 4", "mmar_digits.py --preset cpu", "mmar_digits-cpu", _digits),
    ("The same, of several objects", "section 4", "mmar_scenes.py --preset cpu", "mmar_scenes-cpu", _scenes),
    ("MMAR reads better than the other joint models", "table 1", "table1.py --preset cpu", "table1-cpu", _families),
    ("Larger models do both better", "tables 1, 2", "table1.py --preset cpu", "table1-cpu", _scaling),
    ("A longer stage 1 lowers FID at its best guidance", "figure 3B", "figure3b.py --preset cpu", "figure3b-cpu", _guidance),
    ("Understanding grows through both stages", "figure 3C", "figure3c.py --preset cpu", "figure3c-cpu", _steps),
    ("Stage 2 removes holes", "figure 5", "figure5.py --preset cpu", "figure5-cpu", _holes),
    ("Noise on its input costs a transfusion-like model", "figure 7", "figure7.py --preset cpu", "figure7-cpu", _noise),
    ("256 x 100 steps make an image slow", "section 4.6", "speed_quality.py --preset cpu", "speed_quality-cpu", _speed),
)  # fmt: skip
