"""The field's names, each checked against its definition rather than against the library's constant."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import inner_phis, sigma_datas

from diffparam import AngularParam, UnknownName, parse_parameterization

# name and aliases -> (a, b) of u = a x + b eps, from the papers that use them
DEFINITIONS = {
    ("epsilon", "eps", "noise", "pred_noise"): lambda c, s: (0.0, 1.0),
    ("sample", "x0", "x_0", "x_start", "pred_x0", "pred_x_start", "original_sample", "data"): lambda c, s: (1.0, 0.0),
    ("v_prediction", "v", "pred_v", "v_pred"): lambda c, s: (-s, c),
    ("flow", "flow_prediction", "rectified_flow"): lambda c, s: (-1.0, 1.0),
    ("score",): lambda c, s: (0.0, -1.0 / s),
}
ALIASES = [(alias, definition) for names, definition in DEFINITIONS.items() for alias in names]
TOLERANCE = 4e-15  # 1/sin(0.05) = 20 times the 1.2e-16 by which a double misses a multiple of pi/2


@pytest.mark.parametrize(("alias", "definition"), ALIASES, ids=[a for a, _ in ALIASES])
def test_an_alias_means_its_definition(alias, definition):
    param = parse_parameterization(alias)
    for phi in (0.05, 0.8, 1.52):
        assert param.coefficients(phi) == pytest.approx(definition(math.cos(phi), math.sin(phi)), abs=TOLERANCE)


@settings(max_examples=60)
@given(st.sampled_from([a for a, _ in ALIASES]), st.data())
def test_case_hyphens_and_blanks_do_not_matter(alias, data):
    spelling = "".join(data.draw(st.sampled_from([c.upper(), c] if c != "_" else ["_", "-", " "])) for c in alias)
    assert parse_parameterization(f" {spelling} ") is parse_parameterization(alias)


@settings(max_examples=60)
@given(sigma_datas, inner_phis())
def test_names_that_need_the_data(sigma_data, phi):
    # EDM's F in terms of sigma = tan(phi); trigflow is its negative; the optimum points the same way with unit length in L2.
    root = math.hypot(math.tan(phi), sigma_data)
    f = (math.tan(phi) / (sigma_data * root), -sigma_data / root)
    edm, trigflow, optimal = (parse_parameterization(n, sigma_data=sigma_data) for n in ("edm", "trigflow", "optimal"))
    assert edm.coefficients(phi) == pytest.approx(f, rel=1e-13)
    assert trigflow.coefficients(phi) == pytest.approx((-f[0], -f[1]), rel=1e-13)
    assert optimal.coefficients(phi) == pytest.approx((-f[0], -f[1]), rel=1e-13)
    assert edm == AngularParam.edm(sigma_data)
    assert [p.name for p in (edm, trigflow, optimal)] == [f"{n}({sigma_data:g})" for n in ("edm", "trigflow", "optimal")]


@pytest.mark.parametrize("name", ["edm", "EDM", "trigflow", "optimal"])
def test_sigma_data_is_asked_for(name):
    with pytest.raises(ValueError, match=f"sigma_data must be given for {name.lower()!r}, got None; pass the"):
        parse_parameterization(name)


@pytest.mark.parametrize("alias", [a for a, _ in ALIASES])
def test_sigma_data_is_refused_where_it_says_nothing(alias):
    with pytest.raises(ValueError, match=f"sigma_data must be left out for {alias!r}, got 0.5; its angle does not depend"):
        parse_parameterization(alias, sigma_data=0.5)


@pytest.mark.parametrize("name", ["velocity", "vel", "pred_velocity", "Velocity"])
def test_velocity_is_ambiguous(name):
    with pytest.raises(UnknownName) as caught:
        parse_parameterization(name)
    message = str(caught.value)
    for part in (repr(name), "ambiguous", "eps - x", "x - eps", "-FLOW"):
        assert part in message


TYPOS = {"epsilonn": "epsilon", "v_predictions": "v_prediction", "smaple": "sample", "flwo": "flow", "Scor": "score"}


@pytest.mark.parametrize(("typo", "nearest"), TYPOS.items())
def test_a_typo_gets_the_nearest_name(typo, nearest):
    with pytest.raises(UnknownName, match=f"name must be one of .*; got {typo!r}.* Did you mean {nearest!r}"):
        parse_parameterization(typo)


def test_what_is_like_nothing_gets_the_list_alone():
    with pytest.raises(UnknownName) as caught:
        parse_parameterization("qqq")
    assert "Did you mean" not in str(caught.value)
    assert set(caught.value.known) == {a for a, _ in ALIASES} | {"edm", "trigflow", "optimal"}
    assert all(name in str(caught.value) for name in caught.value.known)


@pytest.mark.parametrize("name", [None, 3, b"v", AngularParam(0.0)])
def test_only_strings_are_parsed(name):
    with pytest.raises(TypeError, match=f"name must be a string, got {type(name).__name__}; an AngularParam needs no parsing"):
        parse_parameterization(name)
