"""The configuration: presets of the paper's sizes, round trips, and everything that must be refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import Qwen2Config

from diffparam import EPSILON, V
from mmar.baselines import BASELINES, baseline_config
from mmar.config import DiffusionHeadConfig, EmbeddingViTConfig, ImageTokensConfig, MMARConfig, NoiseScheduleConfig
from mmar.presets import PRESETS

CODES = ImageTokensConfig(tokenizer="vq-16", image_size=8, grid=4, channels=8, codebook_size=32)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_a_file(name: str, tmp_path: Path) -> None:
    config = MMARConfig.preset(name)
    config.save_pretrained(tmp_path)
    assert MMARConfig.from_pretrained(tmp_path).to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)} or (
        MMARConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    )


def test_the_papers_sizes() -> None:
    small, large = MMARConfig.preset("mmar-0.5b"), MMARConfig.preset("mmar-7b")
    assert (small.plora_config.rank, large.plora_config.rank) == (512, 1280)
    assert (small.diffusion_head_config.depth, small.diffusion_head_config.width) == (8, 1024)
    assert (large.diffusion_head_config.depth, large.diffusion_head_config.width) == (12, 2048)
    for config in (small, large):
        assert config.image_config.count == 256
        assert config.image_config.channels == 16
        assert (config.embedding_vit_config.num_hidden_layers, config.embedding_vit_config.hidden_size) == (16, 1024)
        assert (config.projector_config.vis_blocks, config.projector_config.post_blocks) == (2, 1)
        assert config.param is V


def test_a_changed_configuration_leaves_its_preset_alone() -> None:
    before = copy.deepcopy(PRESETS)
    for name in PRESETS:
        config = MMARConfig.preset(name)
        config.text_config.rope_parameters["rope_theta"] = 5.0
        config.image_config.grid = 1
    assert before == PRESETS
    assert MMARConfig.preset("mmar-0.5b").text_config.rope_parameters["rope_theta"] == 1e6


def test_a_parameterization_is_one_switch() -> None:
    config = MMARConfig.preset("mmar-tiny", diffusion_head_config={"prediction_type": "epsilon"})
    assert config.param is EPSILON
    assert config.diffusion_head_config.width == 48  # the rest of the part stays


def test_weights_of_another_space() -> None:
    """An epsilon head with the loss of v weighs its squared error by 1 / alpha_bar."""
    head = DiffusionHeadConfig(prediction_type="epsilon", loss_space="v_prediction")
    schedule = NoiseScheduleConfig().build()
    weight = head.loss_weight(schedule)
    assert weight is not None
    assert (weight * schedule.alpha_bar - 1).abs().max() < 1e-9  # alpha_bar = 2.4e-9 at the end, from cos^2 of float64 angles
    assert DiffusionHeadConfig().loss_weight(schedule) is None
    bounded = DiffusionHeadConfig(prediction_type="epsilon", loss_space="v_prediction", max_loss_weight=1000).loss_weight(
        schedule
    )
    assert bounded is not None
    assert torch.equal(bounded, weight.clamp_max(1000))
    assert 0 < int((bounded == 1000).sum()) < 50  # the last timesteps alone


@pytest.mark.parametrize("options", [{"max_loss_weight": 5.0}, {"loss_space": "v_prediction", "max_loss_weight": 0.0}])
def test_a_bound_needs_weights_and_is_positive(options: dict) -> None:
    with pytest.raises(ValueError, match="max_loss_weight must be positive and needs a loss_space"):
        DiffusionHeadConfig(prediction_type="epsilon", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"typo": 1}, "typo"),
        ({"text_config": {"hiden_size": 4}}, "hiden_size"),
        ({"embedding_vit_config": {"layers": 4}}, "layers"),
        ({"diffusion_head_config": {"prediction_type": "epsilom"}}, "epsilon"),
        ({"diffusion_head_config": {"prediction_type": "edm"}}, "sigma_data"),
        ({"diffusion_head_config": {"depth": 0}}, "depth"),
        ({"embedding_vit_config": {"num_attention_heads": 5}}, "num_attention_heads"),
        ({"image_config": {"grid": 3}}, "grid"),
        ({"image_config": {"codebook_size": 32}}, "masked_codes"),
        ({"image_objective": "masked_codes"}, "codebook_size"),
        ({"schedule_config": {"image_first_timesteps": 2000}}, "image_first_timesteps"),
        ({"image_token_id": 5}, "different"),
        ({"image_loss_weight": -1.0}, "image_loss_weight"),
        (
            {"schedule_config": {"zero_terminal_snr": True}, "diffusion_head_config": {"prediction_type": "epsilon"}},
            "zero_terminal_snr",
        ),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MMARConfig.preset("mmar-tiny", **options)


@pytest.mark.parametrize(
    "options", [{"image_objective": "masked"}, {"plora_config": {"rank": "8"}}, {"schedule_config": {"name": "cosin"}}]
)
def test_wrong_types_and_literals_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError):
        MMARConfig.preset("mmar-tiny", **options)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"mmar-0\.5b"):
        MMARConfig.preset("mmar-1b")


def test_zero_terminal_snr_is_allowed_where_the_output_still_says_something() -> None:
    config = MMARConfig.preset("mmar-tiny", schedule_config={"zero_terminal_snr": True})
    assert float(config.schedule_config.build().alpha_bar[-1]) < 1e-30


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_change_what_they_say_and_nothing_else(name: str) -> None:
    config = MMARConfig.preset("mmar-tiny")
    image = CODES if BASELINES[name].needs_codes else None
    changed = baseline_config(config, name, image_config=image)
    before, after = config.to_dict(), changed.to_dict()
    different = {key for key in before if before[key] != after[key]} - {"image_config"}
    assert different == set(BASELINES[name].options)
    assert changed.text_config.to_dict() == Qwen2Config(**before["text_config"]).to_dict()


def test_a_discrete_baseline_needs_a_codebook() -> None:
    with pytest.raises(ValueError, match="codebook_size"):
        baseline_config(MMARConfig.preset("mmar-tiny"), "vq")
    with pytest.raises(ValueError, match="chameleon"):
        baseline_config(MMARConfig.preset("mmar-tiny"), "no such")


def test_the_vit_has_four_times_its_width_inside() -> None:
    assert EmbeddingViTConfig().intermediate_size == 4096
