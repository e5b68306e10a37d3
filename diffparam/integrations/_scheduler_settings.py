"""What an :class:`AngularScheduler` is told, checked, and what follows from it before any grid is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffparam._checks import check_count, check_number
from diffparam.errors import UnknownName
from diffparam.integrations.diffusers_config import schedule_from_config
from diffparam.names import parse_parameterization
from diffparam.parameterization import AngularParam
from diffparam.schedule import SPACINGS, Schedule
from diffparam.solvers.ddpm import VARIANCES
from diffparam.state import FLOW_STATE, VP, StateSpace

SOLVERS = ("ddim", "ddpm", "dpm_solver++2m", "heun")
STATES = ("vp", "ve", "flow")
SIGMA_SPACINGS = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class SchedulerSettings:
    """The options of :class:`AngularScheduler`, which documents them, under the same names."""

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: Sequence[float] | None
    rescale_betas_zero_snr: bool
    use_flow_sigmas: bool
    flow_shift: float
    use_dynamic_shifting: bool
    time_shift_type: str
    prediction_type: str
    sigma_data: float | None
    solver: str
    variance: str
    lower_order_final: bool
    state: str | None
    timestep_spacing: str
    steps_offset: int
    skip_lowest: bool
    interpolation_type: str | None
    sigma_spacing: str | None
    sigma_min: float | None
    sigma_max: float | None
    timestep_type: str
    final_sigmas_type: str
    clip_sample: bool
    clip_sample_range: float

    def __post_init__(self) -> None:
        check_count(self.num_train_timesteps, "num_train_timesteps")
        check_count(self.steps_offset, "steps_offset", low=0)
        check_number(self.flow_shift, "flow_shift", low=0.0, open_low=True)
        check_number(self.clip_sample_range, "clip_sample_range", low=0.0, open_low=True)
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name, low=0.0, open_low=True)
        _one_of("solver", self.solver, SOLVERS)
        _one_of("variance", self.variance, VARIANCES)
        _one_of("state", self.state, STATES, optional=True)
        _one_of("timestep_spacing", self.timestep_spacing, SPACINGS)
        _one_of("interpolation_type", self.interpolation_type, ("linear",), optional=True)
        _one_of("sigma_spacing", self.sigma_spacing, SIGMA_SPACINGS, optional=True)
        _one_of("timestep_type", self.timestep_type, ("discrete", "continuous"))
        _one_of("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))
        _one_of("time_shift_type", self.time_shift_type, ("exponential", "linear"))
        if self.solver == "heun" and self.final_sigmas_type != "zero":
            raise ValueError("final_sigmas_type must be 'zero' with solver 'heun', got 'sigma_min'; or use 'dpm_solver++2m'")
        if self.use_dynamic_shifting and not self.use_flow_sigmas:
            raise ValueError("use_dynamic_shifting must be off without use_flow_sigmas, got on; it shifts the flow's sigmas")
        if self.use_flow_sigmas:
            self._require_plain_flow()

    def _require_plain_flow(self) -> None:
        plain = {
            "rescale_betas_zero_snr": False,
            "interpolation_type": None,
            "sigma_spacing": None,
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
        }
        for name, value in plain.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value!r} with use_flow_sigmas, got {getattr(self, name)!r}; it speaks of betas"
                )

    @property
    def param(self) -> AngularParam:
        """What the network outputs.

        Raises:
            UnknownName: For an unknown ``prediction_type``, with the nearest name.
        """
        try:
            return parse_parameterization(self.prediction_type, sigma_data=self.sigma_data)
        except UnknownName as error:
            raise UnknownName("prediction_type", error.name, error.known, error.remedy) from None

    @property
    def network_state(self) -> StateSpace:
        """The convention of the samples the network was trained on."""
        return FLOW_STATE if self.use_flow_sigmas else VP

    @property
    def sampler_state(self) -> StateSpace:
        """The convention of the samples that ``step`` carries."""
        return self.network_state if self.state is None else StateSpace(self.state)  # type: ignore[arg-type]

    def training_schedule(self) -> Schedule:
        """The schedule the network was trained on, in the sampler's convention, float64.

        Raises:
            UnknownName: For an unknown ``beta_schedule``.
        """
        if self.use_flow_sigmas:
            shift = 1.0 if self.use_dynamic_shifting else self.flow_shift
            steps = self.num_train_timesteps
            return Schedule.rectified_flow(steps, shift=shift, time_scale=steps).with_state(self.sampler_state)
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
        betas: dict[str, Any] = {name: getattr(self, name) for name in names}
        schedule = schedule_from_config({"_class_name": "DDIMScheduler", **betas})
        if len(schedule) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas must hold num_train_timesteps = {self.num_train_timesteps} values, got {len(schedule)}"
            )
        return schedule.with_state(self.sampler_state)

    def dynamic_shift(self, mu: float | None) -> float:
        """The shift of the flow's sigmas; ``mu`` counts only with ``use_dynamic_shifting`` (pipelines pass it always).

        Raises:
            ValueError: If ``mu`` is missing.
        """
        if not self.use_dynamic_shifting:
            return self.flow_shift
        if mu is None:
            raise ValueError(
                "mu must be given with use_dynamic_shifting, got None; it is the image's shift, as pipelines compute"
            )
        mu = check_number(mu, "mu")
        return math.exp(mu) if self.time_shift_type == "exponential" else check_number(mu, "mu", low=0.0, open_low=True)


def _one_of(name: str, value: object, known: tuple[str, ...], *, optional: bool = False) -> None:
    if not (optional and value is None) and value not in known:
        raise UnknownName(name, value, known, "Or None." if optional else "")
