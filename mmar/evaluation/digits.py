"""Whether drawn digits are the digits that were asked for: a classifier trained on real scans decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmar.data.digits import LEVELS, load_scans, split_scans


class DigitReader:
    """A support vector machine on the pixels of the training scans, as in scikit-learn's own example.

    It has seen neither the test scans nor anything that a model drew; :meth:`ceiling` is its share of right test scans.

    Raises:
        ImportError: If scikit-learn is missing.
    """

    def __init__(self) -> None:
        levels, labels = load_scans()
        from sklearn.svm import SVC  # load_scans has said so where it is missing

        train = split_scans(labels, "train")
        self._machine: Any = SVC(gamma=0.001).fit(_flat(levels[train]), labels[train])

    def read(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Digits ``(n,)`` of grey pictures of 8 x 8 pixels.

        Raises:
            ValueError: If a picture has another size.
        """
        wrong = [image.size for image in images if image.size != (8, 8)]
        if wrong:
            raise ValueError(f"images must be of 8 x 8 pixels, got {wrong[0][0]} x {wrong[0][1]}")
        pixels = np.stack([np.asarray(image.convert("L"), dtype=np.float64) * (LEVELS / 255.0) for image in images])
        return np.asarray(self._machine.predict(_flat(pixels)))

    def ceiling(self) -> float:
        """Share of right test scans."""
        levels, labels = load_scans()
        test = split_scans(labels, "test")
        return float((self._machine.predict(_flat(levels[test])) == labels[test]).mean())


def _flat(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(len(levels), -1).astype(np.float64)
