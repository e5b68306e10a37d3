"""AngularScheduler in pipelines of diffusers with random weights: DDIMPipeline, and Stable Diffusion from prompt to image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from test_angular_scheduler import in_float64  # noqa: F401 a fixture
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffparam import Schedule, SingularParameterization
from diffparam.integrations.diffusers_scheduler import AngularScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
"""The schedule of Stable Diffusion."""


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks).double()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything of a latent text-to-image pipeline but its scheduler, float64."""
    torch.manual_seed(1)
    tokenizer = letters(tmp_path_factory.mktemp("tokenizer"))
    text = CLIPTextConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "max_position_embeddings": tokenizer.model_max_length},
        **{"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0},
    )
    unet = UNet2DConditionModel(
        **{"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
        **{"cross_attention_dim": 16, "attention_head_dim": 4},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        **{"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    models = {"text_encoder": CLIPTextModel(text), "unet": unet, "vae": vae}
    none = dict.fromkeys(("safety_checker", "feature_extractor"))
    return {"tokenizer": tokenizer, **{name: model.double().eval() for name, model in models.items()}, **none}


def letters(folder: Path) -> CLIPTokenizer:
    """A tokenizer of single letters, from files written here."""
    alphabet = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_to_image(parts: dict[str, Any], scheduler: Any, **options: Any) -> Callable[[], dict[str, Tensor]]:
    """A call that draws one guided image from a prompt, and its latents."""
    pipe = quiet(StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False))

    def draw() -> dict[str, Tensor]:
        latents = []
        image = pipe(
            "a cat on a mat",
            **{"height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "pt", "generator": seeded()},
            **{"num_inference_steps": 10, **options},
            callback_on_step_end=lambda pipe, i, t, kept: latents.append(kept["latents"]) or kept,
        ).images
        return {"image": image, "latents": latents[-1]}

    return draw


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the spread of what is expected."""
    return ((actual - expected).abs().max() / expected.std()).item()


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_pipeline_draws_the_same_images(unet: UNet2DModel, prediction: str, clip: bool, eta: float) -> None:
    pipe = quiet(DDIMPipeline(unet, DDIMScheduler(prediction_type=prediction, clip_sample=clip)))

    def draw() -> Tensor:
        return pipe(batch_size=2, num_inference_steps=10, eta=eta, output_type="pt", generator=seeded()).images

    theirs = draw()
    pipe.scheduler = AngularScheduler.from_config(pipe.scheduler.config)
    assert relative(draw(), theirs) < 1e-9
    pipe.scheduler = AngularScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert relative(draw(), theirs) > 1e-3  # the comparison sees another grid


def test_ddim_pipeline_makes_a_ddim_scheduler_of_ours_with_the_same_config(unet: UNet2DModel) -> None:
    """It converts whatever it is given when it is made, so ours is put in afterwards."""
    ours = AngularScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    pipe = DDIMPipeline(unet, ours)
    assert type(pipe.scheduler) is DDIMScheduler
    kept = ("beta_schedule", "prediction_type", "clip_sample", "timestep_spacing", "steps_offset")
    assert {name: pipe.scheduler.config[name] for name in kept} == {name: ours.config[name] for name in kept}


class KnowsTheImage(UNet2DModel):
    """The ideal network where all data are one image: v of the state it is given, at the timestep it is told. Keeps both."""

    def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
        phi = SCHEDULE.phi_at(int(timestep))
        eps = (sample - math.cos(phi) * IMAGE) / math.sin(phi)
        self.seen.append((int(timestep), sample, eps))
        return SimpleNamespace(sample=math.cos(phi) * eps - math.sin(phi) * IMAGE)


SCHEDULE = Schedule.linear()
IMAGE = torch.linspace(-0.9, 0.9, 3 * 64, dtype=torch.float64).reshape(1, 3, 8, 8)


@pytest.mark.parametrize("steps", [7, 20])
def test_on_a_linspace_grid_diffusers_tells_the_network_another_time(unet: UNet2DModel, steps: int) -> None:
    """It steps from t to t - 1000 // n and visits another timestep, so the noise that the network finds changes on the way."""
    ideal = KnowsTheImage.from_config(unet.config).double()
    config = {"prediction_type": "v_prediction", "timestep_spacing": "linspace", "clip_sample": False}
    pipe, off, grids = quiet(DDIMPipeline(ideal, DDIMScheduler(**config))), {}, {}
    for cls in (DDIMScheduler, AngularScheduler):
        ideal.seen = []
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        pipe(num_inference_steps=steps, output_type="pt", generator=seeded())
        eps = ideal.seen[0][2]
        off[cls] = max(relative(state, SCHEDULE.add_noise(IMAGE, eps, t)) for t, state, _ in ideal.seen)
        grids[cls] = [t for t, _, _ in ideal.seen]
    assert grids[AngularScheduler] == grids[DDIMScheduler]
    assert off[AngularScheduler] < 1e-13
    assert off[DDIMScheduler] > 0.01


def test_zero_terminal_snr_with_epsilon_is_refused_where_ddim_draws_nothing(unet: UNet2DModel) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    pipe = quiet(DDIMPipeline(unet, DDIMScheduler(**config)))
    options = {"num_inference_steps": 10, "output_type": "pt", "generator": seeded()}
    assert not pipe(**options).images.isfinite().all()
    pipe.scheduler = AngularScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(SingularParameterization, match=r"'epsilon' is singular at timestep 999 .* start at a smaller timestep"):
        pipe(**options)
    pipe.scheduler = AngularScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    assert pipe(**options).images.isfinite().all()


# -- latents and prompts -------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "ddim v": (DDIMScheduler, {"clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    "heun": (HeunDiscreteScheduler, {"timestep_spacing": "leading"}),
    "dpm": (DPMSolverMultistepScheduler, {}),
    "dpm v": (DPMSolverMultistepScheduler, {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"}),
}


def pair(name: str, **options: Any) -> tuple[Any, AngularScheduler]:
    """A scheduler of diffusers for Stable Diffusion, and ours from its config."""
    cls, own = SCHEDULERS[name]
    theirs = cls(**LATENT, **own)
    return theirs, AngularScheduler.from_config(theirs.config, **options)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion_draws_the_same_images(parts: dict[str, Any], name: str) -> None:
    theirs, ours = pair(name)
    expected, actual = text_to_image(parts, theirs)(), text_to_image(parts, ours)()
    for kind in ("latents", "image"):
        assert expected[kind].dtype is torch.float64
        assert relative(actual[kind], expected[kind]) < 1e-9
    other = text_to_image(parts, ours, num_inference_steps=11)()
    assert relative(other["latents"], expected["latents"]) > 1e-3


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm"])
def test_in_its_own_float32_diffusers_draws_nearly_the_same(parts: dict[str, Any], name: str) -> None:
    """Its table is a float32 product of 1000 factors, right to 1000 * 2^-24 = 6e-5; Euler and DPM-Solver cast the sample."""
    theirs, ours = (text_to_image(parts, scheduler)()["latents"] for scheduler in pair(name))
    difference = relative(ours, theirs)
    assert 1e-9 < difference < 1e-3


def test_a_whole_pipeline_is_saved_and_loaded(parts: dict[str, Any], tmp_path: Path) -> None:
    scheduler = pair("euler", solver="dpm_solver++2m")[1]
    expected = text_to_image(parts, scheduler)()
    pipe = StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded.scheduler) is AngularScheduler
    assert torch.equal(text_to_image(parts, loaded.scheduler)()["image"], expected["image"])


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm", "dpm v"])
def test_image_to_image_starts_in_the_middle(parts: dict[str, Any], name: str) -> None:
    """14 of 28 steps; DPM-Solver starts without memory, and its last step is of second order: the whole run has 15 or more."""
    image, results = torch.linspace(0, 1, 3 * 256, dtype=torch.float64).reshape(1, 3, 16, 16), []
    for scheduler in pair(name):
        pipe = quiet(StableDiffusionImg2ImgPipeline(**parts, scheduler=scheduler, requires_safety_checker=False))
        options = {"strength": 0.5, "num_inference_steps": 28, "output_type": "latent", "generator": seeded()}
        results.append(pipe("a cat", image, **options).images)
    assert relative(results[1], results[0]) < 1e-9


def test_options_that_the_pipeline_replaces_are_read(parts: dict[str, Any]) -> None:
    """Stable Diffusion sets steps_offset = 1 and clip_sample = False on the scheduler it is given, with a warning."""
    scheduler = pair("ddim", steps_offset=0, clip_sample=True)[1]
    with pytest.warns(FutureWarning, match="steps_offset|clip_sample"):
        actual = text_to_image(parts, scheduler)()
    assert scheduler.timesteps[-1] == 1
    assert torch.equal(actual["image"], text_to_image(parts, pair("ddim")[1])()["image"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noising_latents_in_narrow_dtypes(dtype: torch.dtype) -> None:
    """What a fine-tuning script does at t = 1: in bf16 diffusers adds no noise at all, ours as much as float64 does."""
    theirs, ours = pair("ddim")
    latents, noise = (torch.randn(4, 4, 32, 32, generator=seeded(s)).to(dtype) for s in (0, 1))
    t = torch.zeros(4, dtype=torch.long)
    right = ours.add_noise(latents.double(), noise.double(), t)
    added = {s: (s.add_noise(latents, noise, t) - latents).double() for s in (theirs, ours)}
    share = {s: (a * noise.double()).mean().item() / ours.sigmas[-2].atan().sin().item() for s, a in added.items()}
    # The mean of z^2 over 16384 values is 1 to 5 sqrt(2 / 16384) = 0.055; rounding, 2 per cent of the noise, is not correlated.
    assert share[ours] == pytest.approx(1.0, abs=0.06)
    assert ours.add_noise(latents, noise, t).double().sub(right).abs().max() <= 2.0**-8 * right.abs().max()
    if dtype is torch.bfloat16:
        assert share[theirs] == 0
