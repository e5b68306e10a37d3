"""Holes made by hand are found where they are, and clean pictures have none."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from mmar.data.digits import load_scans, split_scans, to_image
from mmar.data.scenes import Scene, SceneObject, detect, draw
from mmar.data.scenes.sampling import sample_scene
from mmar.evaluation.holes import THRESHOLD, explanation, hole_share, patch_residuals, scene_holes
from mmar.evaluation.patch_surprise import PatchSurprise

SCENE = Scene((SceneObject("red", "square", "large", 2, 2), SceneObject("blue", "circle", "large", 20, 18)), "white")


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = Random(seed)
    return [sample_scene(rng, "test").scene for _ in range(count)]


def changed(image: Image.Image, row: int, column: int, value: object, patch: int = 4) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[patch * row : patch * (row + 1), patch * column : patch * (column + 1)] = value
    return Image.fromarray(pixels)


# -- scenes ------------------------------------------------------------------------------------------------------------------


def test_clean_scenes_are_explained_completely() -> None:
    """Up to half a level, by which pictures are rounded to 8 bits."""
    for scene in scenes(8):
        assert np.abs(255 * explanation(detect(draw(scene))) - np.asarray(draw(scene))).max() <= 0.5 + 1e-9
        assert hole_share(draw(scene)) == 0.0
    assert hole_share(draw(SCENE, 64)) == 0.0


@pytest.mark.parametrize("value", [0, 128, (255, 0, 255)])
def test_a_hole_in_the_background_is_found_where_it_is(value: object) -> None:
    holes = scene_holes(changed(draw(SCENE), 7, 1, value))
    assert holes.sum() == 1
    assert holes[7, 1]
    assert hole_share(changed(draw(SCENE, 64), 7, 1, value, patch=8)) == 1 / 64


def test_a_hole_in_an_object_is_found() -> None:
    """The background where the square should be red: its middle is further than one unit from any white."""
    assert scene_holes(changed(draw(SCENE), 1, 1, 255))[1, 1]


def test_patches_of_noise_are_found() -> None:
    """Static over a quarter of the picture, as an untouched latent decodes; some of it the detector takes for things."""
    found = []
    for i, scene in enumerate(scenes(4, seed=1)):
        pixels = np.asarray(draw(scene)).copy()
        pixels[:16, :16] = np.random.default_rng(i).integers(0, 256, (16, 16, 3))
        holes = scene_holes(Image.fromarray(pixels))
        found.append(holes[:4, :4].mean())
        assert not holes[5:, 5:].any()
    assert np.mean(found) > 0.6


def test_soft_and_noisy_pictures_are_no_holes() -> None:
    """A decoder that loses half a unit of focus and adds noise of 10 levels: at most one patch in a hundred."""
    shares = []
    for i, scene in enumerate(scenes(5, seed=2)):
        pixels = gaussian_filter(np.asarray(draw(scene)).astype(float), (0.5, 0.5, 0))
        pixels += 10 * np.random.default_rng(i).standard_normal(pixels.shape)
        shares.append(hole_share(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))))
    assert np.mean(shares) <= 0.01


def test_a_missing_object_is_no_hole() -> None:
    assert hole_share(draw(Scene(SCENE.objects[:1], "white"))) == 0.0


def test_the_residual_of_a_flat_patch_is_its_distance() -> None:
    """51 of 255 levels in each colour is a root mean square of 0.2; the threshold lies between it and a picture as drawn."""
    residuals = patch_residuals(changed(draw(SCENE), 7, 1, 204))
    assert residuals[7, 1] == pytest.approx(0.2)
    assert np.sort(residuals.ravel())[-2] < 1e-9 < THRESHOLD < 0.2


def test_bad_options_of_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="patch must divide 32 units, got 5"):
        scene_holes(draw(SCENE), patch=5)
    with pytest.raises(ValueError, match="threshold must be positive, got 0"):
        scene_holes(draw(SCENE), threshold=0)
    with pytest.raises(ValueError, match="size must be a multiple of 32 pixels, got 40"):
        scene_holes(Image.new("RGB", (40, 40)))


# -- digits ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans() -> dict[str, list[Image.Image]]:
    levels, digits = load_scans()
    train, test = ([to_image(levels[i]) for i in split_scans(digits, split)] for split in ("train", "test"))
    return {"train": train, "threshold": test[::2], "test": test[1::2]}


@pytest.fixture(scope="module")
def surprise(scans: dict[str, list[Image.Image]]) -> PatchSurprise:
    return PatchSurprise.fit(scans["train"], scans["threshold"])


def test_real_digits_have_as_many_holes_as_the_threshold_allows(
    surprise: PatchSurprise, scans: dict[str, list[Image.Image]]
) -> None:
    """1 % of 222 x 16 patches; patches of a scan are not independent, hence a factor of two."""
    assert 0.005 < surprise.holes(scans["test"]).mean() < 0.02


def test_holes_in_digits_are_found(surprise: PatchSurprise, scans: dict[str, list[Image.Image]]) -> None:
    """The darkest patch of four inner ones made white: found far more often than any other patch is accused."""
    hits, others = [], []
    for one in scans["test"][:100]:
        ink = np.asarray(one, dtype=float).reshape(4, 2, 4, 2).mean((1, 3))[1:3, 1:3]
        row, column = (int(i) + 1 for i in np.unravel_index(ink.argmin(), ink.shape))
        value = 255 if ink.min() < 128 else 0
        holes = surprise.holes([changed(one, row, column, value, patch=2)])[0]
        hits.append(holes[row, column])
        corner = [holes[0, 0], holes[3, 0], holes[0, 3], holes[3, 3]]
        others.append(np.mean(corner))
    assert np.mean(hits) > 0.5
    assert np.mean(hits) > 10 * np.mean(others)


def test_surprise_is_the_conditional_normal() -> None:
    """Against the textbook formula with blocks of the covariance, and one on average for draws from the very distribution."""
    rng = np.random.default_rng(0)
    factor = 0.04 * rng.standard_normal((16, 16))
    levels = (0.5 + rng.standard_normal((4000, 16)) @ factor).clip(0, 1)
    pictures = [Image.fromarray((255 * one).round().astype(np.uint8).reshape(4, 4)) for one in levels]
    fitted = PatchSurprise.fit(pictures, pictures, ridge=1e-9)
    found = fitted.surprise(pictures)
    x = np.stack([np.asarray(one, dtype=float).ravel() / 255 for one in pictures])
    p, q = np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7, *range(8, 16)])
    s = np.cov(x, rowvar=False)
    gain = s[np.ix_(p, q)] @ np.linalg.inv(s[np.ix_(q, q)])
    residual = x[:, p] - x[:, p].mean(0) - (x[:, q] - x[:, q].mean(0)) @ gain.T
    inverse = np.linalg.inv(s[np.ix_(p, p)] - gain @ s[np.ix_(q, p)])
    expected = np.einsum("ni,ij,nj->n", residual, inverse, residual) / 4
    assert found[:, 0, 0] == pytest.approx(expected, rel=1e-4)
    assert found.mean() == pytest.approx(1.0, abs=0.01)  # exact but for the ridge: the same draws gave the covariance


def test_bad_options_of_digits_are_refused(scans: dict[str, list[Image.Image]], surprise: PatchSurprise) -> None:
    few = scans["train"][:80]
    cases = [
        ({"false_alarms": 1.0}, few, r"false_alarms must lie in \(0, 1\)"),
        ({"ridge": 0.0}, few, "ridge must be positive"),
        ({"patch": 3}, few, "patch must divide the side of 8 pixels, got 3"),
        ({}, few[:64], "pictures must number more than their 64 pixels, got 64"),
        ({}, [], "pictures must be squares of one size, got none"),
        ({}, [Image.new("L", (8, 9))], "pictures must be squares of one size"),
    ]
    for options, pictures, message in cases:
        with pytest.raises(ValueError, match=message):
            PatchSurprise.fit(pictures, few, **options)
    with pytest.raises(ValueError, match=r"pictures must be of 8 x 8 pixels, as those of fit, got \(4, 4\)"):
        surprise.surprise([Image.new("L", (4, 4))])
