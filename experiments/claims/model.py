"""Claims about the model: its tables and figures in small."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from experiments.claims.numbers import ONE_SEED, Cells, number, one_seed, percent, whole


def table3(r: Cells) -> tuple[str, str]:
    """Discrete and transfusion-like models as in A.1: without EmbeddingViT."""
    arms, names = r["arms"], ("v_mixed", "eps_mixed", "vq_projector", "transfusion")
    read = ", ".join(percent(arms[n]["reading"]) for n in names)
    distance = {n: arms[n]["drawing"]["last"]["frechet"] for n in names}
    drawn = ", ".join(number(distance[n]) for n in names)
    text = f"v, ε, VQ, transfusion-like: read {read}; Fréchet distance {drawn}"
    v, eps = arms["v_mixed"]["reading"], arms["eps_mixed"]["reading"]
    eps_draws, codes_draw = distance["eps_mixed"], distance["vq_projector"]
    draws = all(distance["v_mixed"]["max"] < distance[n]["min"] for n in names[1:])
    reads = v["min"] > eps["max"] and arms["v_float32"]["reading"]["min"] > arms["eps_float32"]["reading"]["max"]
    if eps_draws["max"] < codes_draw["min"]:
        between = "; ε comes second"
    else:
        between = "; VQ comes second" if codes_draw["max"] < eps_draws["min"] else "; ε and VQ are not told apart"
    verdict = ("agrees: v draws best" if draws else "not told apart: v and others draw alike") + between
    return text, verdict + ("; v reads better than ε" if reads else "; v and ε are not told apart in reading")


CAPTIONED = ("colour", "shape", "size", "position")
"""What captions of scenes of one object say of it."""


def table3_scenes(r: Cells) -> tuple[str, str]:
    """The same on scenes, with the control of rounding: what epsilon draws in float32."""
    arms, names = r["arms"], ("v_mixed", "eps_mixed", "vq", "transfusion")
    reading = {n: arms[n]["reading"]["test"]["mean"] for n in names}
    distance = {n: arms[n]["drawing"]["last"]["frechet"] for n in names}
    exact = arms["eps_mixed"]["drawing"]["last_float32"]["frechet"]
    text = (
        f"v, ε, VQ with EmbeddingViT, transfusion-like: read {', '.join(percent(reading[n]) for n in names)}; "
        f"Fréchet distance {', '.join(number(distance[n]) for n in names)}; ε drawn in float32 {number(exact)}"
    )
    v_draws = all(distance["v_mixed"]["max"] < distance[n]["min"] for n in names[1:])
    verdict = "agrees in the distance: v draws closest" if v_draws else "v does not draw closest"
    drawn, codes = (arms[n]["drawing"]["last"] for n in ("v_mixed", "vq"))
    followed = [name for name in CAPTIONED if codes[name]["min"] > drawn[name]["max"]]
    if followed:
        verdict += f"; but codes follow the caption's {', '.join(followed)} better"
    alone = one_seed(reading["v_mixed"])
    if not alone:
        v, eps = reading["v_mixed"], reading["eps_mixed"]
        apart = v["min"] > eps["max"] or eps["min"] > v["max"]
        best = "ε" if eps["mean"] > v["mean"] else "v"
        verdict += f"; {best} reads better" if apart else f"; in reading {best} is ahead, not told apart"
    return text + alone, verdict + (f"; {ONE_SEED}" if alone else "")


def diffusion_reading(r: Cells) -> tuple[str, str]:
    """Transfusion's loss in reading: with and without the EmbeddingViT that MMAR has."""
    arms = r["arms"]
    names = ("v_mixed", "transfusion", "transfusion_vit", "vq_projector", "vq")
    v, bare, fair, codes, fair_codes = (arms[name]["reading"] for name in names)
    text = (
        f"MMAR reads {percent(v)}; transfusion-like {percent(bare)}, with EmbeddingViT {percent(fair)}; "
        f"VQ {percent(codes)}, with EmbeddingViT {percent(fair_codes)}"
    )
    lost = [v["mean"] - one["mean"] < (v["mean"] - without["mean"]) / 2 for one, without in ((fair, bare), (fair_codes, codes))]
    if all(lost):
        return text, "disagrees on digits: most of either is the missing EmbeddingViT"
    return text, "agrees" if not any(lost) else "disagrees for one of the two: most of it is the missing EmbeddingViT"


