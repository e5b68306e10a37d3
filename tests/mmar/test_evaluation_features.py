"""The feature network: what it learns, that a seed gives it again, and that a file is what was saved."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmar.data.scenes import Glyph, Scene, SceneObject
from mmar.evaluation.feature_labels import SCENE_LABELS, labelled_pictures, scene_labels
from mmar.evaluation.feature_network import FeatureNetwork, FeatureSizes
from mmar.evaluation.feature_training import label_accuracy, train_feature_network

SMALL = {"num_features": 32, "widths": (16, 32), "batch_size": 64, "lr": 1e-2}


@pytest.fixture(scope="module")
def digits() -> FeatureNetwork:
    return train_feature_network("digits", steps=60, **SMALL)


def test_it_learns_digits(digits: FeatureNetwork) -> None:
    """A guess is right on a tenth; the control is a network of one step."""
    right, whole = label_accuracy(digits, 300)
    assert right >= whole > 0.5
    assert label_accuracy(train_feature_network("digits", steps=1, **SMALL), 300)[1] < 0.2


def test_scene_labels_say_what_is_there() -> None:
    scene = Scene(
        (SceneObject("red", "ring", "large", 1, 1), SceneObject("blue", "bar", "small", 14, 13)), "grey", Glyph("A", 24, 23)
    )
    shown = {name for name, label in zip(SCENE_LABELS, scene_labels(scene), strict=True) if label}
    assert shown == {
        "grey", "red", "blue", "ring", "bar", "large", "small", "character", "2 objects", "red ring", "blue bar",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["scenes", "digits"])
def test_pictures_are_as_they_say(kind: str) -> None:
    pictures = labelled_pictures(kind)
    for sample in (pictures.train, pictures.test):
        pixels, labels = sample(Random(1), 5)
        assert pixels.shape == (5, pictures.channels, pictures.image_size, pictures.image_size)
        assert labels.shape == (5, pictures.labels)
        assert pixels.dtype == labels.dtype == np.float32
        assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
        again, _ = sample(Random(1), 5)
        assert (again == pixels).all()
        assert (sample(Random(2), 5)[0] != pixels).any()


def test_a_seed_gives_the_network_again_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    networks = [train_feature_network("scenes", steps=2, seed=seed, **{**SMALL, "batch_size": 8}) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert networks[0].digest == networks[1].digest != networks[2].digest


def test_saved_and_loaded(digits: FeatureNetwork, tmp_path: Path) -> None:
    digits.save(tmp_path / "features.safetensors")
    loaded = FeatureNetwork.load(tmp_path / "features.safetensors")
    pixels = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(pixels), digits(pixels))
    assert loaded.digest == digits.digest
    assert loaded.sizes == digits.sizes
    assert not loaded.training
    assert loaded.name == "digit features"


def test_other_weights_under_the_same_digest_are_found(digits: FeatureNetwork, tmp_path: Path) -> None:
    digits.save(tmp_path / "features.safetensors")
    tensors = load_file(tmp_path / "features.safetensors")
    tensors["head.bias"][0] += 1.0
    from safetensors import safe_open

    with safe_open(tmp_path / "features.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "changed.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"must have the digest in its header, got another"):
        FeatureNetwork.load(tmp_path / "changed.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"must be written by FeatureNetwork\.save"):
        FeatureNetwork.load(tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        FeatureNetwork.load(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="train_feature_network makes one"):
        FeatureNetwork.load(tmp_path / "nowhere.safetensors")


def test_bad_options_are_refused(digits: FeatureNetwork) -> None:
    with pytest.raises(ValueError, match="kind must be one of scenes, digits, got 'photos'"):
        train_feature_network("photos")
    with pytest.raises(ValueError, match="steps and batch_size must be at least 1, got 0 and 64"):
        train_feature_network("digits", steps=0)
    with pytest.raises(ValueError, match="halve a side of 8 pixels evenly"):
        FeatureSizes("digits", widths=(8, 8, 8, 8))
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        FeatureSizes("digits", num_features=0)
    with pytest.raises(ValueError, match=r"pixels must be of shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        digits(torch.zeros(2, 3, 8, 8))
