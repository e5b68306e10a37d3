"""What a scheduler knows without stepping: noised samples, targets, scales and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_pair, check_sample
from diffparam._combine import combine
from diffparam.angle import HALF_PI
from diffparam.integrations import _scheduler_grid as grids
from diffparam.integrations._scheduler_run import SchedulerRun
from diffparam.integrations._scheduler_settings import SchedulerSettings
from diffparam.parameterization import V
from diffparam.schedule import Schedule


class Noising:
    """The half of :class:`AngularScheduler` that does not step; abstract: it needs ``config``."""

    config: Mapping[str, Any]
    _training: Schedule
    _run: SchedulerRun | None

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """The noised samples at ``timesteps``, one or one per batch item, in the sampler's convention.

        Right in every dtype: the coefficients come from float64 angles, and the sum is rounded once.

        Raises:
            ValueError: If shapes differ, or no angle belongs to a timestep.
        """
        check_pair(original_samples, noise, ("original_samples", "noise"))
        phi = self._angles(timesteps)
        scale = self._settings().sampler_state.scale(phi)
        return combine(phi.cos() * scale, original_samples, phi.sin() * scale, noise)

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise` as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """The target of a ``v_prediction`` network, cos(phi) noise - sin(phi) sample. Arguments as :meth:`add_noise`."""
        check_pair(sample, noise, ("sample", "noise"))
        return V.target(sample, noise, self._angles(timesteps))

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample in the convention the network was trained on: in sigma-space divided by sqrt(sigma^2 + 1).

        Raises:
            ValueError: If a timestep is needed and missing, or is not on the grid.
        """
        settings = self._settings()
        if settings.network_state == settings.sampler_state:
            return sample
        check_sample(sample, "sample")
        if timestep is None:
            raise ValueError(f"timestep must be given for samples in state {settings.sampler_state.kind!r}, got None")
        phi = float(self._angles(timestep))
        return sample * (settings.network_state.scale(phi) / settings.sampler_state.scale(phi))

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first sample: 1, or in sigma-space that of pure noise.

        As in diffusers: sigma where the spacing reaches the last training timestep, else that of unit-variance data, noised.
        """
        schedule = self._training if self._run is None else self._run.grid
        if schedule.state.kind != "ve":
            return 1.0
        self._require_finite_scale(schedule)
        top = schedule.phi[-1]
        return float(top.tan() if self.config["timestep_spacing"] in ("linspace", "trailing") else 1.0 / top.cos())

    @property
    def sigmas(self) -> Tensor:
        """Noise over signal at each of ``timesteps`` and at the end, float64: tan(phi), or a flow's t."""
        if self._run is None:
            phi = torch.cat([self._training.phi.flip(0), torch.zeros(1, dtype=torch.float64)])
        else:
            phi = torch.from_numpy(np.append(self._run.plan.phi_t, self._run.plan.phi_s[-1]))
        if self._settings().use_flow_sigmas:
            return phi.sin() / (phi.sin() + phi.cos())
        return torch.where(phi == HALF_PI, torch.inf, phi.tan())

    @property
    def alphas_cumprod(self) -> Tensor:
        """cos(phi)^2 of the training schedule, float64. Its 1 - alpha_bar has lost what the angles have not."""
        return self._training.alpha_bar

    def _settings(self) -> SchedulerSettings:
        """The config, read anew: pipelines replace it after construction (steps_offset, clip_sample)."""
        return SchedulerSettings(**{field.name: self.config[field.name] for field in fields(SchedulerSettings)})

    def _angles(self, timesteps: float | Tensor) -> Tensor:
        """float64 angles of timesteps on the run's grid, else of any the training schedule knows."""
        told = torch.as_tensor(timesteps).detach().cpu().double()
        flat = told.reshape(-1).numpy()
        if self._run is not None:
            grid = self._run.grid
            at = grids.find(grid.timesteps.double().numpy(), flat)
            if (at >= 0).all():
                return grid.phi[torch.from_numpy(at)].reshape(told.shape)
        return torch.from_numpy(grids.angles_of_times(self._settings(), self._training, flat)).reshape(told.shape)

    def _require_finite_scale(self, schedule: Schedule) -> None:
        if schedule.state.kind == "ve" and schedule.phi[-1] == HALF_PI:
            raise ValueError(
                f"state must not be 've' where the signal is zero, got 've' at timestep {schedule.timesteps[-1]:g}: sigma is "
                "infinite there; use from_config(config, state='vp'), or timesteps below it"
            )
