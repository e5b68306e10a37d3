"""Errors say which argument, the rule, the value and what to do; and they survive being sent to another process."""

from __future__ import annotations

import ast
import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import diffparam
from diffparam import (
    EPSILON,
    SCORE,
    VE,
    X0,
    AngularParam,
    NonFiniteError,
    Schedule,
    SingularParameterization,
    StateSpace,
    UnknownName,
    V,
    convert,
    ddim_sample,
    ddim_step,
    guide,
    loss_weight,
    parse_parameterization,
)
from diffparam.angle import HALF_PI

Z = torch.zeros(3, 4)
NAN = torch.full((3, 4), math.nan)


# One row per rule: the call, the exception, and the parts of its message: argument, rule, value, remedy.
RULES = {
    "phi out of range": (
        lambda: V.target(Z, Z, 1.7),
        ValueError,
        ("phi", "must lie in [0, pi/2] radians", "1.7", "Schedule.phi"),
    ),
    "phi_t out of range": (
        lambda: ddim_step(Z, Z, -0.1, 0.3, param=V),
        ValueError,
        ("phi_t", "must lie in [0, pi/2] radians", "-0.1", "Schedule.phi"),
    ),
    "phi_s out of range": (
        lambda: ddim_step(Z, Z, 0.3, 2.0, param=V),
        ValueError,
        ("phi_s", "must lie in [0, pi/2] radians", "2.0", "Schedule.phi"),
    ),
    "phi in degrees, in an array": (
        lambda: V.condition_number(np.array([0.1, 45.0])),
        ValueError,
        ("phi", "must lie in [0, pi/2] radians", "45.0", "Schedule.phi"),
    ),
    "phi in degrees, in a tensor": (
        lambda: V.condition_number(torch.tensor([0.1, 45.0], dtype=torch.float64)),
        ValueError,
        ("phi", "must lie in [0, pi/2] radians", "45.0", "Schedule.phi"),
    ),
    "phi not a number": (
        lambda: V.target(Z, Z, math.nan),
        NonFiniteError,
        ("phi", "must be finite", "nan", "Schedule.phi"),
    ),
    "phi in float32": (
        lambda: V.target(Z, Z, torch.tensor([0.1, 0.2, 0.3])),
        TypeError,
        ("phi", "must be float64", "torch.float32", "Schedule.phi"),
    ),
    "phi in a float32 array": (
        lambda: V.target(Z, Z, np.array([0.1, 0.2, 0.3], dtype=np.float32)),
        TypeError,
        ("phi", "must be float64", "float32", "Schedule.phi"),
    ),
    "phi of a foreign type": (
        lambda: V.target(Z, Z, "0.1"),
        TypeError,
        ("phi", "must be a float, a numpy float64 array or a torch float64 tensor", "str", ""),
    ),
    "phi for another batch": (
        lambda: V.target(Z, Z, torch.tensor([0.1, 0.2], dtype=torch.float64)),
        ValueError,
        ("angle", "must have one value per batch item (3)", "got 2", "as shape (1, ..., 2)"),
    ),
    "phi of another shape": (
        lambda: V.target(Z, Z, torch.full((3, 2), 0.1, dtype=torch.float64)),
        ValueError,
        ("an angle of shape (3, 2)", "must broadcast to the sample's shape", "(3, 4)", ""),
    ),
    "samples of two shapes": (
        lambda: convert(Z, Z[:2], 0.3, source=V, target=X0),
        ValueError,
        ("u and x_t", "must have the same shape", "(3, 4) and (2, 4)", "never broadcast"),
    ),
    "whole-number samples": (
        lambda: guide(Z.long(), Z.long(), 2.0),
        TypeError,
        ("u_uncond", "must have a floating-point dtype", "torch.int64", ".float()"),
    ),
    "samples that are lists": (
        lambda: guide(Z, [0.0], 2.0),
        TypeError,
        ("u_cond", "must be a torch tensor", "list", ""),
    ),
    "nan in a step": (
        lambda: ddim_step(NAN, Z, 0.8, 0.3, param=V),
        NonFiniteError,
        ("the sample at phi_s", "must be finite", "12 of its 12 values", "look for it in u and x_t"),
    ),
    "nan at the start": (
        lambda: ddim_sample(lambda x, t: x, NAN, Schedule.linear(10), param=V),
        NonFiniteError,
        ("x_init", "must be finite", "12 of its 12 values", "torch.randn"),
    ),
    "a singular conversion": (
        lambda: convert(Z, Z, HALF_PI, source=EPSILON, target=V),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "'epsilon' is singular at phi = 1.570796", "Use V, FLOW or X0"),
    ),
    "a singular conversion at the clean end": (
        lambda: convert(Z, Z, 0.0, source=X0, target=V),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "'sample' is singular at phi = 0.0", "Use V, FLOW or EPSILON"),
    ),
    "a singular conversion in between": (
        lambda: convert(Z, Z, 0.5, source=AngularParam(0.5, name="mine"), target=V),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "'mine' is singular at phi = 0.5", "Use V"),
    ),
    "an infinite scale": (
        lambda: SCORE.target(Z, Z, 0.0),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "'score' is singular at phi = 0.0", "Use V"),
    ),
    "an infinite weight": (
        lambda: loss_weight(HALF_PI, source=EPSILON, target=V),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "'epsilon'", "Use V"),
    ),
    "a singular sampler": (
        lambda: ddim_sample(lambda x, t: x, Z, Schedule.linear(10).rescale_zero_terminal_snr(), param=EPSILON),
        SingularParameterization,
        ("sin(psi - phi)", "must not vanish", "timestep 9 (phi = 1.5707963267948966 rad)", "start at a smaller timestep"),
    ),
    "eta upwards": (
        lambda: ddim_step(Z, Z, 0.3, 0.8, param=V, eta=0.5),
        ValueError,
        ("eta", "must be 0 for a step upwards", "0.5", "inversion is deterministic"),
    ),
    "a negative eta": (
        lambda: ddim_step(Z, Z, 0.8, 0.3, param=V, eta=-1.0),
        ValueError,
        ("eta", "must lie in [0, inf)", "-1.0", ""),
    ),
    "too large an eta": (
        lambda: ddim_step(Z, Z, 0.8, 0.3, param=V, eta=9.0),
        ValueError,
        ("eta", "must leave a variance of at least 0 at phi_s", "9.0", "any eta up to 1 does"),
    ),
    "eta from the clean end": (
        lambda: ddim_step(Z, Z, 0.0, 0.0, param=V, eta=1.0),
        ValueError,
        ("phi_t", "must be above 0 where eta is not 0", "eta = 1.0", "nothing is left to denoise"),
    ),
    "sigma-space at pure noise": (
        lambda: VE.scale(HALF_PI),
        ValueError,
        ("phi", "must be below pi/2 in sigma-space", "got pi/2", "StateSpace('vp')"),
    ),
    "psi not a number": (lambda: AngularParam("0.3"), TypeError, ("psi", "must be a number", "str ('0.3')", "")),
    "psi infinite": (lambda: AngularParam(math.inf), NonFiniteError, ("psi", "must be finite", "inf", "")),
    "r zero": (lambda: AngularParam(0.3, 0.0), ValueError, ("r", "must lie in (0, inf)", "0.0", "")),
    "r negative": (
        lambda: AngularParam(0.3, lambda phi: -1.0, name="mine").target(Z, Z, 0.2),
        ValueError,
        ("r(phi) of 'mine'", "must be positive", "-1.0 at phi = 0.2", "a sign belongs in psi (add pi)"),
    ),
    "no coefficients": (
        lambda: AngularParam.from_coefficients(0, 0),
        ValueError,
        ("a and b", "must not both be zero", "a = 0 and b = 0", "no information"),
    ),
    "no network": (
        lambda: AngularParam.from_preconditioning(1.0, 0),
        ValueError,
        ("c_out", "must not be zero", "got 0", "ignore its network"),
    ),
    "no data": (lambda: AngularParam.edm(0.0), ValueError, ("sigma_data", "must lie in (0, inf)", "0.0", "")),
    "omega infinite": (lambda: guide(Z, Z, math.inf), NonFiniteError, ("omega", "must be finite", "inf", "")),
    "an unknown state": (lambda: StateSpace("vpp"), UnknownName, ("kind", "must be one of vp, ve, flow", "'vpp'", "mean 'vp'")),
    "an unknown name": (
        lambda: parse_parameterization("epsilonn"),
        UnknownName,
        ("name", "must be one of epsilon, eps", "'epsilonn'", "Did you mean 'epsilon'?"),
    ),
    "an ambiguous name": (
        lambda: parse_parameterization("velocity"),
        UnknownName,
        ("name", "must be one of", "'velocity'", "(-FLOW)"),
    ),
    "an unknown spacing": (
        lambda: Schedule.linear(10).respace(5, "trailling"),
        UnknownName,
        ("spacing", "must be one of leading, linspace, trailing, fractional", "'trailling'", "Did you mean 'trailing'?"),
    ),
    "timesteps out of order": (
        lambda: Schedule.from_angles([0.2, 0.1]),
        ValueError,
        ("phi", "must rise strictly", "0.2 then 0.1 at position 0", "noise grows with the timestep"),
    ),
    "a foreign timestep": (
        lambda: Schedule.linear(10).add_noise(Z, Z, 10),
        ValueError,
        ("t", "must be a timestep of this schedule (0 .. 9, 10 of them)", "got 10", "Schedule.timesteps"),
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_a_message_names_argument_rule_value_and_remedy(case):
    call, error, parts = RULES[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message, at = str(caught.value), 0
    for part in parts[:3]:
        assert part in message[at:], f"{part!r} is not in {message!r} after {message[:at]!r}"
        at = message.index(part, at) + (len(part) if part != parts[0] else 0)
    assert parts[3] in message  # the remedy; an empty one where the rule is the remedy


def test_every_raise_of_the_package_states_a_rule():
    """A message without the word must is a complaint, not a rule. Read from the source, so that new ones are held to it."""
    package = Path(diffparam.__file__).parent
    stated = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)):
                continue
            if node.exc.func.id in ("UnknownName", "SingularParameterization"):
                continue  # these two word their rule themselves
            if node.exc.func.id in ("BadInput", "NotARescaling", "ImportError"):
                assert path.parent.name in ("report", "integrations"), f"{path.name}:{node.lineno}"
                continue  # a file, the mathematics or an extra is at fault, not an argument: tests/test_cli.py reads these
            assert node.exc.func.id in ("ValueError", "TypeError", "NonFiniteError"), f"{path.name}:{node.lineno}"
            text = "".join(c.value for c in ast.walk(node.exc) if isinstance(c, ast.Constant) and isinstance(c.value, str))
            assert " must " in text, f"{path.name}:{node.lineno} states no rule: {text!r}"
            stated += 1
    assert stated > 40  # the walk found them


