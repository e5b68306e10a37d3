"""Whole-image diffusion: the language model denoises all tokens at every solver step (transfusion-like, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffparam import AngularParam, predict_x0
from mmar.generation.drawing import Drawer, Drawing, Report, branches_of
from mmar.generation.randomness import draw_normal
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.solver import guided, solve, solver_plan
from mmar.image_head import WholeImageHead
from mmar.image_input import NoisyTokensInput


@dataclass(frozen=True)
class WholeImageDrawer(Drawer):
    """The text is read once, the image at each solver step.

    Known tokens stand in the state at each step's noise level, with one noise for all steps (replacement). That is a
    heuristic: the model was never told that some tokens are certain.

    Attributes:
        image_input: Noisy tokens to features.
        head: States to outputs.
        settings: Options.
        param: What the outputs mean.
    """

    image_input: NoisyTokensInput
    head: WholeImageHead
    settings: ImageGenerationConfig
    param: AngularParam

    def steps(self, unknown: int) -> int:
        """One per call of the language model."""
        return len(solver_plan(self.settings, self.head.schedule, self.param, self.settings.head_steps))

    def draw(self, drawing: Drawing, report: Report) -> Tensor:
        """As :meth:`Drawer.draw`; what is reported are the clean tokens that the output implies."""
        tokens, known, schedule = drawing.tokens, drawing.known[..., None], self.head.schedule
        count, channels = tokens.shape[1:]
        plan = solver_plan(self.settings, schedule, self.param, self.settings.head_steps)
        dtype = getattr(torch, self.settings.sampler_dtype)
        held: list[Tensor] = []  # noise of the known tokens, drawn after that of the solver: the same with and without them

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            if bool(known.any()):
                held[:] = held or [draw_normal(drawing.sources, (count, channels), tokens.device)]
                x_t = torch.where(known, schedule.add_noise(tokens, held[0], t).to(x_t.dtype), x_t)  # (B, N, C)
            u = guided(self._outputs(drawing, x_t, t).to(dtype), self.settings.guidance_scale)  # (B, N, C)
            phi = float(schedule.phi_at(t)[0])
            clean = predict_x0(u, x_t / schedule.state.scale(phi), phi, param=self.param)  # (B, N, C)
            report(torch.where(known, tokens, clean.float()))
            return u

        drawn = solve(network, plan, drawing.sources, (count, channels), tokens.device, dtype)
        return torch.where(known, tokens, drawn)

    def _outputs(self, drawing: Drawing, x_t: Tensor, t: Tensor) -> Tensor:
        """``(branches, B, N, C)`` outputs, float32."""
        features = self.image_input(x_t, self.head.step_of(t))  # (B, N, H)
        branches = drawing.prompted.rows // len(features)
        z = drawing.prompted.states(features.repeat(branches, 1, 1))[:, 1:]  # (branches B, N, H)
        return branches_of(self.head(z), len(features))
