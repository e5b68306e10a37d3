"""The figures of paper_figures: each script writes its picture, and what is drawn is what the library says."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image

from diffparam import EPSILON, FLOW, SCORE, X0, AngularParam, Schedule, V, ddim_coefficients
from experiments.record import read_record
from paper_figures import (
    ablations,
    arm_rows,
    figure3a,
    figure4,
    image_order,
    kappa,
    sampler_precision,
    style,
    table1,
    table3_scenes,
)

SCRIPTS = Path(style.__file__).parent
DRAWN = {  # stem: size in inches of the default picture, None for what follows from the data
    "figure2": (style.COLUMN_WIDTH, 2.6),
    "figure3a": (style.TEXT_WIDTH, 5.4),
    "figure4": (style.TEXT_WIDTH, None),
    "kappa": (style.COLUMN_WIDTH, 4.9),
}
PARAMS = (EPSILON, X0, V, FLOW, SCORE, AngularParam.edm(0.5), AngularParam.optimal(0.5), -V)
ROUNDING = 64 * 2.0**-52  # a few dozen operations on numbers of order kappa, which stays below 10 here

angles = st.floats(0.15, math.pi / 2 - 0.15)  # 1/sin(0.15) < 7
params = st.sampled_from(PARAMS)


@pytest.mark.parametrize("stem", DRAWN)
def test_script_writes_its_picture(stem: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / f"{stem}.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / f"{stem}.png")
    width, height = DRAWN[stem]
    with Image.open(tmp_path / f"{stem}.png") as image:
        assert image.width == round(width * style.DPI)
        assert height is None or image.height == round(height * style.DPI)
        assert image.info["dpi"] == pytest.approx((style.DPI, style.DPI), rel=1e-3)  # PNG keeps whole dots per metre
        assert not {"Software", "Creation Time"} & set(image.info)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100  # not an empty page


@pytest.mark.parametrize("stem", DRAWN)
def test_picture_is_reproducible(stem: str, tmp_path: Path) -> None:
    main = importlib.import_module(f"paper_figures.{stem}").main
    for name in ("first", "second"):
        main(["--out", str(tmp_path / name)])
    assert (tmp_path / "first" / f"{stem}.png").read_bytes() == (tmp_path / "second" / f"{stem}.png").read_bytes()


def test_looks_differ_in_color_and_in_line_or_marker() -> None:
    looks = [style.look(p.name) for p in (EPSILON, X0, V, FLOW, SCORE, AngularParam.edm(0.5), AngularParam.optimal(0.5))]
    assert len({look.color for look in looks}) == len(looks)
    assert len({(str(look.linestyle), look.marker) for look in looks}) == len(looks)
    assert style.look("-v_prediction") == style.look("v_prediction")
    assert style.look("mine").label == "mine"


# -- figure 4 ---------------------------------------------------------------------------------------------------------


@given(param=params, phi_t=angles, phi_s=angles)
def test_step_lies_on_the_unit_circle_and_splits_along_u_and_x_t(param: AngularParam, phi_t: float, phi_s: float) -> None:
    step = figure4.step_geometry(param, phi_t, phi_s)
    for vector, angle in ((step.x_t, phi_t), (step.u, step.psi), (step.x_s, phi_s)):
        np.testing.assert_allclose(vector, (math.cos(angle), math.sin(angle)), atol=ROUNDING)
    np.testing.assert_allclose(step.along_u + step.along_x, step.x_s, atol=ROUNDING)  # eq. 16
    theta = step.psi - phi_t  # eq. 15, by the law of sines in the triangle OBA with OA = 1
    assert step.gain_u == pytest.approx(math.sin(phi_s - phi_t) / math.sin(theta), abs=ROUNDING)
    assert step.gain_x == pytest.approx(-math.sin(phi_s - step.psi) / math.sin(theta), abs=ROUNDING)
    coefficients = ddim_coefficients(phi_t, phi_s, param=param)  # on u, not on u/r
    assert coefficients.gain_u * param.r_at(phi_t) == pytest.approx(step.gain_u, abs=ROUNDING)
    assert coefficients.gain_x == pytest.approx(step.gain_x, abs=ROUNDING)


@given(param=params, phi_t=angles, phi_s=angles, delta=st.floats(0.0, 0.5))
def test_error_is_delta_times_the_part_along_u(param: AngularParam, phi_t: float, phi_s: float, delta: float) -> None:
    step = figure4.step_geometry(param, phi_t, phi_s, delta=delta)
    np.testing.assert_allclose(step.error, step.along_u * delta, atol=ROUNDING)
    np.testing.assert_allclose(step.x_off, step.x_s + step.error, atol=ROUNDING)  # eq. 17 is the step plus eq. 18
    assert np.hypot(*step.error) == pytest.approx(abs(math.sin(phi_s - phi_t)) * step.kappa * delta, abs=ROUNDING)


def test_v_leaves_the_smallest_error_of_the_two_panels() -> None:
    eps, v = (figure4.step_geometry(param) for param in (EPSILON, V))
    assert v.kappa == 1.0
    assert np.hypot(*eps.error) / np.hypot(*v.error) == pytest.approx(1 / math.cos(figure4.PHI_T), rel=1e-14)  # eq. 22, = 2


def test_drawn_vectors_are_the_computed_ones() -> None:
    steps = [figure4.step_geometry(param) for param in (EPSILON, V)]
    with style.applied():
        axes = figure4.draw(steps).axes
    assert len(axes) == 2
    for ax, step in zip(axes, steps, strict=True):
        tips = [text.xy for text in ax.texts if getattr(text, "arrow_patch", None) is not None and text.xyann == (0, 0)]
        np.testing.assert_array_equal(tips, [step.along_x, step.along_u, step.x_t, step.u, step.x_s])
        (segment,) = (line for line in ax.lines if line.get_gid() == "error")
        np.testing.assert_array_equal(segment.get_xydata(), [step.x_s, step.x_off])
        assert ax.get_aspect() == 1.0  # or the circle would not be one


def test_any_parameterization_has_its_own_picture(tmp_path: Path) -> None:
    figure4.main(["--param", "edm", "--sigma-data", "0.5", "--phi-t", "0.9", "--phi-s", "1.2", "--out", str(tmp_path)])
    with Image.open(tmp_path / "figure4-edm.png") as image:
        assert image.width == round(style.COLUMN_WIDTH * style.DPI)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--param", "velocity"], "ambiguous"),
        (["--param", "eps", "--phi-t", str(math.pi / 2)], "singular"),
        (["--phi-t", "60"], "radians"),
        (["--param", "edm"], "sigma_data must be given"),
    ],
)
def test_bad_options_end_with_the_remedy(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        figure4.main(options)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


# -- kappa ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cosine() -> Schedule:
    return Schedule.cosine(1000)


def closed_forms(phi: np.ndarray) -> dict[str, np.ndarray]:
    """1/|sin(psi - phi)| by hand; for EDM's F, psi = atan2(-s^2 cos, sin): hypot(sin, s^2 cos) / (sin^2 + s^2 cos^2)."""
    c, s, var = np.cos(phi), np.sin(phi), 0.5**2
    edm = np.hypot(s, var * c) / (s**2 + var * c**2)
    return {
        "epsilon": 1 / c,
        "sample": 1 / s,
        "v_prediction": np.ones_like(phi),
        "flow": np.sqrt(2) / (c + s),  # sin(3 pi/4 - phi) = (cos phi + sin phi) / sqrt 2
        "edm(0.5)": edm,
        "optimal(0.5)": edm,
    }


