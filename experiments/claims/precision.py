"""Claims about precision: what a rounding does, whose fault the gap between epsilon and v is, what a bf16 sampler costs."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.claims.numbers import ONE_SEED, Cells, one_seed

_HIGH = ("900-949", "980-989", "999")
"""Buckets of timesteps where the gap is large; at lower ones a head of the paper's size has next to none."""


def gap(r: Cells) -> tuple[str, str]:
    """How much of the gap is there without bf16, and how much of that is how the loss is weighted."""
    exact, direct = _shares(r, "float32_gap", _HIGH), _shares(r, "direct", _HIGH)
    parts = r["gaps"]["mixed"]["parts"]["float32_gap"]
    weighting = [1 - r["weighting"]["float32_gap"][b]["mean"] / parts[b]["mean"] for b in _HIGH]  # what goes with v's weights
    text = f"above t = 900 {_span(exact)} of the gap is there in float32, {_span(direct, 1)} is rounding"
    alone = one_seed(r["gaps"]["mixed"]["parts"]["gap"]["999"])
    if min(exact) < 0.5:
        return text + alone, "agrees: without bf16 it closes"
    return text + alone, f"disagrees: not bf16 but the weighting of the loss ({_span(weighting)} of it) and conditioning"


def gap_in_mmar(r: Cells) -> tuple[str, str]:
    return gap(r["head"])


def pure_training(r: Cells) -> tuple[str, str]:
    """What training in bf16 adds to the gap, evaluated in float32."""
    mixed, pure = (_shares(r, "training", _HIGH, regime) for regime in ("mixed", "pure"))
    text = f"of the gap above t = 900, training in pure bf16 adds {_span(pure)}, with float32 weights {_span(mixed)}"
    alone = one_seed(r["gaps"]["pure"]["parts"]["gap"]["999"])
    if min(pure) <= 0:
        return text + alone, "not seen here"
    least = min(r["gaps"]["pure"]["parts"]["training"][b]["min"] for b in _HIGH)
    if least <= 0:
        return text + alone, "not told from nothing: the seeds differ in sign"
    return text + alone, "agrees in sign for pure bf16, where it is a small part" + (
        f"; {ONE_SEED}" if alone else ", in each seed"
    )


def pure_training_in_mmar(r: Cells) -> tuple[str, str]:
    return pure_training(r["head"])


def direct(r: Cells) -> tuple[str, str]:
    low, high = _times_too_large(r)
    at_first = 1 / r["gaps"]["mixed"]["measured_over_predicted"]["paper"]["0-99"]["mean"]
    text = f"above t = 500, eq. 27 is {low:.1f} to {high:.1f} times the measured rounding; below t = 100 {at_first:.1f} times"
    if high > 1.5 * low:
        return text, "disagrees in form"
    return text, "agrees in form above t = 500; its constant is not the network's own: calibrate it"


def direct_in_mmar(r: Cells) -> tuple[str, str]:
    return direct(r["head"])


def amplification(r: Cells) -> tuple[str, str]:
    spans = [group["one_step"] for group in r["groups"].values() if group["one_step"] is not None]
    low, high = min(span[0] for span in spans), max(span[2] for span in spans)
    return f"measured over predicted, one call of an exact denoiser: {low:.3g} to {high:.3g}", (
        "agrees" if low > 0.95 and high < 1.05 else "disagrees"
    )


def optimum(r: Cells) -> tuple[str, str]:
    """Whether v's angle is the best, which is measured without the formula."""
    gap = r["worst"]["gaussian"]["gap_moments"]
    text = f"the best angle is that of eq. 20 within {gap:.0e} rad on Gaussians; it is v only if sigma_d = 1"
    return text, "agrees for data of variance 1" if gap < 1e-3 else "disagrees"


def v_is_safe(r: Cells) -> tuple[str, str]:
    """Errors of the sample when the output, the network, everything is in bf16."""
    texts = [
        f"{'ε' if row['head'] == 'eps' else row['head']} from t = {row['start']}: "
        + ", ".join(f"{row[part]['measured']:.2g}" for part in ("output", "network", "everything"))
        for row in r["rows"]
    ]
    text = "relative error of the sample with outputs rounded, the network in bf16, everything in bf16: " + "; ".join(texts)
    worst = {head: max(row["network"]["measured"] for row in r["rows"] if row["head"] == head) for head in ("v", "eps")}
    if worst["v"] >= worst["eps"]:
        return text, "disagrees"
    return text, "agrees for output and network; a plain bf16 sampler costs v more than its network does"


def sampler(r: Cells) -> tuple[str, str]:
    """Does a float32 sampler on a bf16 network help?"""
    arm = r["arms"]["v_mixed"]
    error, drawn = arm["errors"], arm["drawing"]
    text = (
        f"v: error of the tokens {error['forward']['measured']['mean']:.2g} with a float32 step, "
        f"{error['everything']['measured']['mean']:.2g} in bf16, "
        f"{error['plain']['measured']['mean']:.2g} with a plain bf16 step; "
        f"Fréchet distance {drawn['forward']['frechet']['mean']:.3g} and {drawn['everything']['frechet']['mean']:.3g}"
    )
    alone = one_seed(error["forward"]["measured"])
    helps = error["forward"]["measured"]["mean"] < error["everything"]["measured"]["mean"]
    return text + alone, "agrees for the tokens; it does not show in what is drawn" if helps else "disagrees"


def cause(r: Cells) -> tuple[str, str]:
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


def _shares(r: Cells, part: str, buckets: Sequence[str], regime: str = "mixed") -> list[float]:
    """Of the gap in bf16, by bucket of timesteps."""
    parts = r["gaps"][regime]["parts"]
    return [parts[part][b]["mean"] / parts["gap"][b]["mean"] for b in buckets]


def _span(values: Sequence[float], digits: int = 0) -> str:
    """Per cent, from the smallest to the largest."""
    low, high = (f"{100 * value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _times_too_large(r: Cells) -> tuple[float, float]:
    ratios = r["gaps"]["mixed"]["measured_over_predicted"]["paper"]
    values = [1 / ratios[b]["mean"] for b in ("500-599", "900-949", "999")]
    return min(values), max(values)
