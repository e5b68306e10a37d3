"""The ecosystem's names for prediction types, read once, at the edge."""

from __future__ import annotations

from diffparam._checks import check_number
from diffparam.errors import UnknownName
from diffparam.parameterization import EPSILON, FLOW, SCORE, X0, AngularParam, V

_NAMED = {
    **dict.fromkeys(("epsilon", "eps", "noise", "pred_noise"), EPSILON),
    **dict.fromkeys(("sample", "x0", "x_0", "x_start", "pred_x0", "pred_x_start", "original_sample", "data"), X0),
    **dict.fromkeys(("v_prediction", "v", "pred_v", "v_pred"), V),
    **dict.fromkeys(("flow", "flow_prediction", "rectified_flow"), FLOW),
    "score": SCORE,
}
_WITH_SIGMA_DATA = ("edm", "trigflow", "optimal")


def parse_parameterization(name: str, *, sigma_data: float | None = None) -> AngularParam:
    """The :class:`AngularParam` behind a name as the field writes it (case, ``-`` and ``_`` do not matter).

    Args:
        name: epsilon, sample, v_prediction, flow, score, edm, trigflow, optimal, or an alias of one of them.
        sigma_data: Standard deviation of the data; needed by edm, trigflow and optimal and refused by the others.

    Raises:
        UnknownName: For any other name, with the nearest one, and for ``velocity``, which is ambiguous.
        ValueError: If ``sigma_data`` is missing or superfluous.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}; an AngularParam needs no parsing")
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    known = (*_NAMED, *_WITH_SIGMA_DATA)
    if key in ("velocity", "vel", "pred_velocity"):
        raise UnknownName(
            "name",
            name,
            known,
            "'velocity' is ambiguous: where time ends in noise it is eps - x ('flow'), where it ends in data x - eps (-FLOW).",
        )
    if key in _WITH_SIGMA_DATA:
        if sigma_data is None:
            raise ValueError(f"sigma_data must be given for {key!r}, got None; pass the standard deviation of the data")
        if key == "edm":
            return AngularParam.edm(sigma_data)
        if key == "optimal":
            return AngularParam.optimal(sigma_data)
        minus_f = -AngularParam.edm(sigma_data)
        return AngularParam(minus_f.psi, minus_f.r, name=f"trigflow({check_number(sigma_data, 'sigma_data'):g})")
    if key not in _NAMED:
        raise UnknownName("name", name, known)
    if sigma_data is not None:
        raise ValueError(f"sigma_data must be left out for {key!r}, got {sigma_data!r}; its angle does not depend on it")
    return _NAMED[key]