def diffusion_reading_scenes(r: Cells) -> tuple[str, str]:
    """With EmbeddingViT alone; without it there is no arm of codes."""
    arms = r["arms"]
    v, bare, fair, codes = (arms[n]["reading"]["test"]["mean"] for n in ("v_mixed", "transfusion", "transfusion_vit", "vq"))
    text = (
        f"MMAR reads {percent(v)}; transfusion-like {percent(bare)}, with EmbeddingViT {percent(fair)}; "
        f"VQ with EmbeddingViT {percent(codes)}"
    )
    worse = {name: one["max"] < v["min"] for name, one in (("codes", codes), ("diffusion", fair))}
    words = {True: "read worse with EmbeddingViT too", False: "not told apart from MMAR with EmbeddingViT"}
    return text, "; ".join(f"{name}: {words[found]}" for name, found in worse.items())


def codes(r: Cells) -> tuple[str, str]:
    """What a codebook costs an autoencoder of the same size."""
    kl, vq = r["kl"], r["vq"]
    text = f"digits after the autoencoder: {kl['psnr']:.1f} dB, with a codebook {vq['psnr']:.1f} dB; "
    text += f"{100 * kl['read']:.1f} % and {100 * vq['read']:.1f} % of them recognised"
    verdict = "agrees for the pixels; next to nothing is lost of what is asked here" if vq["psnr"] < kl["psnr"] else "disagrees"
    return text, verdict


def digits(r: Cells) -> tuple[str, str]:
    way = next(iter(r["drawing"].values()))
    identity = r["reading"]["identity"]
    right = identity["right"] / identity["asked"]
    verdict = "agrees, in small" if min(right, way["recognised"]) > 0.9 else "does not, in small"
    text = f"digits: {100 * right:.1f} % named, {100 * way['recognised']:.1f} % of drawn ones recognised (one seed)"
    return text, verdict


def scenes(r: Cells) -> tuple[str, str]:
    *_, way = r["drawing"]["test"].values()
    parts = {"position": "of places", "colour": "of colours", "shape": "of shapes", "exact": "exactly"}
    drawn = ", ".join(f"{100 * way[name]:.0f} % {words}" for name, words in parts.items())
    read = {split: f"{100 * r['reading'][split]['mean']:.0f} %" for split in ("test", "held_out")}
    text = f"scenes: {read['test']} of questions right, {read['held_out']} on pairs never met; "
    text += f"drawn, guided by 2: {drawn} (one seed)"
    verdict = "reads well; draws well" if way["exact"] > 0.5 else "reads well; does not draw shapes well"
    return text, f"{verdict}; it starts from parts that learnt from labels, which the paper's does not"


_JOINT = {
    "v_mixed": "MMAR",
    "chameleon": "causal codes (Chameleon-like)",
    "vq": "VQ with EmbeddingViT (Show-o-like)",
    "transfusion": "transfusion-like",
}


def families(r: Cells) -> tuple[str, str]:
    arms = {name: r["arms"][name]["reading"] for name in _JOINT}
    text = "read: " + "; ".join(f"{label} {whole(arms[name]['mean'])}" for name, label in _JOINT.items())
    best, second = sorted(arms, key=lambda n: -arms[n]["mean"])[:2]
    alone, near = one_seed(arms[best]), arms[best]["mean"] - arms[second]["mean"] < 0.01
    verdict = "agrees" if best == "v_mixed" else f"disagrees: {_JOINT[best]} reads best here"
    if near:
        verdict = f"not told apart from {_JOINT[second]}; better than the others, of which transfusion-like has no EmbeddingViT"
    return text + alone, verdict + (f"; {ONE_SEED}" if alone else "")


def scaling(r: Cells) -> tuple[str, str]:
    """At one learning rate, and at rates that fall with the width."""
    sizes = r["sizes"]
    plain = [name for name in sizes if " x" not in name]
    rated = [next((n for n in sizes if n.startswith(f"{name} x")), name) for name in plain]

    def told(names: list[str]) -> str:
        read = ", ".join(whole(sizes[name]["reading"]["mean"]) for name in names)
        return f"read {read}; Fréchet {', '.join(number(sizes[name]['drawing']['last']['frechet']) for name in names)}"

    text = (
        f"three sizes, the smallest first: {told(plain)} at one learning rate; {told(rated)} at rates that fall with the width"
    )
    grows = [_grows(sizes, names) for names in (plain, rated)]
    if all(grows):
        verdict = "agrees"
    elif grows[1]:
        verdict = "cannot be told: only with those rates does the largest read best, and drawing hardly differs"
    else:
        verdict = "not seen at this scale"
    alone = one_seed(sizes[plain[0]]["reading"])
    return text + alone, verdict + (f"; {ONE_SEED}" if alone else "")


def _grows(sizes: Cells, names: Sequence[str]) -> bool:
    read = [sizes[name]["reading"]["mean"] for name in names]
    return read == sorted(read)


