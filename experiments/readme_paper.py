"""The tables of ``experiments/README.md`` from the committed records; called by :mod:`experiments.readme`."""

from __future__ import annotations

from typing import Any

from experiments.head_study.tables import number
from experiments.image_order import LABELS as IMAGE_ORDERS
from experiments.paper_study.arms import ARMS
from experiments.paper_study.objects import ATTRIBUTES, FAMILIES, SPLITS
from experiments.paper_study.study import percent
from experiments.readme_mmar import table
from experiments.record import RECORDS, read_record
from experiments.table3_scenes import WAYS as SCENE_WAYS

OPEN = "not measured yet"


def table3() -> str:
    """Table 3 in small."""
    return _arms("table3-cpu")


def table3_scenes() -> str:
    """Table 3 on drawn scenes of one object: what is read, then what is drawn."""
    record = "table3_scenes-cpu"
    if not exists(record):
        return _missing(record)
    found, seeds = results_of(record), len(read_record(record)["config"]["seeds"])
    read, drawn = [], []
    for name, one in found["arms"].items():
        test, held_out = one["reading"]["test"], one["reading"]["held_out"]
        cells = [*(test[family] for family in FAMILIES), test["mean"], held_out["mean"]]
        read.append([ARMS[name].label, *(percent(cell, seeds) for cell in cells)])
        ways = one["drawing"]
        cells = [percent(ways["last"][attribute], seeds) for attribute in ATTRIBUTES]
        cells += [number(ways[way]["frechet"], seeds) if way in ways else "" for way in SCENE_WAYS]
        drawn.append([ARMS[name].label, *cells])
    read.append(["the language model, told the caption", *_told_captions("object_words-cpu")])
    read.append(["chance", *(f"{found['chance'][column]:.1%}" for column in (*FAMILIES, "mean")), ""])
    for name, of in found["references"].items():
        drawn.append([name, *(f"{of[attribute]:.1%}" for attribute in ATTRIBUTES), f"{of['frechet']:.3g}", "", "", ""])
    tables = (
        table(["read", *FAMILIES, "mean", "pairs never met"], read),
        table(["drawn, from t = 999", *ATTRIBUTES, *SCENE_WAYS.values()], drawn),
    )
    return "\n\n".join(tables)


def _told_captions(record: str) -> list[str]:
    """What a frozen language model finds in captions: of each family, their mean, and of pairs never met."""
    test, held_out = (results_of(record)["reading_captions"][split] for split in SPLITS)
    shares = [one["right"] / one["asked"] for one in test["families"].values()]
    return [f"{share:.1%}" for share in (*shares, test["mean"], held_out["mean"])]


def table1() -> str:
    """The families of table 1 in small, then MMAR at its sizes."""
    record = "table1-cpu"
    if not exists(record):
        return _missing(record)
    whole = read_record(record)
    seeds, rows = len(whole["config"]["seeds"]), []
    for size, one in whole["results"]["sizes"].items():
        last, trained = one["drawing"]["last"], f"{one['trained_parameters'] / 1e6:.2f} M"
        read, told, recognised = (
            percent(cell, seeds) for cell in (one["reading"], one["reading_captions"], last["recognised"])
        )
        rows.append([size, trained, read, told, recognised, number(last["frechet"], seeds)])
    sizes = table(["MMAR", "trained parameters", "read", "captions read", "drawn, from t = 999", "Fréchet"], rows)
    return f"{_arms(record)}\n\n{sizes}"


def ablations() -> str:
    """Heads, orders, positions, contexts, switches of precision and numbers of tokens."""
    return _arms("ablations-cpu")


def image_order() -> str:
    """Random masks and causal raster order, drawn in either order."""
    record = "image_order-cpu"
    if not exists(record):
        return _missing(record)
    rows = []
    for way, one in results_of(record)["ways"].items():
        seeds = one["seeds"]
        cells = [percent(one["reading"], seeds), percent(one["recognised"], seeds)]
        cells += [number(one["frechet"], seeds), number(one["recall"], seeds)]
        rows.append([IMAGE_ORDERS[way], str(seeds), *cells])
    real = results_of(record)["reference"]
    rows.append(["real scans", "", "", f"{real['recognised']:.1%}", f"{real['frechet']:.3g}", f"{real['recall']:.3g}"])
    return table(["training, order of drawing", "seeds", "read", "recognised", "Fréchet", "recall"], rows)