def test_curves_are_the_closed_forms(cosine: Schedule) -> None:
    data = kappa.curves(cosine)
    expected = closed_forms(cosine.phi.numpy())
    assert list(data.kappa) == list(data.floor) == list(expected)
    for name, values in expected.items():
        # sin(pi/2 - phi) and cos(phi) of one double: pi/2 is known to 6e-17, 1.3e-12 of the smallest cosine (4.9e-5)
        np.testing.assert_allclose(data.kappa[name], values, rtol=2e-12, err_msg=name)
        np.testing.assert_allclose(data.floor[name], (values / 128) ** 2, rtol=4e-12, err_msg=name)  # eq. 27 for epsilon


def test_marked_timesteps_are_the_last_below_the_tolerance(cosine: Schedule) -> None:
    floor = (1 / (128**2 * cosine.alpha_bar)).numpy()  # eq. 27
    data = kappa.curves(cosine)
    assert list(data.safe) == [1.0, 0.01]
    for tolerance, t in data.safe.items():
        assert floor[t] <= tolerance < floor[t + 1]


def test_drawn_lines_are_the_curves(cosine: Schedule) -> None:
    data = kappa.curves(cosine)
    with style.applied():
        above, below = kappa.draw(data).axes[:2]
    (magnified,) = above.child_axes
    for ax, values in ((above, data.kappa), (magnified, data.kappa), (below, data.floor)):
        lines = ax.lines[: len(values)]
        for (name, y), line in zip(values.items(), lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([data.t, y], axis=1))
            assert line.get_color() == style.look(name).color
    assert (above.get_yscale(), magnified.get_yscale(), below.get_yscale()) == ("log", "linear", "log")
    marks = [tuple(line.get_xydata()[0]) for line in below.lines if line.get_marker() == style.look("epsilon").marker]
    assert marks == [(t, tolerance) for tolerance, t in data.safe.items()]
    assert below.get_ylim()[0] < min(y.min() for y in data.floor.values())
    assert below.get_ylim()[1] > max(y.max() for y in data.floor.values())