def test_no_assert_guards_the_package():
    """Python -O removes them."""
    for path in Path(diffparam.__file__).parent.rglob("*.py"):
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)], path.name


# -- the exceptions themselves ----------------------------------------------------------------------------------------

EXCEPTIONS = [
    SingularParameterization("epsilon", HALF_PI),
    SingularParameterization("sample", 0.0, timestep=0),
    SingularParameterization("mine", 0.4, timestep=0.25),
    UnknownName("name", "epsilonn", ("epsilon", "sample")),
    UnknownName("name", "velocity", ("epsilon", "flow"), "It is ambiguous."),
    NonFiniteError("u must be finite, got nan"),
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_exceptions_survive_the_way_to_another_process(error, through):
    twin = through(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_exceptions_are_caught_as_what_they_are():
    for error, base in (
        (SingularParameterization, ValueError),
        (UnknownName, ValueError),
        (NonFiniteError, FloatingPointError),
    ):
        assert issubclass(error, base)


def test_a_singularity_carries_its_place():
    error = SingularParameterization("epsilon", 1.5, timestep=980)
    assert (error.param, error.phi, error.timestep) == ("epsilon", 1.5, 980)
    assert "timestep 980 (phi = 1.5 rad)" in str(error)
    assert SingularParameterization("epsilon", 1.5).timestep is None


@pytest.mark.parametrize("name", ["", "qqqq", 7, None])
def test_a_name_like_nothing_known_gets_no_suggestion(name):
    error = UnknownName("name", name, ("epsilon", "flow"))
    assert str(error) == f"name must be one of epsilon, flow; got {name!r}."