def speed_quality() -> str:
    """Ways on the front of time and distance, those as good with thirty times fewer calls, the best, the paper's."""
    record = "speed_quality-cpu"
    if not exists(record):
        return _missing(record)
    found = results_of(record)
    seeds = 2  # more than one: spreads are shown
    good = [name for name, way in found["ways"].items() if way["within_spread"] and way["fewer_calls"] >= 30]
    names = sorted({*found["front"], *good, found["best"], "paper"}, key=lambda name: found["ways"][name]["seconds"]["mean"])
    rows = []
    for name in names:
        way = found["ways"][name]
        cells = [way["head_calls"], f"{way['fewer_calls']:.0f}", f"{way['faster']:.1f}"]
        cells += [number(way["frechet"], seeds), percent(way["recognised"], seeds), number(way["recall"], seeds)]
        cells.append("yes" if way["within_spread"] else "no")
        rows.append([f"**{name}**" if name == found["best"] else name, *cells])
    header = ["AR x head steps, solver", "calls of the head", "times fewer", "times faster"]
    return table([*header, "Fréchet distance", "recognised", "recall", "as good as the full recipe"], rows)


_WAYS = {
    "float32": "float32",
    "forward": "bf16 forward, float32 step",
    "plain": "float32 forward, bf16 step and state, plain update",
    "state": "float32 forward, bf16 step and state",
    "everything": "everything bf16",
}


def sampler_precision() -> str:
    """Errors of final tokens predicted and measured, and what is drawn, by what computes in bf16."""
    record = "sampler_precision-cpu"
    if not exists(record):
        return _missing(record)
    found, seeds = results_of(record), len(read_record(record)["config"]["seeds"])
    rows = []
    for name, arm in found["arms"].items():
        for way, label in _WAYS.items():
            cells, drawn = ["", "", ""], arm["drawing"].get(way)
            if way in arm["errors"]:
                error = arm["errors"][way]
                cells = [number(error[key], seeds) for key in ("predicted", "measured")]
                cells.append(_ratio(error["measured"]["mean"], error["predicted"]["mean"]))
            rows.append(
                [
                    f"{ARMS[name].label}; {label}",
                    *cells,
                    "" if drawn is None else percent(drawn["recognised"], seeds),
                    "" if drawn is None else number(drawn["frechet"], seeds),
                ]
            )
    return table(["head; sampler", "error predicted", "measured", "ratio", "recognised", "Fréchet"], rows)


def _ratio(measured: float | None, predicted: float | None) -> str:
    return "" if measured is None or not predicted else f"{measured / predicted:.2f}"


def _arms(record: str) -> str:
    if not exists(record):
        return _missing(record)
    whole = read_record(record)
    found, seeds = whole["results"], len(whole["config"]["seeds"])
    rows = []
    for name, one in found["arms"].items():
        cells = [percent(one["reading"], seeds)]
        for way in ("last", "safe"):
            cells += ["", "", ""] if way not in one["drawing"] else _drawn(one["drawing"][way], seeds)
        rows.append([ARMS[name].label, *cells])
    real = found["reference"]
    cells = [f"{real['recognised']:.1%}", f"{real['frechet']:.3g}", f"{real['recall']:.2f}"]
    rows.append(["real scans", "", *cells, "", "", ""])
    start = f"from t = {found['safe_start']:g}" if "safe_start" in found else "from a safe t"
    return table(["arm", "read", "drawn, from t = 999", "Fréchet", "recall", start, "Fréchet", "recall"], rows)


def _drawn(way: Any, seeds: int) -> list[str]:
    return [percent(way["recognised"], seeds), number(way["frechet"], seeds), f"{way['recall']['mean']:.2f}"]


def question_families() -> str:
    """Table 4 in small: each family of questions about digits, by arm."""
    record = "table3-cpu"
    if not exists(record):
        return _missing(record)
    arms, seeds = results_of(record)["arms"], len(read_record(record)["config"]["seeds"])
    families = list(next(iter(arms.values()))["families"])
    rows = [[ARMS[name].label, *(percent(one["families"][f], seeds) for f in families)] for name, one in arms.items()]
    return table(["read", *families], rows)


def exists(record: str) -> bool:
    """Whether a record is committed."""
    return (RECORDS / f"{record}.json").exists()


def results_of(record: str) -> Any:
    """What a record found."""
    return read_record(record)["results"]


def _missing(record: str) -> str:
    name = record.removesuffix("-cpu")
    return f"{OPEN[0].upper()}{OPEN[1:]}: `python experiments/{name}.py --preset cpu --resume`."
