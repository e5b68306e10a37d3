"""Each line that matters is broken once, in a copy of the package, and the test that guards it must fail.

The copies are run in one other process (torch is imported once; only the package and the tests are imported anew), which
reports for each copy where the package came from and which tests failed. Run as a script, this file is that process.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Mutation:
    """One edit of one line, and the test, or one case of it, that must notice."""

    file: str
    old: str
    new: str
    guard: str


MUTATIONS = {
    "a sign of the identity": Mutation(
        "angle.py",
        "return sin_difference(target, phi) / s,",
        "return sin_difference(phi, target) / s,",
        "test_angle.py::test_the_gains_recover_w",
    ),
    "the gains swapped": Mutation(
        "angle.py",
        "return sin_difference(target, phi) / s, sin_difference(psi, target) / s",
        "return sin_difference(psi, target) / s, sin_difference(target, phi) / s",
        "test_angle.py::test_rebasing_onto_what_is_known_returns_it_exactly",
    ),
    "the lost digits of a difference": Mutation(
        "angle.py",
        "return xp.sin(d) + lost * xp.cos(d)",
        "return xp.sin(d)",
        "test_angle.py::test_sin_difference_is_right_to_two_ulp",
    ),
    "a guard that is a tolerance": Mutation(
        "angle.py",
        "if abs(sin_theta) <= 2**-52 * max(abs(phi), abs(psi)):",
        "if abs(sin_theta) <= 1e-8:",
        "test_angle.py::test_an_output_a_little_off_the_state_is_not",
    ),
    "1/r of a conversion": Mutation(
        "conversion.py",
        "return gain_u * r / source.r_at(phi), gain_x * r",
        "return gain_u * r, gain_x * r",
        "test_conversion.py::test_any_r_changes_nothing_but_rounding",
    ),
    "the square of a loss weight": Mutation(
        "conversion.py",
        "(source.r_at(phi) * s)) ** 2",
        "(source.r_at(phi) * s)) ** 1",
        "test_conversion.py::test_the_weight_is_the_ratio_of_squared_errors",
    ),
    "the weights of guidance": Mutation(
        "guidance.py",
        "u_cond.to(compute), omega)",
        "u_cond.to(compute), omega + 1)",
        "test_guidance.py::test_zero_and_one_choose_a_branch_exactly",
    ),
    "the variance in EDM's angle": Mutation(
        "parameterization.py",
        "xp.atan2(-(self.sigma_data**2) * xp.cos(phi), xp.sin(phi))",
        "xp.atan2(-self.sigma_data * xp.cos(phi), xp.sin(phi))",
        "test_parameterization.py::test_edm_is_its_preconditioner",
    ),
    "the digits of a small beta": Mutation(
        "schedule.py",
        "log_alpha_bar = torch.log1p(-betas).cumsum(0)",
        "log_alpha_bar = torch.log(1 - betas).cumsum(0)",
        "test_schedule.py::test_small_angles_keep_their_digits",
    ),
    "the digits of a small angle": Mutation(
        "schedule.py",
        "torch.atan2((-torch.expm1(log_alpha_bar)).sqrt()",
        "torch.atan2((1 - torch.exp(log_alpha_bar)).sqrt()",
        "test_schedule.py::test_linear_and_scaled_linear_are_their_formulas",
    ),
    "the stride of a respaced schedule": Mutation(
        "schedule.py",
        "* (num_steps - 1)).round().astype(np.int64)",
        "* (num_steps - 1)).astype(np.int64)",
        "test_schedule.py::test_fractional_is_improved_diffusions_stride",
    ),
    "the noise of a stochastic step": Mutation(
        "solvers/ddim.py",
        "noise = eta * xp.sin(phi_s) / xp.sin(phi_t) * spread / xp.cos(phi_s)",
        "noise = eta * xp.sin(phi_s) / xp.sin(phi_t) * spread",
        "test_step_algebra.py::test_a_stochastic_step_keeps_the_marginal",
    ),
    "1/r of a step": Mutation(
        "solvers/ddim.py",
        "gain_u = gain_u / param.r_at(phi_t)",
        "gain_u = gain_u * 1.0",
        "test_step_algebra.py::test_a_step_lands_on_w",
    ),
    "arithmetic in bf16": Mutation(
        "_combine.py",
        "if u.dtype is not dtype or dtype.itemsize < 4:",
        "if u.dtype is not dtype:",
        "test_dtype.py::test_a_step_with_every_operation_in_bf16_is_not",
    ),
    "the square in equation 27": Mutation(
        "prediction/step.py",
        "relative_error(delta, fmt)) ** 2 * energy",
        "relative_error(delta, fmt)) * energy",
        "test_identity_sympy.py::test_equation_27",
    ),
    "the variance of DDPM": Mutation(
        "solvers/ddpm.py",
        "upper = np.sqrt(sin_difference(phi_t, phi_s) * np.sin(phi_t + phi_s)) / np.cos(phi_s)",
        "upper = np.sqrt(sin_difference(phi_t, phi_s) * np.sin(phi_t + phi_s)) / np.cos(phi_t)",
        "test_solvers.py::test_both_variances_are_those_of_ho_et_al",
    ),
    "noise in the last step": Mutation(
        "solvers/ddpm.py",
        "np.where(np.asarray(step.noise) > 0, upper, 0.0)",
        "upper",
        "test_solvers.py::test_the_last_step_adds_no_noise_unless_it_ends_early",
    ),
    "the sign of DPM-Solver's correction": Mutation(
        "solvers/dpm_solver.py",
        "        g = ratio * sin_difference",
        "        g = -ratio * sin_difference",
        "test_solvers.py::test_the_order_of_a_solver_is_a_slope[dpm-2-v]",
    ),
    "the half in DPM-Solver": Mutation(
        "solvers/dpm_solver.py",
        "ratio[1:] = h[1:] / (2.0 * h[:-1])",
        "ratio[1:] = h[1:] / h[:-1]",
        "test_solvers.py::test_dpm_solver_is_its_authors_algorithm[30-False]",
    ),
    "which h is whose": Mutation(
        "solvers/dpm_solver.py",
        "ratio[1:] = h[1:] / (2.0 * h[:-1])",
        "ratio[1:] = h[:-1] / (2.0 * h[1:])",
        "test_solvers.py::test_dpm_solver_is_its_authors_algorithm[30-False]",
    ),
    "the half of Heun": Mutation(
        "solvers/heun.py",
        "half = -0.5 * sin_difference(t, s) / np.cos(t)",
        "half = -1.0 * sin_difference(t, s) / np.cos(t)",
        "test_solvers.py::test_the_order_of_a_solver_is_a_slope[heun-2-v]",
    ),
    "where Heun's corrector looks": Mutation(
        "solvers/heun.py",
        "corrector_u, corrector_x = _slope(s, param)",
        "corrector_u, corrector_x = _slope(t, param)",
        "test_solvers.py::test_heun_is_karras_algorithm[v]",
    ),
    "the state's scale in a memory": Mutation(
        "solvers/dpm_solver.py",
        "x0_x / schedule.state.scale(phi_t)",
        "x0_x",
        "test_plan.py::test_another_state_is_the_same_plan_in_other_units[ve-dpm]",
    ),
    "the timestep of a singular step": Mutation(
        "solvers/plan.py",
        "at = timestep[np.argmin(np.abs(phi_t - error.phi))]",
        "at = timestep[0]",
        "test_plan.py::test_a_singular_step_is_named_with_its_timestep[5-ddim]",
    ),
    "a memory that stays": Mutation(
        "solvers/step.py",
        "if step.memory_u or step.memory_x else None\n    change = total(terms)",
        "if step.memory_u or step.memory_x else memory\n    change = total(terms)",
        "test_solvers.py::test_a_memory_lasts_one_step",
    ),
    "coefficients that are not rounded": Mutation(
        "solvers/step.py",
        " if increments else step).perturbed(to)\n",
        " if increments else step)\n",
        "test_solvers.py::test_emulated_bf16_arithmetic_is_that_of_torch[dpm-torch.float64]",
    ),
    "the 1 of an increment": Mutation(
        "solvers/step.py",
        "    step = (replace(step, gain_x=step.gain_x - 1.0) if increments",
        "    step = (replace(step, gain_x=step.gain_x) if increments",
        "test_solvers.py::test_increments_are_the_same_update_in_another_order[ddim]",
    ),
    "the memory of a traced coefficient": Mutation(
        "prediction/trace.py",
        "reads = [*plan.gain_m[1:].tolist(), 0.0]",
        "reads = [*plan.gain_m[:-1].tolist(), 0.0]",
        "test_budget.py::test_tracing_knows_what_rounded_coefficients_do[dpm-flow]",
    ),
    "the signs of traced coefficients": Mutation(
        "prediction/known.py",
        "float(np.sqrt(np.mean(by_call.sum(axis=0) ** 2)))",
        "float(np.sqrt(np.mean(by_call**2, axis=1).sum()))",
        "test_budget.py::test_coefficients_of_a_trained_like_network_add_with_their_signs",
    ),
    "how calls are aligned": Mutation(
        "prediction/sources.py",
        "error.correlation * _alignment(sizes)",
        "error.correlation",
        "test_calibration.py::test_correlated_errors_add_with_the_signs_of_their_gains",
    ),
    "the memory in a gain": Mutation(
        "prediction/sensitivity.py",
        "output_gain = plan.gain_u * state_gain + plan.memory_u * memory_gain(plan, state_gain)",
        "output_gain = plan.gain_u * state_gain",
        "test_sensitivity.py::test_gains_are_what_a_kick_becomes[dpm-v-vp]",
    ),
    "the memory in a second moment": Mutation(
        "prediction/sensitivity.py",
        "jx * jx * xx + 2 * jx * c * xm + c * c * mm + new_xx",
        "jx * jx * xx + c * c * mm + new_xx",
        "test_sensitivity.py::test_sizes_are_those_of_many_samples[dpm-2.0]",
    ),
    "the output in a gain of the state": Mutation(
        "prediction/sensitivity.py",
        "return plan.gain_x + plan.gain_u * per_input, plan",
        "return plan.gain_x, plan",
        "test_sensitivity.py::test_gains_are_what_a_kick_becomes[ddim-v-vp]",
    ),
    "the rest in the next output": Mutation(
        "prediction/sensitivity.py",
        "plan.gain_m * input_memory) + plan.gain_u * residual",
        "plan.gain_m * input_memory)",
        "test_sensitivity.py::test_a_rest_that_no_line_explains_travels_with_the_run[ddim]",
    ),
    "the sign of a correlation": Mutation(
        "prediction/correlation.py",
        "total += 2.0 * float(",
        "total -= 2.0 * float(",
        "test_budget.py::test_in_slow_runs_the_correlation_is_known[2.0-heun-v-1.4]",
    ),
    "the sawtooth": Mutation(
        "prediction/correlation.py",
        "(1.0 - 6.0 * fraction * (1.0 - fraction))",
        "(1.0 - 4.0 * fraction * (1.0 - fraction))",
        "test_budget.py::test_the_sawtooth_correlation_is_what_roundings_have",
    ),
    "quadrature for what is known": Mutation(
        "prediction/known.py",
        "rx, rm = sx + rx * jx + rm * jm, sm + rx * c",
        "total, rx, rm = total + sx**2, 0.0, 0.0",
        "test_budget.py::test_a_factor_on_all_outputs_is_known[ddim-v]",
    ),
    "the noise in what is known": Mutation(
        "prediction/known.py",
        "total += (rx * n + sn) ** 2",
        "total += sn**2",
        "test_budget.py::test_rounded_coefficients_do_what_is_predicted[ddpm-v]",
    ),
    "roundings of the memory": Mutation(
        "prediction/sources.py",
        "final = np.sqrt(gain**2 * in_state + to_memory**2 * in_memory)",
        "final = np.sqrt(gain**2 * in_state)",
        "test_budget.py::test_what_is_rounded_on_its_way_into_a_memory_is_in_the_sum",
    ),
    "products that cancel": Mutation(
        "prediction/sources.py",
        "return 2.0 * np.sign(a) * np.sign(b) * correlation",
        "return 0.0 * np.sign(a) * np.sign(b) * correlation",
        "test_budget.py::test_products_that_cancel_are_rounded_alike",
    ),
    "the factor in chopping": Mutation(
        "prediction/sources.py",
        "machine_epsilon / (4.0 * math.log(2.0))",
        "machine_epsilon / (8.0 * math.log(2.0))",
        "test_budget.py::test_other_ways_to_round_too[ddim-toward_zero]",
    ),
    "guidance on a factor": Mutation(
        "prediction/sources.py",
        "rms = np.sqrt(random * spread**2 + factor**2 * sizes.output_sq)",
        "rms = np.sqrt(random + factor**2 * sizes.output_sq)",
        "test_budget.py::test_the_branches_of_guidance_err_on_their_own[rademacher-guidance_error_gain-3.0]",
    ),
    "a bound for elements of rms size": Mutation(
        "prediction/budget.py",
        "return math.log(2.0 / half) * root",
        "return math.sqrt(2.0 * math.log(2.0 / half)) * root",
        "test_budget.py::test_few_elements_exceed_the_probable_bound[ddim-10-output-error1]",
    ),
    "half a unit in the last place": Mutation(
        "prediction/flags.py",
        "return np.sqrt(3.0 * rounding_energy",
        "return np.sqrt(12.0 * rounding_energy",
        "test_flags.py::test_updates_below_half_a_unit_are_lost",
    ),
}
CONTROL = "nothing"


def copies(package: Path, into: Path) -> dict[str, dict[str, object]]:
    """One copy of the package per mutation, and an untouched one that all guards are run against."""
    plan: dict[str, dict[str, object]] = {}
    for number, name in enumerate([CONTROL, *MUTATIONS]):
        home = into / str(number)
        shutil.copytree(package, home / "diffparam", ignore=shutil.ignore_patterns("__pycache__"))
        if name == CONTROL:
            plan[name] = {"home": str(home), "guards": sorted({m.guard for m in MUTATIONS.values()})}
            continue
        mutation = MUTATIONS[name]
        path = home / "diffparam" / mutation.file
        source = path.read_text()
        assert source.count(mutation.old) == 1, f"{name}: {mutation.file} has {source.count(mutation.old)} such lines"
        path.write_text(source.replace(mutation.old, mutation.new))
        plan[name] = {"home": str(home), "guards": [mutation.guard]}
    return plan


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    import diffparam  # here, because the other process must find a copy of it instead

    work = tmp_path_factory.mktemp("mutations")
    plan = copies(Path(diffparam.__file__).parent, work)
    (work / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, __file__, str(work / "plan.json"), str(work / "reports.json")]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((work / "reports.json").read_text())


def names(tests) -> set[str]:
    """The functions of some node ids, whatever the case."""
    return {test.rpartition("::")[2].partition("[")[0] for test in tests}


def test_the_untouched_copy_passes(reports):
    report = reports[CONTROL]
    assert report["code"] == pytest.ExitCode.OK, report
    assert not report["failed"]
    assert names(report["passed"]) == names(m.guard for m in MUTATIONS.values())


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(reports, name):
    report = reports[name]
    # 1 is "tests ran and some failed": a copy that does not import, or a guard that does not exist, ends otherwise.
    assert report["code"] == pytest.ExitCode.TESTS_FAILED, report
    assert names(report["failed"]) == names([MUTATIONS[name].guard])


def test_every_copy_was_the_one_imported(reports):
    assert len({report["imported"] for report in reports.values()}) == len(MUTATIONS) + 1


# -- the other process ------------------------------------------------------------------------------------------------


class Recorder:
    """Pytest plugin: who passed and failed, with counterexamples left as they are found."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_configure(self) -> None:
        """After conftest has loaded its profile."""
        from hypothesis import Phase, settings

        parent = settings.get_profile("repository")
        settings.register_profile("mutations", parent, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutations")

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call":
            (self.passed if report.passed else self.failed).add(report.nodeid.partition("[")[0])


def run_copy(home: str, guards: list[str]) -> dict[str, object]:
    """The guards against the copy of the package in ``home``."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("diffparam", "strategies", "gaussian_runs", "conftest") or name.startswith("test_"):
            del sys.modules[name]
    gc.freeze()  # pytest collects garbage at its end: not torch's, forty times over
    sys.path.insert(0, home)
    recorder = Recorder()
    try:
        code = pytest.main(
            ["-x", "--tb=no", "-p", "no:cacheprovider", *(str(TESTS / guard) for guard in guards)], plugins=[recorder]
        )
    finally:
        sys.path.remove(home)
    sources = {Path(m.__file__) for n, m in sys.modules.items() if n.partition(".")[0] == "diffparam"}
    strangers = [str(path) for path in sources if Path(home) not in path.parents]
    if strangers or not sources:
        raise SystemExit(f"the tests of {home} imported {strangers or 'nothing'}")
    imported = str(Path(sys.modules["diffparam"].__file__).parent)
    return {"code": int(code), "passed": sorted(recorder.passed), "failed": sorted(recorder.failed), "imported": imported}


if __name__ == "__main__":
    _, plan_path, report_path = sys.argv
    found = {name: run_copy(**copy) for name, copy in json.loads(Path(plan_path).read_text()).items()}
    Path(report_path).write_text(json.dumps(found))
