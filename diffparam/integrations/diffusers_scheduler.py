"""The solvers of this package as a scheduler of diffusers; needs diffusers, which nothing else here does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from diffparam._checks import check_pair
from diffparam.errors import UnknownName
from diffparam.integrations import _scheduler_grid as grids
from diffparam.integrations._scheduler_config import OWN_NAME, READABLE, translate_config
from diffparam.integrations._scheduler_noising import Noising
from diffparam.integrations._scheduler_run import SchedulerRun, require_finite
from diffparam.integrations._scheduler_settings import SchedulerSettings

try:
    import diffusers
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput as AngularSchedulerOutput
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        "AngularScheduler needs diffusers, which cannot be imported; install it: pip install diffusers"
    ) from error

Generators = torch.Generator | list[torch.Generator] | None


class AngularScheduler(Noising, SchedulerMixin, ConfigMixin):
    r"""Any solver for any prediction type, in float64 angles, where diffusers takes a scheduler.

    ``AngularScheduler.from_config(pipe.scheduler.config)`` reads DDIM, DDPM, Euler, Euler ancestral, Heun, DPM-Solver++ and
    flow-match Euler configs and steps as they do, from angles instead of a float32 table of alpha_bar: nothing is lost in
    1 - alpha_bar, in no dtype; a step goes to the timestep that is visited next; a singular start is refused by name.

    Args:
        num_train_timesteps: Timesteps the network was trained on.
        beta_start: First beta.
        beta_end: Last beta.
        beta_schedule: ``linear``, ``scaled_linear`` or ``squaredcos_cap_v2``.
        trained_betas: The betas themselves, instead.
        rescale_betas_zero_snr: Whether the last timestep is pure noise (Lin et al. 2023).
        use_flow_sigmas: Whether the network is a flow's, ``x_t = (1 - t) x + t eps``, instead of a schedule of betas.
        flow_shift: The flow's shift, ``s t / (1 + (s - 1) t)``.
        use_dynamic_shifting: Whether ``set_timesteps`` is given the shift as ``mu``.
        time_shift_type: ``exponential``, the shift is exp(mu), or ``linear``, it is mu.
        prediction_type: Any name of :func:`diffparam.parse_parameterization`.
        sigma_data: Standard deviation of the data, for ``edm``, ``trigflow`` and ``optimal``.
        solver: ``ddim``, ``ddpm``, ``dpm_solver++2m`` or ``heun``.
        variance: Of ``ddpm``: ``posterior`` or ``upper``.
        lower_order_final: Of ``dpm_solver++2m``: whether the last of fewer than 15 steps is first order.
        state: Convention of the samples: ``vp``, ``ve`` (sigma-space) or ``flow``; by default the network's own.
        timestep_spacing: ``leading``, ``linspace``, ``trailing`` or ``fractional``, see :meth:`diffparam.Schedule.respace`.
        steps_offset: Added to the timesteps of ``leading``.
        skip_lowest: Whether one step more is spaced and the lowest left out (DPM-Solver's grids).
        interpolation_type: ``linear`` allows timesteps between those of training, with sigma interpolated; None rounds.
        sigma_spacing: ``karras``, ``exponential`` or ``beta``: space sigma between the ends of the grid.
        sigma_min: Lower end of ``sigma_spacing``.
        sigma_max: Upper end of ``sigma_spacing``.
        timestep_type: ``discrete``, or ``continuous``: the network is told log(sigma) / 4.
        final_sigmas_type: ``zero`` ends at clean data, ``sigma_min`` at the first training angle.
        clip_sample: Whether the predicted clean sample is clipped.
        clip_sample_range: Where.

    Raises:
        UnknownName: For an unknown name, with the nearest one.
        ValueError: If options contradict each other.
    """

    _compatibles = list(READABLE)  # noqa: RUF012 as the base class has it
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        prediction_type: str = "epsilon",
        sigma_data: float | None = None,
        solver: str = "ddim",
        variance: str = "posterior",
        lower_order_final: bool = True,
        state: str | None = None,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        skip_lowest: bool = False,
        interpolation_type: str | None = None,
        sigma_spacing: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_type: str = "discrete",
        final_sigmas_type: str = "zero",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
    ) -> None:
        # So that whoever reads the config need not guess the class, nor put its own defaults in place of ours.
        self.register_to_config(_class_name=OWN_NAME, _use_default_values=[])
        settings = self._settings()
        self._training = settings.training_schedule()
        self._param = settings.param
        self._run: SchedulerRun | None = None
        self._begin_index: int | None = None
        self.order = 2 if solver == "heun" else 1
        self.num_inference_steps: int | None = None
        self.timesteps = self._training.timesteps.flip(0)
        if self.timesteps.is_floating_point():
            self.timesteps = self.timesteps.float()

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """From this class's config or another scheduler's, with options of the constructor to change.

        Args:
            config: ``scheduler.config``, or a parsed ``scheduler_config.json``.
            return_unused_kwargs: Whether to return ``(scheduler, unused options)``.
            options: Options of the constructor.

        Raises:
            UnknownName: For a class that cannot be read, or an unknown option.
            ValueError: If the class cannot be told, or an option of it is not covered.
        """
        if config is None:
            raise ValueError("config must be given, got None; pass the config of a scheduler, or use the constructor")
        known = [field.name for field in fields(SchedulerSettings)]
        if not return_unused_kwargs:
            for name in options:
                if name not in known:
                    raise UnknownName("option", name, known)
        translated = translate_config(config, _defaults_of, given=set(options) & set(known))
        whole = {key: value for key, value in config.items() if key != "_use_default_values"}
        return super().from_config({**whole, **translated, "_class_name": OWN_NAME}, return_unused_kwargs, **options)

    # -- before the run -----------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the grid and plan the whole run. A last step that goes nowhere, from sigma_min to itself, is left out.

        Args:
            num_inference_steps: Steps spaced as the config says.
            device: Where ``timesteps`` goes.
            timesteps: The timesteps to visit instead, falling. Of a flow: t times the number of training steps, shifted
                already.
            sigmas: The sigmas to visit instead, falling: tan(phi), the last of them where to end; of a flow its t before
                the shift, without the end.
            mu: Shift of a flow with ``use_dynamic_shifting``.

        Raises:
            SingularParameterization: If the prediction type says nothing at a timestep of the run; names it.
            ValueError: If not exactly one of the three is given, or it does not fit the training schedule.
        """
        settings = self._settings()
        grid, final_phi = grids.choose_grid(
            settings, self._training, num_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu
        )
        self._require_finite_scale(grid)
        self._run = SchedulerRun(settings, grid, self._param, final_phi)
        told = torch.tensor(self._run.plan.timestep.tolist())
        self.timesteps = (told.float() if told.is_floating_point() else told).to(device)
        self.num_inference_steps = (len(told) + self.order - 1) // self.order
        self._begin_index = None

    @property
    def step_index(self) -> int | None:
        """Index of the next step, None before ``set_timesteps``."""
        return None if self._run is None else self._run.position

    @property
    def begin_index(self) -> int | None:
        """What ``set_begin_index`` was told; a run starts at the timestep of its first step all the same."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """For pipelines that start in the middle."""
        self._begin_index = begin_index

    # -- during the run -----------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> AngularSchedulerOutput | tuple[Tensor, Tensor]:
        """The update after one network call.

        Args:
            model_output: Network output, shape of ``sample``; its dtype may differ.
            timestep: The next of ``timesteps``; another one of them starts the solver afresh there.
            sample: Current sample; sets dtype and device. Below float32 the arithmetic is float32, rounded once.
            eta: Of ``ddim``: 0 is deterministic, 1 ancestral.
            use_clipped_model_output: With ``clip_sample`` and ``ddim``: whether the implied noise follows the clipped sample.
            generator: Source of the noise, or one per batch item.
            variance_noise: The noise itself, instead; read only where the step adds noise.
            return_dict: Whether to return an object instead of ``(prev_sample, pred_original_sample)``.

        Returns:
            ``prev_sample``, and ``pred_original_sample``, the clean sample that the output implies; both like ``sample``.

        Raises:
            ValueError: If ``set_timesteps`` has not been called, the timestep is not in the run, or shapes differ.
            NonFiniteError: If an input is not finite, or the result would not be.
        """
        if self._run is None:
            raise ValueError(
                "set_timesteps must be called before step, got a scheduler without a run; "
                "call scheduler.set_timesteps(num_inference_steps)"
            )
        check_pair(model_output, sample, ("model_output", "sample"))
        if generator is not None and variance_noise is not None:
            raise ValueError("only one of generator and variance_noise must be given, got both")
        step = self._run.seek(_number(timestep), eta)
        x = sample if sample.dtype.itemsize >= 4 else sample.float()
        if not step.coefficients.is_stochastic:
            variance_noise = None
        elif variance_noise is None:
            variance_noise = randn_tensor(tuple(x.shape), generator=generator, device=x.device, dtype=x.dtype)
        else:
            check_pair(variance_noise, sample, ("variance_noise", "sample"))
        keep_eps = self._run.settings.solver == "ddim" and not use_clipped_model_output
        previous, original, memory = self._run.update(step, model_output, x, noise=variance_noise, keep_eps=keep_eps)
        previous, original = previous.to(sample.dtype), original.to(sample.dtype)
        require_finite(previous, original, model_output, sample, step.timestep)
        self._run.done(memory)
        if not return_dict:
            return previous, original
        return AngularSchedulerOutput(prev_sample=previous, pred_original_sample=original)


def _defaults_of(name: str) -> dict[str, Any]:
    """The constructor's options of a scheduler of diffusers, with their defaults."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _number(timestep: Any) -> float:
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise ValueError(f"timestep must be one number, got shape {tuple(timestep.shape)}; a run is at one timestep at a time")
    return float(timestep)
