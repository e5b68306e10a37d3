"""Files in another parameterization: what may be folded into a layer, what needs x_t, and that nothing else is touched."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import strategies as shared
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    VE,
    X0,
    AngularParam,
    NonFiniteError,
    Schedule,
    SingularParameterization,
    V,
    convert,
    parse_parameterization,
    round_to,
)
from diffparam.conversion import conversion_gains
from diffparam.report import BadInput, NotARescaling, constant_factor, convert_layer, convert_tensors
from diffparam.report.cli import main

safetensors = pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402

EDM, TWICE = AngularParam.edm, AngularParam.from_coefficients(0.0, 2.0, name="twice the noise")
THIRD = AngularParam.from_coefficients(1.0, -1.0, name="x - eps")


# -- which conversions are a rescaling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [
        (-EDM(1.0), V, 1.0),
        (EDM(1.0), V, -1.0),
        (V, EDM(1.0), -1.0),
        (FLOW, -FLOW, -1.0),
        (FLOW, THIRD, -1.0),
        (-V, V, -1.0),
        (EDM(0.5), parse_parameterization("trigflow", sigma_data=0.5), -1.0),
        (EPSILON, TWICE, 2.0),
        (TWICE, EPSILON, 0.5),
        (SCORE, -SCORE, -1.0),
        (AngularParam.from_preconditioning(0.0, 4.0), X0, 4.0),
        (EPSILON, AngularParam.from_coefficients(0.0, math.sqrt(2.0)), math.sqrt(2.0)),
    ],
)
def test_these_are_one_number(source: AngularParam, target: AngularParam, factor: float) -> None:
    assert constant_factor(source, target) == factor  # to the last digit: angles that round would make 0.99999


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (EPSILON, V, "needs x_t with gain"),
        (V, FLOW, "needs x_t with gain"),
        (EDM(0.5), V, "needs x_t with gain"),
        (EDM(0.5), EDM(1.0), "needs x_t with gain"),
        (X0, EPSILON, "needs x_t with gain"),
        (EPSILON, SCORE, r"gain on u runs from -.* over phi"),
        (SCORE, EPSILON, r"gain on u runs from -1 to -.* over phi"),
        (V, AngularParam.from_coefficients(lambda p: -p.sin() if hasattr(p, "numpy") else -math.sin(1.0), 1.0), "x_t"),
    ],
)
def test_these_are_refused_with_the_gain_in_the_way(source: AngularParam, target: AngularParam, reason: str) -> None:
    with pytest.raises(NotARescaling, match=reason):
        constant_factor(source, target)


@given(shared.params(), shared.params(), st.booleans(), shared.inner_phis(), st.integers(0, 2**31))
def test_the_verdict_is_that_of_the_conversion_itself(
    source: AngularParam, target: AngularParam, same: bool, phi: float, seed: int
) -> None:
    """A number: convert() multiplies by it at any state and angle. None: at some angle it does not multiply by one number."""
    target = AngularParam(source.psi, source.r) if same else target
    assume(shared.is_regular(source, phi, floor=1e-3))
    assume(shared.is_regular(target, phi, floor=0.0))
    u, x_t = shared.samples(seed, 5)
    try:
        factor = constant_factor(source, target)
    except NotARescaling:
        assert not same
        angles = [0.05 + 0.01 * i for i in range(145)]
        angles = [p for p in angles if shared.is_regular(source, p, floor=1e-3)]
        gains = [conversion_gains(p, source=source, target=target) for p in angles]
        moves = max(abs(g_x) for _, g_x in gains) / max(abs(g_u) for g_u, _ in gains)
        runs = max(g_u for g_u, _ in gains) - min(g_u for g_u, _ in gains)
        assert moves > 0 or runs > 0
    else:
        converted = convert(u, x_t, phi, source=source, target=target)
        # Each gain is right to a few units in the last place of 1 / sin(psi - phi).
        kappa = source.condition_number(phi)
        bound = shared.rounding_bound(256 * kappa, factor * u, source.r_at(phi) * abs(factor) * x_t)
        shared.assert_within(converted, factor * u, bound)


# -- a checkpoint's layer ---------------------------------------------------------------------------------------------


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 4)).to(dtype)


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("source", "target"), [(EDM(1.0), V), (FLOW, THIRD), (EPSILON, TWICE)])
def test_the_network_says_the_same_in_the_other_parameterization(
    tmp_path: Path, source: AngularParam, target: AngularParam, dtype: torch.dtype
) -> None:
    """A sign or a power of two rounds nothing: the new network's output is the converted output, bit for bit."""
    old, new = network(dtype), network(dtype)
    path = saved(tmp_path / "old.safetensors", old.state_dict(), {"format": "pt", "note": "kept"})
    done = convert_layer(path, tmp_path / "new.safetensors", layer="2", source=source, target=target)
    assert done.exact
    assert done.tensors == ("2.weight", "2.bias")
    new.load_state_dict(load_file(done.path))
    x = torch.randn(7, 6, dtype=torch.float64).to(dtype)
    assert torch.equal(new(x), done.factor * old(x))
    for name, value in old.state_dict().items():
        if name not in done.tensors:
            assert torch.equal(load_file(done.path)[name], value)
    with safetensors.safe_open(done.path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_another_factor_rounds_once(tmp_path: Path) -> None:
    """Weights in bf16 times sqrt 2: the nearest bf16 of the exact product (a cast from float64 goes through float32)."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    path = saved(tmp_path / "a.safetensors", {"out.weight": weight})
    target = AngularParam.from_coefficients(0.0, math.sqrt(2.0))
    done = convert_layer(path, tmp_path / "b.safetensors", layer="out", source=EPSILON, target=target)
    assert not done.exact
    assert done.tensors == ("out.weight",)
    exact = round_to(weight.double() * math.sqrt(2.0), "bfloat16")
    assert torch.equal(load_file(done.path)["out.weight"].double(), exact)


def test_rows_leave_the_other_channels_alone(tmp_path: Path) -> None:
    tensors = {"out.weight": torch.randn(8, 3, 3, 3), "out.bias": torch.randn(8)}
    path = saved(tmp_path / "a.safetensors", tensors)
    done = convert_layer(path, tmp_path / "b.safetensors", layer="out", source=FLOW, target=-FLOW, rows=(0, 4))
    for name, value in load_file(done.path).items():
        assert torch.equal(value[:4], -tensors[name][:4])
        assert torch.equal(value[4:], tensors[name][4:])


def test_fp8_weights_change_sign_exactly(tmp_path: Path) -> None:
    weight = torch.randn(16, 16).to(torch.float8_e4m3fn)
    path = saved(tmp_path / "a.safetensors", {"out.weight": weight})
    done = convert_layer(path, tmp_path / "b.safetensors", layer="out", source=FLOW, target=-FLOW)
    assert done.exact
    assert torch.equal(load_file(done.path)["out.weight"].float(), -weight.float())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "0.out"}, "layer must be one of 0, 2"),
        ({"rows": (0, 5)}, "rows must be START:STOP within 0:4"),
        ({"rows": (2, 2)}, "rows must be START:STOP"),
        ({"out": "a.safetensors"}, "out must not be the input itself"),
        ({"out": "there.safetensors"}, "out must not exist"),
        ({"out": "b.bin"}, r"out must end in \.safetensors"),
        ({"out": "no/folder/b.safetensors"}, "out must be a file that can be written"),
        ({"path": "none.safetensors"}, "is no regular file"),
        ({"path": "pickle.safetensors"}, "pickles .* run code"),
        ({"path": "short.safetensors"}, "cannot be read"),
        ({"path": "noise.safetensors"}, "cannot be read"),
        ({"path": "whole.safetensors"}, "must be a floating-point tensor"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    state = {name: value.contiguous() for name, value in network().state_dict().items()}
    path = saved(tmp_path / "a.safetensors", state)
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:-20])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 400)
    saved(tmp_path / "whole.safetensors", {"2.weight": torch.ones(4, 4, dtype=torch.int32)})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    arguments: dict[str, Any] = {"path": "a.safetensors", "out": "b.safetensors", "layer": "2", **options}
    with pytest.raises(BadInput, match=words):
        convert_layer(tmp_path / arguments.pop("path"), tmp_path / arguments.pop("out"), source=FLOW, target=-FLOW, **arguments)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


class Bomb:
    """A pickle that tells when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was read",))


def test_values_that_are_not_finite_do_not_pass(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"out.weight": torch.tensor([[math.nan, 1.0]])})
    with pytest.raises(NonFiniteError, match=r"out\.weight must be finite"):
        convert_layer(path, tmp_path / "b.safetensors", layer="out", source=FLOW, target=-FLOW)
    path = saved(tmp_path / "c.safetensors", {"out.weight": torch.tensor([[60000.0, 1.0]]).half()})
    with pytest.raises(NonFiniteError, match="too small"):
        convert_layer(path, tmp_path / "b.safetensors", layer="out", source=EPSILON, target=TWICE)
    assert not (tmp_path / "b.safetensors").exists()


