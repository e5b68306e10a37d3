"""The racers: five outputs, two precisions, two loss weightings, and the data that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from diffparam import EPSILON, FLOW, X0, AngularParam, V
from experiments.head_study.arms import Arm, Precision
from experiments.tokens import TokenSet, digits

SIGMA_DATA = 0.5
"""Standard deviation that the scans are scaled to, EDM's. At 1 the best parameterization is v itself and the race has four."""
PARAMS = {"eps": EPSILON, "x": X0, "v": V, "flow": FLOW, "edm": AngularParam.edm(SIGMA_DATA)}
PRECISIONS: Mapping[str, Precision] = {"float32": "float32", "bf16": "mixed"}
WEIGHTINGS = ("own", "v")
"""Squared error of the output itself, or of the v that it implies, with a bound on the weight."""


def arm_name(param: str, weighting: str, precision: str) -> str:
    """Key of an arm; for v the two weightings are one."""
    return f"{param}_{'own' if param == 'v' else weighting}_{precision}"


def _arms() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for weighting in WEIGHTINGS:
        for key, param in PARAMS.items():
            for precision, how in PRECISIONS.items():
                name = arm_name(key, weighting, precision)
                weighted = "" if name.split("_")[1] == "own" else ", v-weighted"
                arms.setdefault(name, Arm(name, f"{key}{weighted}, {precision}", param, how, v_weighted=bool(weighted)))
    return arms


ARMS = _arms()


def scaled_digits() -> tuple[TokenSet, TokenSet]:
    """Training and held-out scans with the standard deviation :data:`SIGMA_DATA`."""
    train, held_out = (_scaled(part) for part in digits())
    return train, held_out


def _scaled(data: TokenSet) -> TokenSet:
    return replace(data, tokens=data.tokens * SIGMA_DATA, scale=data.scale / SIGMA_DATA)
