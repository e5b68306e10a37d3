"""How near drawn pictures are to real ones, by the features of a network that learnt the same kind of pictures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmar.evaluation.feature_network import FeatureNetwork
from mmar.evaluation.precision_recall import precision_recall

MOST_IN_SUBSET = 1000
"""Pictures in each subset of the kernel distance, as in its paper (Binkowski et al. 2018), where there are as many."""


@dataclass(frozen=True)
class Fidelity:
    """Distances between two sets of pictures. None of them is FID, which is by Inception's features.

    Attributes:
        features: What they are by, such as ``scene features``.
        network: Digest of the feature network; results of different networks do not compare.
        frechet: Frechet distance of two normal distributions with the means and covariances of the features.
        kernel: Squared maximum mean discrepancy with a cubic kernel, unbiased: about 0, or below, for equal distributions.
        kernel_spread: Standard deviation of it over subsets.
        precision: Share of drawn pictures that look real.
        recall: Share of real pictures that could have been drawn.
        real: Number of pictures.
        generated: Number of pictures. The Frechet distance is biased upwards by small numbers: compare at equal ones only,
            and with the distance between two sets of real pictures.
    """

    features: str
    network: str
    frechet: float
    kernel: float
    kernel_spread: float
    precision: float
    recall: float
    real: int
    generated: int

    def to_dict(self) -> dict[str, float | int | str]:
        """For records and tables; the names say by which features."""
        return {
            f"Frechet distance ({self.features})": self.frechet,
            f"kernel distance ({self.features})": self.kernel,
            f"spread of the kernel distance ({self.features})": self.kernel_spread,
            f"precision ({self.features})": self.precision,
            f"recall ({self.features})": self.recall,
            "real pictures": self.real,
            "generated pictures": self.generated,
            "feature network": self.network,
        }


def measure_fidelity(
    network: FeatureNetwork,
    real: Sequence[Image.Image],
    generated: Sequence[Image.Image],
    *,
    neighbours: int = 3,
    subsets: int = 100,
    seed: int = 0,
) -> Fidelity:
    """Compare drawn pictures with real ones.

    Args:
        network: Of the kind of pictures.
        real: Of the network's size and colours; test pictures, not those that the model was trained on.
        generated: Likewise.
        neighbours: See :func:`mmar.evaluation.precision_recall.precision_recall`.
        subsets: Of the kernel distance.
        seed: Of the subsets.

    Raises:
        ValueError: If a picture has another size or there are too few.
        ImportError: If torchmetrics is missing.
    """
    sets = [picture_batch(network, pictures) for pictures in (real, generated)]
    if min(map(len, sets)) <= max(1, neighbours):
        raise ValueError(
            f"real and generated must each hold more than {max(1, neighbours)} pictures, got {len(real)} and {len(generated)}"
        )
    kernel, spread = kernel_distance(network, *sets, subsets=subsets, seed=seed)
    with torch.no_grad():
        features = [torch.cat([network(part) for part in _parts(pixels)]) for pixels in sets]
    precision, recall = precision_recall(*features, neighbours=neighbours)
    frechet = frechet_distance(network, *sets)
    return Fidelity(network.name, network.digest, frechet, kernel, spread, precision, recall, len(real), len(generated))


def frechet_distance(network: FeatureNetwork, real: Tensor, generated: Tensor) -> float:
    r"""Frechet distance of two normal distributions fitted to the features (torchmetrics).

    .. math:: \|\mu - \mu'\|^2 + \operatorname{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    Args:
        network: Gives the features.
        real: ``(m, C, S, S)`` float32 in [0, 1]; see :func:`picture_batch`.
        generated: ``(n, C, S, S)``, as ``real``.
    """
    image = _torchmetrics()
    metric = image.fid.FrechetInceptionDistance(feature=network, normalize=True)
    return float(_filled(metric, real, generated).compute())


def kernel_distance(
    network: FeatureNetwork, real: Tensor, generated: Tensor, *, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of the features: mean and standard deviation over random subsets (torchmetrics).

    Args:
        network: Gives the features.
        real: As in :func:`frechet_distance`.
        generated: As above.
        subsets: Number.
        seed: Of their choice; torch's own generator is left as it was.
    """
    image = _torchmetrics()
    size = min(MOST_IN_SUBSET, len(real), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)  # 64 numbers a picture
        metric = image.kid.KernelInceptionDistance(feature=network, subsets=subsets, subset_size=size, normalize=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, spread = _filled(metric, real, generated).compute()
    return float(mean), float(spread)


def picture_batch(network: FeatureNetwork, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as ``(n, C, S, S)`` float32 in [0, 1].

    Raises:
        ValueError: If there are none, or one has another size than the network's.
    """
    side = network.image_size
    wrong = [picture.size for picture in pictures if picture.size != (side, side)]
    if not pictures or wrong:
        got = f"{wrong[0][0]} x {wrong[0][1]}" if wrong else "none"
        raise ValueError(f"pictures must be of {side} x {side} pixels for {network.name}, got {got}")
    mode = "RGB" if network.channels == 3 else "L"
    arrays = [np.asarray(picture.convert(mode), dtype=np.float32).reshape(side, side, -1) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255.0


def _filled(metric, real: Tensor, generated: Tensor):  # type: ignore[no-untyped-def]  # a metric of torchmetrics
    for pixels, is_real in ((real, True), (generated, False)):
        for part in _parts(pixels):
            metric.update(part, real=is_real)
    return metric


def _parts(pixels: Tensor) -> Iterator[Tensor]:
    yield from pixels.split(256)


def _torchmetrics():  # type: ignore[no-untyped-def]  # a module
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.kid
    except ImportError as error:
        raise ImportError("torchmetrics must be installed: it has the distances; pip install 'diffparam[mmar]'") from error
    return torchmetrics.image
