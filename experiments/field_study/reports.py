"""Two public reports as data: what was trained, how it was sampled, what people tried, and what our prediction suggests.

The noisy end, kwsong0113/diffusion-forcing-transformer issue 11 (March 2025): the repository's video model with epsilon in
place of v. "The sampling always looks terrible, despite the loss converging"; the predicted clean samples have a standard
deviation far above 1, and alpha_bar is suspected. The thread prints no schedule; here the repository's defaults, cosine with
1000 steps, 50 DDIM steps from the last, predicted noise clipped at 20.

The clean end, LTH14/JiT issue 13 (November 2025): a network that outputs the clean sample, trained on the loss of the velocity,
the squared error times 1/n^2 at the noise level n. "Instability when t is close to 1" (n close to 0), in mixed precision,
in latents. What the thread tries: float32, and n clamped at 0.05. The published sampler clamps too (issues 24 and 59 ask why).

What is ours: the data (digit scans of unit variance), the head, uniform timesteps, and states that preserve the variance.
Neither thread says how its timesteps were drawn; JiT's defaults, logit-normal with mean -0.8 and deviation 0.8 of 1 - n, fall
below n = 0.05 about once in a million draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from diffparam import EPSILON, FLOW, VP, X0, AngularParam, Schedule, V, largest_safe_timestep, loss_weight
from experiments.field_study.guards import ClampTime, ClipData, ClipOutput, NoGuard
from experiments.head_study.arms import Arm

FOLK_CLAMP = 0.05
"""Noise level below which JiT's loss and sampler stop dividing by it."""
NO_GUARD = NoGuard()
OWN_ERROR = "start by own error"
"""Label of the run whose start follows from the trained head."""


@dataclass(frozen=True)
class Head:
    """One network to train.

    Attributes:
        arm: What it outputs and in which precision it is trained.
        loss_space: In whose squared error the loss is measured; its own by default.
        bound: Largest weight that this gives a timestep.
    """

    arm: Arm
    loss_space: AngularParam | None = None
    bound: float = math.inf

    def weight(self, schedule: Schedule) -> Tensor | None:
        """Weight per timestep, float64 ``(len(schedule),)``; None is 1."""
        if self.loss_space is None:
            return None
        return loss_weight(schedule.phi, source=self.arm.param, target=self.loss_space).clamp(max=self.bound)


@dataclass(frozen=True)
class Run:
    """One way to sample from a head.

    Attributes:
        label: As tables print it.
        start: First timestep.
        guard: What is done to the output.
    """

    label: str
    start: int
    guard: NoGuard = NO_GUARD


@dataclass(frozen=True, eq=False)
class Report:
    """One thread.

    Attributes:
        thread: Where it stands.
        schedule: Its noise.
        end: The timestep of the complaint.
        tail: Timesteps, from and to, of the bin whose loss is watched during training.
        timesteps: Where the heads are measured.
        heads: By name.
        runs: By parameterization, by name.
        parts: Heads for the decomposition: what was reported and its cure, each in bf16 and in float32.
        limited: The output whose start is also chosen by the trained head's own error; None for none.
    """

    thread: str
    schedule: Schedule
    end: int
    tail: tuple[int, int]
    timesteps: tuple[int, ...]
    heads: Mapping[str, Head]
    runs: Mapping[str, Mapping[str, Run]]
    parts: Mapping[str, str]
    limited: AngularParam | None = None

    def label(self, output: str, run: str) -> str:
        """Of a run of an output, by name."""
        return OWN_ERROR if run == "own_error" else self.runs[output][run].label

    def grid(self, run: Run, steps: int) -> Schedule:
        """The sampling grid: every k-th timestep counted from the start, as both repositories do; all where there are fewer."""
        part = self.schedule.up_to(run.start)
        return part.respace(min(steps, len(part)), "trailing")


def _pair(
    name: str, label: str, param: AngularParam, space: AngularParam | None = None, bound: float = math.inf
) -> dict[str, Head]:
    """The same head trained in float32 and with a bf16 forward pass."""
    return {
        f"{name}_float32": Head(Arm(f"{name}_float32", f"{label}, float32", param, "float32"), space, bound),
        f"{name}_bf16": Head(Arm(f"{name}_bf16", f"{label}, bf16", param, "mixed"), space, bound),
    }


def _noisy_end() -> Report:
    schedule = Schedule.cosine(1000)
    last = len(schedule) - 1
    by_rms, by_epsilon = (int(largest_safe_timestep(schedule, param=EPSILON, delta=d) or 0) for d in ("rms", "machine_epsilon"))
    return Report(
        thread="kwsong0113/diffusion-forcing-transformer issue 11",
        schedule=schedule,
        end=last,
        tail=(900, last),
        timesteps=(100, 300, 500, 700, 800, 900, by_epsilon, 970, 980, by_rms, 993, 996, 998, last),
        heads={**_pair("eps", "eps", EPSILON), **_pair("v", "v", V)},
        runs={
            EPSILON.name: {
                "reported": Run("as reported", last),
                "clip_noise": Run("noise clipped at 20", last, ClipOutput(20.0)),
                "clip_data": Run("clean sample clipped", last, ClipData(0.0, 16.0)),
                "safe_rms": Run(f"start at t = {by_rms}", by_rms),
                "safe_epsilon": Run(f"start at t = {by_epsilon}", by_epsilon),
            },
            V.name: {"reported": Run("v output", last)},
        },
        parts={"eps_mixed": "eps_bf16", "v_mixed": "v_bf16", "eps_float32": "eps_float32", "v_float32": "v_float32"},
        limited=EPSILON,
    )


def _clean_end() -> Report:
    schedule = Schedule.rectified_flow(1000).with_state(VP)
    bound = FOLK_CLAMP**-2
    return Report(
        thread="LTH14/JiT issue 13",
        schedule=schedule,
        end=1,
        tail=(1, 100),
        timesteps=(1, 2, 4, 7, 10, 17, 25, 39, 50, 78, 100, 150, 250, 400, 600, 800, 1000),
        heads={
            **_pair("x", "x, no clamp", X0, FLOW),
            **_pair("xclamp", f"x, clamp {FOLK_CLAMP}", X0, FLOW, bound),
            **_pair("flow", "flow", FLOW),
        },
        runs={
            X0.name: {
                "reported": Run("x output", 1000),
                "clamp_time": Run(f"x, sampler clamps {FOLK_CLAMP}", 1000, ClampTime(FOLK_CLAMP)),
            },
            FLOW.name: {"reported": Run("flow output", 1000)},
        },
        parts={"eps_mixed": "x_bf16", "v_mixed": "flow_bf16", "eps_float32": "x_float32", "v_float32": "flow_float32"},
    )


REPORTS = {"noisy_end": _noisy_end(), "clean_end": _clean_end()}