def guidance(r: Cells) -> tuple[str, str]:
    """Does more guidance help from 1 to 10?"""
    scales = r["config"]["scales"]
    curve = r["curves"][max(r["curves"], key=int)]["frechet"]
    best = min(range(len(scales)), key=lambda i: curve[i]["mean"])
    alone = one_seed(curve[0])
    text = "Fréchet distance " + ", ".join(f"{curve[i]['mean']:.3g} at {scales[i]:g}" for i in (0, best, len(scales) - 1))
    falls = all(a["mean"] >= b["mean"] for a, b in pairwise(curve))
    verdict = "agrees" if falls else "disagrees on digits: a scale beyond the best one draws worse"
    return text + alone, verdict


def longer(r: Cells) -> tuple[str, str]:
    """Is a longer stage 1 better at every scale?"""
    short, long = (r["curves"][length]["frechet"] for length in sorted(r["curves"], key=int))
    better = sum(b["mean"] < a["mean"] for a, b in zip(short, long, strict=True))
    alone = one_seed(short[0])
    text = f"better at {better} of {len(short)} scales; at the best, {_best(long)} for {_best(short)}"
    verdict = "agrees" if better == len(short) else "disagrees" if better <= len(short) / 2 else "agrees at most scales"
    return text + alone, verdict + (f"; {ONE_SEED}" if alone else "")


def _best(curve: Sequence[Cells]) -> str:
    return f"{min(cell['mean'] for cell in curve):.3g}"


def steps(r: Cells) -> tuple[str, str]:
    """Through both stages, after tuning: at the first checkpoint, at the end of each stage."""
    tuned = [cell["mean"] for cell in r["tuned"]]
    turn = next(i for i, point in enumerate(r["points"]) if point["stage"] == "stage2") - 1
    first, middle, last = tuned[0], tuned[turn], tuned[-1]
    text = f"after tuning {whole(first)} at first, {whole(middle)} after stage 1, {whole(last)} after both"
    grows = first < middle < last
    steady = all(a < b for a, b in pairwise(tuned))
    verdict = "agrees" if steady else "agrees in sign, but levels off and is not monotone" if grows else "disagrees"
    verdict += "; more steps here are the same scans again, not more data"
    alone = one_seed(r["tuned"][0])
    return text + alone, verdict + (f"; {ONE_SEED}" if alone else "")


def holes(r: Cells) -> tuple[str, str]:
    before, after = r["holes"]["stage1_only"], r["holes"]["v_mixed"]
    text = f"holes in {100 * before['mean']:.1f} % of patches after stage 1 alone, {100 * after['mean']:.1f} % after both"
    if before["min"] == before["max"]:
        return f"{text} (one seed)", f"not seen here, where data are few enough to repeat; {ONE_SEED}"
    return text, "agrees" if after["max"] < before["min"] else "disagrees"


def noise(r: Cells) -> tuple[str, str]:
    """The paper finds most tasks at their best at some noise, and localization the better the more of it there is."""
    levels, last = r["arms"]["transfusion"], "500"  # trained below; 750 lies beyond
    mean = {t: levels[t]["mean"]["mean"] for t in levels}
    best = [max(levels, key=lambda t: levels[t][family]["mean"]) for family in levels["0"] if family != "mean"]
    noisy = sum(t != "0" for t in best)
    text = f"transfusion-like {whole(mean['0'])} at t = 0, {whole(mean[last])} at t = {last}; "
    text += f"{noisy} of {len(best)} families are best at some noise"
    verdict = "agrees" if noisy > len(best) / 2 else "not seen here: reading is best at t = 0 and falls"
    verdict += "; digits have no localization to test"
    return text, verdict


def speed(r: Cells) -> tuple[str, str]:
    best = r["ways"][r["best"]]
    text = f"{best['fewer_calls']:.0f} times fewer calls of the head, {best['faster']:.1f} times faster, within the spread"
    ours, theirs = best["recall"], r["ways"]["paper"]["recall"]
    lower = [sum(a) < sum(b) for a, b in zip(ours["each"], theirs["each"], strict=True)]
    recall = f"recall {ours['mean']:.2f} against {theirs['mean']:.2f}, lower in {sum(lower)} of {len(lower)} models"
    return f"{text} ({r['best']}; {recall})", "here a limit of the recipe; images of 256 tokens were not measured"


def positions(r: Cells) -> tuple[str, str]:
    """The ablation of the shared RoPE position."""
    shared, own = (r["arms"][name] for name in ("v_mixed", "sequential"))
    distances = [one["drawing"]["last"]["frechet"] for one in (shared, own)]
    text = f"shared, a position each: read {percent(shared['reading'])}, {percent(own['reading'])}; "
    text += f"Fréchet distance {', '.join(number(cell) for cell in distances)}{one_seed(shared['reading'])}"
    alike = (
        abs(shared["reading"]["mean"] - own["reading"]["mean"]) < 0.01 and abs(distances[0]["mean"] - distances[1]["mean"]) < 1
    )
    return text, "no difference shows" if alike else f"a difference shows; {ONE_SEED}"
