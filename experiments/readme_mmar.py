"""The README's numbers of mmar, from the committed records; called by :mod:`experiments.readme`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.record import read_record

_PARTS = {
    "language_model": "language model, frozen",
    "plora": "PLoRA",
    "embedding_vit": "EmbeddingViT",
    "head": "diffusion MLP",
    "projectors_and_tables": "projectors, tables, boi and eoi",
    "trained": "trained in all",
}
_PREDICTIONS = {"v_prediction": "v", "epsilon": "ε"}


def sizes() -> str:
    """Parameters of the presets, and a step of one of them."""
    record = read_record("model_size-cpu")
    counts, last = record["results"]["parameters_millions"], record["results"]["steps"][-1]
    rows = [[label, *(f"{counts[name][part]:.1f}" for name in counts)] for part, label in _PARTS.items()]
    step = (
        f"One step of {record['config']['run']} on one image to draw and one to read, bf16, random weights, two CPU cores: "
        f"forward {last['forward_s']:.1f} s, backward {last['backward_s']:.1f} s, at most "
        f"{record['results']['peak_gib']:.1f} GiB of memory."
    )
    return f"{table(['millions of parameters', *counts], rows)}\n\n{step}"


def overfit() -> str:
    """Overfitting four images."""
    record = read_record("overfit_four-cpu")
    rows = []
    for prediction in record["config"]["predictions"]:
        runs = [r for key, r in record["results"].items() if key.startswith(f"{prediction} ")]
        errors = [_range([r["drawing_error"][start] for r in runs]) for start in runs[0]["drawing_error"]]
        right = ", ".join(f"{r['right']} of {r['asked']}" for r in runs)
        rows.append([_PREDICTIONS[prediction], *errors, right])
    starts = [f"error of a drawn token, {start}" for start in runs[0]["drawing_error"]]
    return table(["head", *starts, "questions answered right"], rows)


def mmar_speed() -> str:
    """Ratios of three benchmarks."""
    training = read_record("mmar_training_speed-cpu")["results"]
    plora = read_record("plora_speed-cpu")["results"]["autocast, bf16 base"]
    drawing = read_record("generation_speed-cpu")["results"]
    steps = ", ".join(f"{name} {ratio:.2f}" for name, ratio in training["step_over_mmar"].items() if name != "mmar")
    both, images = plora["text and images, forward and backward"], plora["images, forward"]
    cache = ", ".join(f"{c['recomputed_over_cached']:.2f} at {n}" for n, c in drawing["prefix_cache"].items())
    lines = [
        ["a training step, over MMAR's", steps],
        ["the head on all tokens over the masked ones alone", f"{training['all_tokens_over_gathered']:.2f}"],
        [
            "PLoRA over plain LoRA, forward and backward, text and images",
            f"gathered rows {both['gather_over_lora']:.2f}, mask {both['mask_over_lora']:.2f}",
        ],
        ["PLoRA merged over plain LoRA, images alone, forward", f"{images['merged_over_lora']:.2f}"],
        ["drawing with prompts recomputed over cached, by tokens of the prompt", cache],
    ]
    return f"{table(['what', 'ratio of times'], lines)}\n\n{_drawing(drawing)}"


def _drawing(results: dict[str, Any]) -> str:
    """Images per second and where the time goes, by steps and batch."""
    parts = ("backbone", "embedding_vit", "head")
    rows = []
    for name, speed in results["ar_steps x head_steps"].items():
        shares = results["shares"].get(name, {})
        cells = [f"{100 * shares[part]:.0f} %" if part in shares else "" for part in parts]
        rows.append([name, f"{speed['images_per_s']:.3g}", f"{speed['faster_than_slowest']:.1f}", *cells])
    header = ["AR steps x head steps, mmar-scenes, guided", "images/s", "times the slowest", *parts]
    return table([name.replace("_", " ") for name in header], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, the first column to the left."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"each row must have {len(header)} cells, got {sorted({len(row) for row in rows})}")
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _shown(low) if _shown(low) == _shown(high) else f"{_shown(low)} to {_shown(high)}"


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.0e}".replace("e+0", "e")