def test_a_tolerance_that_nothing_meets_is_left_unmarked(cosine: Schedule) -> None:
    data = kappa.curves(cosine, delta=0.5)  # floor of at least 1/4
    assert data.safe[0.01] is None
    with style.applied():
        below = kappa.draw(data).axes[1]
    assert len([line for line in below.lines if line.get_marker() == style.look("epsilon").marker]) == 1


# -- figure 3A --------------------------------------------------------------------------------------------------------


def test_figure_3a_shows_the_record() -> None:
    """Panel a: the difference of the two losses; panel d: the paper's line and the measured points."""
    record = read_record("eps_vs_v-cpu")
    a, _, _, d = figure3a.draw(record).axes
    lines = {line.get_label(): line.get_ydata() for line in a.get_lines()}
    curves = record["results"]["curves"]
    gap = (np.array(curves["eps_mixed"]["loss_bf16"]) - np.array(curves["v_mixed"]["loss_bf16"])).mean(0)
    np.testing.assert_allclose(lines[r"difference $\epsilon - v$"], np.where(gap > 0, gap, np.nan))
    alpha_bar = Schedule.cosine(1000).alpha_bar[record["results"]["timesteps"]].numpy()
    drawn = {line.get_label(): line for line in d.get_lines()}
    theory = drawn[r"eq. 27, $\delta = 1/128$"]
    np.testing.assert_allclose(theory.get_xdata(), 1 / alpha_bar)
    np.testing.assert_allclose(theory.get_ydata(), 1 / (128**2 * alpha_bar), rtol=1e-5)  # the record has six digits
    np.testing.assert_allclose(drawn["measured"].get_ydata(), np.mean(curves["eps_mixed"]["direct"], axis=0))


def test_a_missing_record_names_the_command() -> None:
    with pytest.raises(FileNotFoundError, match=r"python experiments/eps_vs_v\.py --preset missing"):
        figure3a.main(["--record", "eps_vs_v-missing"])


# -- rows of arms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", [ablations, image_order, sampler_precision, table1, table3_scenes])
def test_comparisons_are_drawn_from_their_records(figure: ModuleType, tmp_path: Path) -> None:
    figure.main(["--out", str(tmp_path)])
    with Image.open(tmp_path / f"{figure.__name__.rpartition('.')[2]}.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100  # not an empty page


def points(ax: Axes, marker: str) -> list[tuple[float, float]]:
    return [tuple(point) for line in ax.lines if line.get_marker() == marker for point in line.get_xydata()]


def test_rows_show_each_seed_or_the_range() -> None:
    seeds, alone = {"mean": 0.5, "min": 0.4, "max": 0.6, "seeds": [0.6, 0.4]}, {"mean": 3.0, "min": 2.0, "max": 4.0}
    rows = [arm_rows.Row("one", "red", seeds, {"last": alone}), arm_rows.Row("two", "blue", None, {"other": alone})]
    a, b = style.figure(2, 2).subplots(1, 2)
    arm_rows.draw_rows(a, b, rows, {"last": ("o", arm_rows.FILLED), "safe": ("s", arm_rows.OPEN)}, reference=1.0)
    assert points(a, "o") == [(60.0, 0.0), (40.0, 0.0)]  # per cent
    assert points(b, "o") == [(3.0, 0.0)]
    assert points(b, "s") == []  # not drawn in that way
    bars = [list(line.get_xdata()) for line in (*a.lines, *b.lines) if line.get_marker() == "None"]
    assert bars == [[40.0, 60.0], [2.0, 4.0], [1, 1]]  # ranges, and the dotted line of real images
    assert [label.get_text() for label in a.get_yticklabels()] == ["one", "two"]


def test_scenes_show_float32_beside_bf16() -> None:
    record = read_record("table3_scenes-cpu")
    _, distances = table3_scenes.draw(record).axes
    arms = list(record["results"]["arms"].values())
    exact = [
        (arm["drawing"][way]["frechet"]["mean"], at)
        for at, arm in enumerate(arms)
        for way in ("last_float32", "safe_float32")
        if way in arm["drawing"]
    ]
    assert sorted(points(distances, "x")) == sorted(exact)
    assert len(exact) == 4  # v and epsilon, from either start