def test_overwriting_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"out.weight": torch.ones(2, 2)})
    out = tmp_path / "b.safetensors"
    out.write_bytes(b"old")
    convert_layer(path, out, layer="out", source=FLOW, target=-FLOW, overwrite=True)
    assert torch.equal(load_file(out)["out.weight"], -torch.ones(2, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


# -- stored outputs ---------------------------------------------------------------------------------------------------


def pair(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    u, x_t = shared.samples(8, 3, 4, 5, dtype=dtype)
    return {"u": u, "x_t": x_t}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_are_converted_as_the_library_does(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = pair(dtype)
    path = saved(tmp_path / "a.safetensors", {**tensors, "mask": torch.arange(4)}, {"who": "me"})
    done = convert_tensors(path, tmp_path / "b.safetensors", source=EPSILON, target=V, phi=1.1)
    exact = convert(tensors["u"].double(), tensors["x_t"].double(), 1.1, source=EPSILON, target=V)
    found = load_file(done.path)
    assert found["u"].dtype is dtype
    expected = exact if dtype is torch.float64 else round_to(exact, dtype).to(dtype)
    assert torch.equal(found["u"], expected)
    assert torch.equal(found["x_t"], tensors["x_t"])
    assert torch.equal(found["mask"], torch.arange(4))
    with safetensors.safe_open(done.path, framework="pt") as file:
        assert file.metadata() == {"who": "me"}


def test_angles_may_be_in_the_file_one_per_item(tmp_path: Path) -> None:
    tensors = pair(torch.float64)
    phi = torch.tensor([0.2, 0.9, 1.5], dtype=torch.float64)
    path = saved(tmp_path / "a.safetensors", {**tensors, "phi": phi})
    convert_tensors(path, tmp_path / "b.safetensors", source=V, target=X0)
    found = load_file(tmp_path / "b.safetensors")["u"]
    for i in range(3):
        expected = convert(tensors["u"][i], tensors["x_t"][i], float(phi[i]), source=V, target=X0)
        torch.testing.assert_close(found[i], expected, rtol=1e-14, atol=1e-14)


def test_timesteps_mean_the_angles_of_a_schedule(tmp_path: Path) -> None:
    schedule, tensors = Schedule.cosine(), pair(torch.float64)
    path = saved(tmp_path / "a.safetensors", tensors)
    done = convert_tensors(path, tmp_path / "b.safetensors", source=V, target=EPSILON, timestep=400, schedule=schedule)
    phi = float(schedule.phi[400])
    expected = convert(tensors["u"], tensors["x_t"], phi, source=V, target=EPSILON)
    assert torch.equal(load_file(done.path)["u"], expected)
    path = saved(tmp_path / "c.safetensors", {**tensors, "timestep": torch.tensor([400, 400, 400])})
    done = convert_tensors(path, tmp_path / "d.safetensors", source=V, target=EPSILON, schedule=schedule)
    torch.testing.assert_close(load_file(done.path)["u"], expected, rtol=1e-14, atol=1e-14)


def test_samples_in_sigma_space_are_scaled(tmp_path: Path) -> None:
    phi, tensors = 1.2, pair(torch.float64)
    stored = {"u": tensors["u"], "x_t": tensors["x_t"] / math.cos(phi)}
    path = saved(tmp_path / "a.safetensors", stored)
    done = convert_tensors(path, tmp_path / "b.safetensors", source=EPSILON, target=V, phi=phi, state=VE)
    expected = convert(tensors["u"], tensors["x_t"], phi, source=EPSILON, target=V)
    torch.testing.assert_close(load_file(done.path)["u"], expected, rtol=1e-14, atol=1e-14)
    done = convert_tensors(path, done.path, source=EPSILON, target=V, phi=phi, overwrite=True)
    assert (load_file(done.path)["u"] - expected).abs().max() > 0.1  # control: without the scale it is another result


def test_there_and_back_is_the_start(tmp_path: Path) -> None:
    tensors = pair(torch.float64)
    a = saved(tmp_path / "a.safetensors", tensors)
    b = convert_tensors(a, tmp_path / "b.safetensors", source=FLOW, target=EDM(0.5), phi=0.7).path
    c = convert_tensors(b, tmp_path / "c.safetensors", source=EDM(0.5), target=FLOW, phi=0.7).path
    torch.testing.assert_close(load_file(c)["u"], tensors["u"], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({"u": None}, {"phi": 1.0}, BadInput, "has no 'u'"),
        ({"x_t": None}, {"phi": 1.0}, BadInput, "has no 'x_t'"),
        ({"x_t": torch.ones(3, 4, 6)}, {"phi": 1.0}, ValueError, "same shape"),
        ({"u": torch.ones(3, 4, 5, dtype=torch.int64)}, {"phi": 1.0}, TypeError, "floating-point"),
        ({"u": torch.full((3, 4, 5), math.inf)}, {"phi": 1.0}, NonFiniteError, "u must be finite"),
        ({}, {}, BadInput, "exactly one of phi and timestep"),
        ({}, {"phi": 1.0, "timestep": 3}, BadInput, "exactly one of phi and timestep"),
        ({}, {"timestep": 3}, BadInput, "schedule must be given"),
        ({}, {"timestep": 3.5, "schedule": Schedule.cosine()}, ValueError, "t must be a timestep"),
        ({}, {"phi": 7.0}, ValueError, "phi must lie in"),
        ({"phi": torch.tensor([1.0, 1.0, 1.0])}, {}, TypeError, "phi must be float64"),
        ({}, {"phi": math.pi / 2}, SingularParameterization, "singular"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    tensors = {name: value for name, value in {**pair(), **change}.items() if value is not None}
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(error, match=words):
        convert_tensors(path, tmp_path / "b.safetensors", source=EPSILON, target=V, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# -- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_the_command_converts_a_layer_and_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.safetensors", {"out.weight": torch.ones(2, 2), "out.bias": torch.ones(2)})
    out = tmp_path / "b.safetensors"
    assert run(path, out, "--layer", "out", "--source", "edm", "--target", "v_prediction") == 0
    assert "out.weight, out.bias times -1.0: edm(1) -> v_prediction, exactly" in capsys.readouterr().out
    assert torch.equal(load_file(out)["out.bias"], -torch.ones(2))
    assert run(path, out, "--layer", "out", "--source", "flow", "--target=-flow", "--rows", "0:1", "--overwrite") == 0
    assert load_file(out)["out.bias"].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("source", "target"), [("epsilon", "v"), ("epsilon", "score"), ("flow", "v")])
def test_the_command_refuses_what_a_layer_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str
) -> None:
    path = saved(tmp_path / "a.safetensors", {"out.weight": torch.ones(2, 2)})
    assert run(path, tmp_path / "b.safetensors", "--layer", "out", "--source", source, "--target", target) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "no constant multiple" in told.err
    assert not (tmp_path / "b.safetensors").exists()


def test_the_command_converts_outputs(tmp_path: Path) -> None:
    tensors = pair(torch.float64)
    path, out = saved(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    assert run(path, out, "--source", "eps", "--target", "v", "--timestep", 400, "--schedule", "cosine") == 0
    phi = float(Schedule.cosine().phi[400])
    assert torch.equal(load_file(out)["u"], convert(tensors["u"], tensors["x_t"], phi, source=EPSILON, target=V))
    cosine = tmp_path / "scheduler_config.json"
    cosine.write_text('{"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}')
    again = tmp_path / "c.safetensors"
    assert run(path, again, "--source", "eps", "--target", "v", "--timestep", 400, "--scheduler", cosine) == 0
    assert torch.equal(load_file(again)["u"], load_file(out)["u"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--source", "epsilon"),
        ("--source", "velocity", "--target", "v", "--phi", "1"),
        ("--source", "epsilon", "--target", "v"),
        ("--source", "epsilon", "--target", "v", "--phi", "x"),
        ("--source", "epsilon", "--target", "v", "--phi", "nan"),
        ("--source", "epsilon", "--target", "v", "--phi", "1.5707963267948966"),
        ("--source", "epsilon", "--target", "v", "--rows", "0:1", "--phi", "1"),
        ("--source", "flow", "--target", "v", "--layer", "out", "--phi", "1"),
        ("--source", "flow", "--target=-flow", "--layer", "out", "--rows", "all"),
        ("--source", "epsilon", "--target", "v", "--timestep", "3", "--schedule", "cosine", "--scheduler", "DDIMScheduler"),
        ("--source", "epsilon", "--target", "v", "--phi", "1", "--state-space", "xyz"),
        ("--source", "edm", "--target", "v", "--sigma-data", "-1", "--phi", "1"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    path = saved(tmp_path / "a.safetensors", {**pair(), "out.weight": torch.ones(2, 2)})
    assert run(path, tmp_path / "b.safetensors", *arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("diffparam: ")
    assert not (tmp_path / "b.safetensors").exists()


def test_without_safetensors_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--source", "v", "--target", "eps", "--phi", "1") == 2
    assert "pip install 'diffparam[" in capsys.readouterr().err


def test_a_file_keeps_the_angles_of_its_conversion(tmp_path: Path) -> None:
    """Another angle by option would leave the old one beside the converted output, and the way back would be another."""
    tensors = {"u": torch.randn(4, 3), "x_t": torch.randn(4, 3), "phi": torch.full((4,), 0.3, dtype=torch.float64)}
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(BadInput, match="phi must be left out for a file that holds its own phi, got another value"):
        convert_tensors(path, tmp_path / "b.safetensors", source=V, target=EPSILON, phi=1.2)
    with pytest.raises(BadInput, match="timestep must be left out for a file that holds its own phi"):
        convert_tensors(path, tmp_path / "b.safetensors", source=V, target=EPSILON, timestep=3, schedule=Schedule.cosine())
    assert convert_tensors(path, tmp_path / "b.safetensors", source=V, target=EPSILON, phi=0.3).path.exists()
