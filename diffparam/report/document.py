"""The report itself: what a run's low precision costs, by parameterization, with a verdict and advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diffparam.errors import UnknownName
from diffparam.parameterization import EPSILON, FLOW, X0, AngularParam, V
from diffparam.report.advice import Advice, advise
from diffparam.report.assess import Assessment, assess
from diffparam.report.curves import Curves, curves_of
from diffparam.report.parse import parse_signed
from diffparam.report.run import Run
from diffparam.report.scheduler import read_scheduler, step_count
from diffparam.report.table import html_of, text_of
from diffparam.schedule import SPACINGS, Schedule


@dataclass(frozen=True, eq=False)
class Report:
    """What low precision does to a run, before it. ``print(report)`` is a table; a notebook shows one too.

    Attributes:
        run: The settings.
        rows: One assessment per parameterization: epsilon, sample, v_prediction, flow, optimal for ``sigma_data``; the
            configured one is among them or comes first.
        configured: Index of the configured one.
        advice: Single changes that help, best first, each tried on the prediction.
        curves: What :func:`diffparam.report.plot_report` draws.
    """

    run: Run
    rows: tuple[Assessment, ...]
    configured: int
    advice: tuple[Advice, ...]
    curves: Curves

    @property
    def row(self) -> Assessment:
        """The configured parameterization's."""
        return self.rows[self.configured]

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the configured run is not safe; see :meth:`Assessment.objections`."""
        return self.row.objections(self.run.tolerance)

    @property
    def safe(self) -> bool:
        """Whether the configured run has no singular step, no flag of kind unsafe, collision, stagnation, overflow or large,
        and a predicted error of the final sample of at most ``tolerance`` of its rms.
        """
        return not self.objections

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; what is infinite or undefined is None."""
        run = self.run
        settings = {
            "name": run.name,
            "training_steps": len(run.training),
            "steps": len(run.grid),
            "timesteps": run.grid.timesteps.flip(0).tolist(),
            "solver": run.solver,
            "eta": run.eta,
            "guidance": run.guidance,
            "sigma_data": run.sigma_data,
            "state_space": run.grid.state.kind,
            **run.formats(),
            "tolerance": run.tolerance,
            "loss_tolerance": run.loss_tolerance,
        }
        rows = [
            {
                **asdict(row),
                "dominant": row.dominant,
                "safe": not row.objections(run.tolerance),
                "configured": i == self.configured,
            }
            for i, row in enumerate(self.rows)
        ]
        document = {
            "safe": self.safe,
            "objections": list(self.objections),
            "settings": settings,
            "rows": rows,
            "advice": [asdict(advice) for advice in self.advice],
            "notes": list(run.notes),
        }
        return {key: _plain(value) for key, value in document.items()}

    def __str__(self) -> str:
        return text_of(self)

    def __repr__(self) -> str:
        verdict = "safe" if self.safe else "unsafe"
        return f"Report({self.run.name!r}, {self.row.param!r}, error {self.row.error:.3g}, {verdict})"

    def _repr_html_(self) -> str:
        return html_of(self)


def report(
    schedule: Schedule | Mapping[str, Any],
    param: AngularParam | str | None = None,
    *,
    steps: int | None = None,
    spacing: str | None = None,
    solver: str | None = None,
    eta: float = 0.0,
    guidance: float = 1.0,
    sigma_data: float | None = None,
    output: Any = "bfloat16",
    arithmetic: Any = "float32",
    state: Any = "float32",
    timestep: Any = "float32",
    increments: bool = False,
    tolerance: float = 0.01,
    loss_tolerance: float = 0.01,
) -> Report:
    """Is this sampler safe in this precision, from where, what dominates, and what would help?

    Args:
        schedule: The schedule of the training, or the config of a diffusers scheduler (``{"_class_name": type(s).__name__,
            **s.config}``, or a parsed ``scheduler_config.json``), which also says grid, solver and parameterization.
        param: What the network outputs, or its name; epsilon, or flow for a flow's schedule, by default.
        steps: Sampling steps; 50, or all where there are fewer.
        spacing: Of a schedule ``fractional`` by default, of a config its own; see :meth:`diffparam.Schedule.respace`.
        solver: ``ddim``, ``ddpm``, ``dpm_solver`` or ``heun``; ddim by default, of a config its own.
        eta: Noise of ddim.
        guidance: Scale omega of classifier-free guidance; 1 is none.
        sigma_data: Standard deviation of the data, per element; 1 by default, of an EDM config its own.
        output: What the network's output suffers: a format, an error model, or None. A format means one rounding of the
            output; a network that computes in bf16 inside errs more: calibrate it, pass ``RelativeError(delta, "gaussian")``.
        arithmetic: Format of the update's products, sums and coefficients, or None.
        state: What storing the sample between steps suffers, as ``output``.
        timestep: Format in which the network is told the time, or None.
        increments: The update is computed as a change of the state, see :func:`diffparam.sample`.
        tolerance: Largest rms error of the final sample, in units of its rms, that counts as safe.
        loss_tolerance: Largest loss floor of one step, in units of the target's variance, that counts as safe (eq. 27).

    Raises:
        ValueError: If an option is out of range, or does not fit the schedule or the config.
        UnknownName: For a name that is not known.
    """
    if isinstance(param, str):
        param = parse_signed(param, sigma_data)
    shared: dict[str, Any] = {
        "eta": eta,
        "guidance": guidance,
        "output": output,
        "arithmetic": arithmetic,
        "state": state,
        "timestep": timestep,
        "increments": increments,
        "tolerance": tolerance,
        "loss_tolerance": loss_tolerance,
    }
    if isinstance(schedule, Schedule):
        grid = schedule.respace(step_count(steps, len(schedule)), _spacing(spacing, steps, len(schedule)))
        by_state = FLOW if schedule.state.kind == "flow" else EPSILON
        run = Run(
            schedule,
            grid,
            by_state if param is None else param,
            solver="ddim" if solver is None else solver,
            sigma_data=1.0 if sigma_data is None else sigma_data,
            name=schedule.name,
            **shared,
        )
    else:
        read = read_scheduler(schedule, steps=steps, spacing=spacing, solver=solver)
        own = 1.0 if read.sigma_data is None else read.sigma_data
        run = Run(
            read.training,
            read.grid,
            read.param if param is None else param,
            solver=read.solver,
            variance=read.variance,
            lower_order_final=read.lower_order_final,
            final_phi=read.final_phi,
            sigma_data=own if sigma_data is None else sigma_data,
            name=read.name,
            notes=read.notes,
            **shared,
        )
    return report_run(run)


def report_run(run: Run) -> Report:
    """The report of a run that is set up in full."""
    params = [EPSILON, X0, V, FLOW, AngularParam.optimal(run.sigma_data)]
    at = next((i for i, param in enumerate(params) if run.param in (param, -param)), None)
    if at is None:
        params.insert(0, run.param)
        at = 0
    else:
        params[at] = run.param
    rows = tuple(assess(run, param) for param in params)
    others = [(param, row) for i, (param, row) in enumerate(zip(params, rows, strict=True)) if i != at]
    return Report(run, rows, at, advise(run, rows[at], others), curves_of(run, params))


def _spacing(spacing: str | None, steps: int | None, available: int) -> str:
    if spacing is None:
        return "trailing" if step_count(steps, available) == 1 else "fractional"
    if spacing not in SPACINGS:
        raise UnknownName("spacing", spacing, SPACINGS)
    return spacing


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
