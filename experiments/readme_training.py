"""The README's numbers of trained models, from the committed records; called by :mod:`experiments.readme`."""

from __future__ import annotations

from typing import Any

from experiments.readme_mmar import table
from experiments.record import read_record

_ATTRIBUTES = ("count", "colour", "shape", "size", "position", "pair", "glyph", "exact")


def digits() -> str:
    """Drawing and reading digits."""
    found = read_record("mmar_digits-cpu")["results"]
    rows = [[f"drawn, {name}", _percent(one["recognised"]), one["drawn"]] for name, one in found["drawing"].items()]
    rows.append(["real test scans, the same classifier", _percent(found["classifier_on_test_scans"]), 445])
    for family, one in found["reading"].items():
        rows.append([f"read, {family} (chance {one['chance']:.0%})", _percent(one["right"] / one["asked"]), one["asked"]])
    return f"{table(['digits', 'right', 'of'], rows)}\n\n{_time(found['stages'])}"


def scenes() -> str:
    """Questions about drawn scenes, and drawn scenes."""
    found = read_record("mmar_scenes-cpu")["results"]
    splits = list(found["reading"])
    rows = []
    for family, first in found["reading"][splits[0]]["families"].items():
        shares = [found["reading"][split]["families"][family] for split in splits]
        texts = [found["reading_captions"][split]["families"][family] for split in splits]
        right = [_percent(one["right"] / one["asked"]) for one in (*shares, *texts)]
        rows.append([family, *right, f"{first['chance']:.0%}"])
    means = [found[asked][split]["mean"] for asked in ("reading", "reading_captions") for split in splits]
    rows.append(["mean", *map(_percent, means), ""])
    names = [split.replace("_", " ") + " scenes" for split in splits]
    reading = table(["questions", *names, *(f"captions of {name}" for name in names), "chance"], rows)
    drawn = [
        [f"{name}, {split.replace('_', ' ')}", *(_percent(shares[attribute]) for attribute in _ATTRIBUTES)]
        for split in splits
        for name, shares in found["drawing"][split].items()
    ]
    return f"{reading}\n\n{table(['drawn', *_ATTRIBUTES], drawn)}\n\n{_time(found['stages'])}"


def scene_words() -> str:
    """What the language model of scenes finds in captions, after questions alone and after all parts of its lessons."""
    records = {"questions alone": read_record("scene_words-gpu"), "all four parts": read_record("scene_words-cpu")}
    rows = []
    for label, record in records.items():
        families, mean = record["results"]["reading_captions"]["families"], record["results"]["reading_captions"]["mean"]
        rows.append([label, *(_percent(one["right"] / one["asked"]) for one in families.values()), _percent(mean)])
    return f"{table(['stage 0', *families, 'mean'], rows)}\n\n{_time(records['all four parts']['results']['stages'])}"


def scene_sight() -> str:
    """What the EmbeddingViT that models of scenes start from names in whole scenes."""
    record = read_record("scene_sight-cpu")
    rows = [
        [split.replace("_", " "), *(_percent(one["right"] / one["of"]) for one in shares.values())]
        for split, shares in record["results"]["right"].items()
    ]
    config = record["config"]
    seen = f"{config['steps']} steps of {config['batch']} scenes in {record['duration_s'] / 60:.0f} min."
    return f"{table(['named right', *record['results']['right']['test']], rows)}\n\n{seen}"


def scene_hand() -> str:
    """What the diffusion head that models of scenes start from draws of scenes that it is told in full."""
    record = read_record("scene_hand-cpu")
    rows = [
        [split.replace("_", " "), *(_percent(shares[name]) for name in _ATTRIBUTES)]
        for split, shares in record["results"]["drawn"].items()
    ]
    config = record["config"]
    seen = f"{config['steps']} steps of {config['batch']} scenes in {record['duration_s'] / 60:.0f} min."
    return f"{table(['drawn as told', *_ATTRIBUTES], rows)}\n\n{seen}"


def tokenizers() -> str:
    """The small image tokenizers."""
    rows = []
    for key, one in read_record("scene_tokenizers-cpu")["results"].items():
        read = one["read"]
        shares = [_percent(read[name]) for name in ("count", "pair", "position", "exact")]
        rows.append([f"{key}-scenes", f"{one['parameters'] / 1e6:.2f} M", f"{one['psnr']:.1f} dB", *shares])
    return table(["image tokenizer", "parameters", "PSNR", "count", "pair", "position", "exact"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _time(stages: dict[str, Any]) -> str:
    parts = ", ".join(f"{one['steps']} steps of {name} in {one['training_s'] / 60:.0f} min" for name, one in stages.items())
    return f"{parts}; {sum(one['training_s'] for one in stages.values()) / 60:.0f} min in all."


def reliability() -> str:
    """Twenty kills."""
    runs = read_record("kill_and_resume-cpu")["results"].values()
    kills, writing = (sum(run[name] for run in runs) for name in ("kills", "hit_a_checkpoint_being_written"))
    equal = all(all(run["equal"].values()) for run in runs)
    lost = max(run["steps_lost_at_most"] for run in runs)
    verdict = "are those of an uninterrupted run to the last bit" if equal else "DIFFER from those of an uninterrupted run"
    return (
        f"Killed {kills} times at random moments (`kill -9`), {writing} times while a checkpoint was written, and resumed each "
        f"time: losses, weights, average and optimizer {verdict}; at most {lost} steps, those since the last checkpoint, were "
        "done again (`python experiments/kill_and_resume.py --preset cpu`)."
    )


def training_speed() -> str:
    """What reading the data costs, and how long it takes to the first picture."""
    data = read_record("data_loading-cpu")["results"]
    rows = [[name, f"{one['rate_over_latents']:.2f}", _percent(one["data_share"])] for name, one in data.items()]
    first = read_record("first_picture-cpu")["results"]
    parts = ("start", "import", "load", "draw", "total")
    seconds = [[name, *(f"{one[f'{part}_s']:.1f}" for part in parts)] for name, one in first.items()]
    return (
        f"{table(['training on', 'samples/s over those of cached latents', 'share of the time that waits for data'], rows)}\n\n"
        f"{table(['seconds to the first picture, one thread', *parts], seconds)}"
    )
