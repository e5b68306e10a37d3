"""A small convolutional classifier whose features say how near two sets of pictures are, in place of Inception.

Inception has learnt photographs; of drawn scenes or digits of 8 x 8 pixels its features say little. This one learns the same
kind of pictures as are measured, and its distances are named after it: they are not FID and compare with nothing outside.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mmar.evaluation.feature_labels import labelled_pictures
from mmar.tokenizers.saved import digest
from mmar.weight_files import TensorSource, copy_strictly


@dataclass(frozen=True)
class FeatureSizes:
    """What a feature network is.

    Attributes:
        kind: Of pictures, a name in :data:`mmar.evaluation.feature_labels.PICTURES`.
        num_features: Numbers that describe a picture.
        widths: Channels after each halving of the side.
    """

    kind: str
    num_features: int = 64
    widths: tuple[int, ...] = (32, 64)

    def __post_init__(self) -> None:
        side = labelled_pictures(self.kind).image_size
        if self.num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {self.num_features}")
        if not self.widths or min(self.widths) < 1 or side % 2 ** len(self.widths):
            raise ValueError(f"widths must be positive and halve a side of {side} pixels evenly, got {self.widths}")


class FeatureNetwork(nn.Module):
    """Pictures to features, and to the labels that they were learnt from.

    Args:
        sizes: See :class:`FeatureSizes`.
    """

    def __init__(self, sizes: FeatureSizes) -> None:
        super().__init__()
        self.sizes, self.num_features = sizes, sizes.num_features  # torchmetrics asks for num_features
        pictures = labelled_pictures(sizes.kind)
        self.image_size, self.channels = pictures.image_size, pictures.channels
        widths = (pictures.channels, *sizes.widths)
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in pairwise(widths)))
        self.describe = nn.Conv2d(sizes.widths[-1], sizes.num_features, 1)
        self.head = nn.Linear(sizes.num_features, pictures.labels)

    @property
    def name(self) -> str:
        """Of the features, for the names of results: ``scene features``."""
        return f"{self.sizes.kind.removesuffix('s')} features"

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``(B, F)``, means over places: what is there rather than where, of pixels ``(B, C, S, S)`` in [0, 1].

        Raises:
            ValueError: If the pixels have another shape.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"pixels must be of shape (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}")
        h = functional.relu(self.describe(self.stages(2.0 * pixels - 1.0)))  # (B, F, s, s)
        return h.mean((2, 3))  # (B, F)

    def logits(self, pixels: Tensor) -> Tensor:
        """``(B, L)``, positive where a label is more likely than not."""
        out: Tensor = self.head(self(pixels))
        return out

    @property
    def digest(self) -> str:
        """SHA-256 of sizes and weights: results of different networks do not compare."""
        return digest(state=self.state_dict(), settings=asdict(self.sizes))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with sizes and digest in its header."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"feature_network": json.dumps(asdict(self.sizes)), "sha256": self.digest})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no feature network, or its weights are not those that were saved.
        """
        metadata = _metadata(Path(path))
        sizes = json.loads(metadata["feature_network"])
        network = cls(FeatureSizes(**{**sizes, "widths": tuple(sizes["widths"])}))
        copy_strictly(TensorSource.of(path), network.state_dict(), remedy="save the network anew")
        if network.digest != metadata.get("sha256"):
            raise ValueError(f"weights of {str(path)!r} must have the digest in its header, got another; save the network anew")
        return network.eval().requires_grad_(False)


def _stage(width_in: int, width_out: int) -> nn.Sequential:
    """Half the side: ``(B, w, s, s)`` to ``(B, w', s / 2, s / 2)``."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=2, padding=1),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
        nn.Conv2d(width_out, width_out, 3, padding=1),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"a feature network must be an existing file, got {str(path)!r}; train_feature_network makes one"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} must be a safetensors file, got {error}") from error
    if "feature_network" not in metadata:
        raise ValueError(f"{str(path)!r} must be written by FeatureNetwork.save, got a safetensors file of something else")
    return metadata
