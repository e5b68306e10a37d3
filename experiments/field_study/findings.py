"""What the numbers of a report say, as sentences made from them: every claim stands beside its prediction or its control."""

from __future__ import annotations

from typing import Any

from diffparam import EPSILON, X0
from experiments.field_study.missing import numbers
from experiments.field_study.render import number
from experiments.field_study.reports import FOLK_CLAMP, REPORTS


def findings(name: str, results: dict[str, Any]) -> list[str]:
    """Sentences with means over seeds."""
    return _noisy_end(results) if name == "noisy_end" else _clean_end(results)


def loss_at_end(results: dict[str, Any], head: str, precision: str) -> float:
    """The v-space loss at the report's end, mean over seeds."""
    curves = numbers(results["curves"][head][f"loss_{precision}"])
    return float(curves.mean(0)[results["timesteps"].index(results["end"])])


def explosion(results: dict[str, Any], head: str) -> float:
    """Rms of the first predicted clean sample, ``sqrt(1 + L)`` with the v-space loss L at the start, without any rounding.

    Up to the data's own variance L is kappa^2 times the squared error of the epsilon output. If no later step corrects it, it
    is the rms of the samples too: a network whose output is of order 1 cannot pull back a state that is not.
    """
    return (1.0 + loss_at_end(results, head, "float32")) ** 0.5


def share(results: dict[str, Any], part: str) -> float:
    """Per cent of the gap at the report's end that a part makes up; nan where a head diverged."""
    at = results["timesteps"].index(results["end"])
    some, whole = numbers([results["parts"][name][at]["mean"] for name in (part, "gap")])
    return float(100 * some / whole)


def _parts(results: dict[str, Any], cure: str) -> str:
    float32, rounding, training = (f"{share(results, part):.4g} %" for part in ("float32_gap", "direct", "training"))
    return (
        f"Of the gap to {cure} at t = {results['end']} the float32 control has {float32}, rounding {rounding}, "
        f"training in bf16 {training}."
    )


def _noisy_end(results: dict[str, Any]) -> list[str]:
    perfect, trained = results["exact"][EPSILON.name]["samples"]["reported"], results["samples"]
    predicted, label = results["predicted"]["outputs"][EPSILON.name], REPORTS["noisy_end"].label
    moved, tail = predicted["moved"]["reported"], results["training"]["eps_bf16"]["tail"]
    in_float32 = trained["eps_float32"]["reported"]["float32"]
    cures = "; ".join(
        f"{label(EPSILON.name, run)} {number(found['bf16']['frechet'])}" for run, found in trained["eps_bf16"].items()
    )
    return [
        f"Rounding alone: a perfect network with bf16 outputs has samples of rms {number(perfect['bf16']['rms'])}, moved by "
        f"{number(perfect['moved'])} (predicted {number(moved['bf16'])}; for float32 {number(moved['float32'])}).",
        f"Conditioning alone: trained and run in float32, the samples have rms {number(in_float32['rms'])} "
        f"({explosion(results, 'eps_float32'):.3g} from the head's own loss at t = {results['end']}).",
        _parts(results, "v"),
        f"Why the loss does not show it: at t = {results['end']} a squared error of {number(predicted['tolerable_loss'])} "
        f"costs 1 %; the loss of the bin is {number(tail['median'])}, its largest step {number(tail['spike'])} times that.",
        f"In bf16, Frechet distance: {cures}; v output {number(trained['v_bf16']['reported']['bf16']['frechet'])}. "
        f"As reported, in float32: {number(in_float32['frechet'])}.",
    ]


def _clean_end(results: dict[str, Any]) -> list[str]:
    training, weights, trained = results["training"], results["predicted"]["weights"], results["samples"]
    predicted, perfect, level = results["predicted"]["outputs"][X0.name], results["exact"][X0.name], results["end"] / 1000
    rounding = perfect["rounding"]["bf16"][results["timesteps"].index(results["end"])]
    spikes = "; ".join(f"{head} {number(watched['tail']['spike'])}" for head, watched in training.items())
    limits = ", ".join(f"{t / 1000:g} ({delta})" for delta, t in predicted["limit"]["bf16"].items())
    names = ("x", "xclamp", "flow")
    shares = {head: number(weights[f"{head}_bf16"]["effective_share"]) for head in names}
    frechet = {head: number(trained[f"{head}_bf16"]["reported"]["bf16"]["frechet"]) for head in names}
    return [
        f"Rounding alone: one rounding of a perfect output to bf16 costs {number(rounding)} in v-space at noise level "
        f"{level:g} (predicted {number(predicted['floor']['bf16'])}). Conditioning: trained and run in float32, the loss is "
        f"{loss_at_end(results, 'x_float32', 'float32'):.3g}.",
        _parts(results, "flow"),
        f"Instability, the bin's largest loss over its median: {spikes}. Predicted in any precision: the weights leave "
        f"{shares['x']} of a batch without the clamp, {shares['xclamp']} with it, {shares['flow']} for flow.",
        f"Rounding to bf16 costs more than 1 % below the noise levels {limits}; the clamp that people use is {FOLK_CLAMP}.",
        f"Sampling: rounding a perfect x output moves the samples by {number(perfect['samples']['reported']['moved'])} "
        f"(predicted {number(predicted['moved']['reported']['bf16'])}). A clamp in the sampler takes the Frechet distance from "
        f"{frechet['xclamp']} to {number(trained['xclamp_bf16']['clamp_time']['bf16']['frechet'])}.",
        f"In bf16, Frechet distance: x without clamp {frechet['x']}, with clamp {frechet['xclamp']}, flow {frechet['flow']}. "
        f"x without clamp, in float32: {number(trained['x_float32']['reported']['float32']['frechet'])}. Loss of flow at noise "
        f"level {level:g}: {loss_at_end(results, 'flow_bf16', 'bf16'):.3g}.",
    ]
