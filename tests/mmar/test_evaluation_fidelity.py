"""Distances of pictures: against scipy and the definition, and in the order in which pictures get worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from mmar.data.digits import DigitDataset
from mmar.evaluation.feature_network import FeatureNetwork
from mmar.evaluation.feature_training import train_feature_network
from mmar.evaluation.fidelity import frechet_distance, kernel_distance, measure_fidelity, picture_batch

COUNT = 200


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return train_feature_network("digits", num_features=16, widths=(16, 16), steps=40, batch_size=64, lr=1e-2)


@pytest.fixture(scope="module")
def scans() -> list[Image.Image]:
    data = DigitDataset("test", caption_only=True)
    return [data[i].image for i in range(2 * COUNT)]


def noisy(pictures: list[Image.Image], levels: float) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    arrays = [np.asarray(one, dtype=float) + levels * rng.standard_normal((8, 8)) for one in pictures]
    return [Image.fromarray(array.clip(0, 255).astype(np.uint8)) for array in arrays]


def test_the_frechet_distance_is_scipys(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    """Features are single precision; of the covariances' root scipy's Schur method keeps about 1e-7."""
    pixels = picture_batch(network, scans[:COUNT]), picture_batch(network, noisy(scans[COUNT:], 60.0))
    a, b = (network(one).double().numpy() for one in pixels)
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert expected > 0.01
    assert frechet_distance(network, *pixels) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_is_the_definition(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    """With subsets of all pictures every subset gives the same: the unbiased estimate with the kernel (x y / F + 1)^3."""
    pixels = picture_batch(network, scans[:COUNT]), picture_batch(network, noisy(scans[COUNT:], 60.0))
    x, y = (network(one).double() for one in pixels)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    expected = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    mean, spread = kernel_distance(network, *pixels, subsets=3)
    assert mean == pytest.approx(float(expected), rel=1e-2)  # a difference of means in single precision
    assert spread < 1e-2 * mean


def test_worse_pictures_are_further(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    real = scans[:COUNT]
    fidelities = [measure_fidelity(network, real, noisy(scans[COUNT:], levels), subsets=5) for levels in (0.0, 40.0, 120.0)]
    assert fidelities[0].frechet < fidelities[1].frechet < fidelities[2].frechet
    assert fidelities[0].kernel < fidelities[2].kernel
    assert fidelities[0].precision > fidelities[2].precision


def test_one_picture_for_all_is_precise_but_not_varied(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    collapsed = measure_fidelity(network, scans[:COUNT], [scans[0]] * COUNT, subsets=2)
    varied = measure_fidelity(network, scans[:COUNT], scans[COUNT:], subsets=2)
    assert collapsed.precision == 1.0
    assert collapsed.recall <= 2 / COUNT < varied.recall
    assert collapsed.frechet > varied.frechet


def test_the_same_pictures_are_at_no_distance(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    same = measure_fidelity(network, scans[:COUNT], scans[:COUNT], subsets=2)
    assert abs(same.frechet) < 1e-4
    assert (same.precision, same.recall) == (1.0, 1.0)


def test_results_are_named_by_their_features_and_never_fid(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, again, other = (measure_fidelity(network, scans[:50], scans[50:90], subsets=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == again
    assert one.kernel != other.kernel  # subsets of 40 out of 50
    told = one.to_dict()
    assert told["Frechet distance (digit features)"] == one.frechet
    assert told["feature network"] == network.digest
    assert (told["real pictures"], told["generated pictures"]) == (50, 40)
    assert "fid" not in " ".join(told).lower()


def test_bad_pictures_are_refused(network: FeatureNetwork, scans: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="must be of 8 x 8 pixels for digit features, got 9 x 8"):
        measure_fidelity(network, scans[:10], [Image.new("L", (9, 8))] * 10)
    with pytest.raises(ValueError, match="must be of 8 x 8 pixels for digit features, got none"):
        measure_fidelity(network, scans[:10], [])
    with pytest.raises(ValueError, match="each hold more than 3 pictures, got 10 and 3"):
        measure_fidelity(network, scans[:10], scans[:3])
