r"""Holes in pictures without a detector: patches that the rest of the picture makes surprising.

Real pictures are taken for draws from one normal distribution with precision matrix :math:`\Lambda`. Given all other pixels, a
patch p is then normal with precision :math:`\Lambda_{pp}`, and its distance from its mean is

.. math:: \Lambda_{pp}^{-1} r_p, \qquad r = \Lambda (x - \mu),

so one matrix serves every patch. Good for small pictures that are alike, such as digits of 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class PatchSurprise:
    """Statistics of real grey pictures.

    Attributes:
        mean: ``(S S,)``, levels in [0, 1].
        precision: ``(S S, S S)``, inverse covariance.
        patch: Side of a patch, pixels.
        threshold: Surprise that a share of real pictures' patches reaches; see :meth:`fit`.
    """

    mean: np.ndarray
    precision: np.ndarray
    patch: int
    threshold: float

    @classmethod
    def fit(
        cls,
        pictures: Sequence[Image.Image],
        others: Sequence[Image.Image],
        *,
        patch: int = 2,
        false_alarms: float = 0.01,
        ridge: float = 1e-3,
    ) -> Self:
        """Measure real pictures.

        Args:
            pictures: For mean and covariance; many more than a picture has pixels.
            others: Other real pictures, which set the threshold.
            patch: Side of a patch, pixels; the side of an image token.
            false_alarms: Share of the patches of ``others`` that count as holes.
            ridge: Added to the variances: a pixel that is always black would make every grey infinitely surprising.

        Raises:
            ValueError: If pictures are too few or differ in size, or an option is out of range.
        """
        if not 0 < false_alarms < 1:
            raise ValueError(f"false_alarms must lie in (0, 1), a share of real patches, got {false_alarms}")
        if not ridge > 0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        x = _flat(pictures)
        side = pictures[0].size[0]
        if patch < 1 or side % patch:
            raise ValueError(f"patch must divide the side of {side} pixels, got {patch}")
        if len(x) <= x.shape[1]:
            raise ValueError(f"pictures must number more than their {x.shape[1]} pixels, got {len(x)}")
        covariance = np.cov(x, rowvar=False) + ridge * np.eye(x.shape[1])
        bare = cls(x.mean(0), np.linalg.inv(covariance), patch, np.inf)
        threshold = float(np.quantile(bare.surprise(others), 1 - false_alarms))
        return cls(bare.mean, bare.precision, patch, threshold)

    def surprise(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        r"""Squared distance of each patch from its mean given the rest, in standard deviations, per pixel.

        .. math:: \frac{1}{|p|} r_p^T \Lambda_{pp}^{-1} r_p

        Its mean is 1 for pictures of the very distribution.

        Returns:
            ``(n, S / patch, S / patch)``.
        """
        x = _flat(pictures)
        side = round(len(self.mean) ** 0.5)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"pictures must be of {side} x {side} pixels, as those of fit, got {pictures[0].size}")
        r = (x - self.mean) @ self.precision  # (n, S S)
        grid = side // self.patch
        return np.stack([self._of_patch(r, row, column, side) for row in range(grid) for column in range(grid)], 1).reshape(
            len(x), grid, grid
        )

    def holes(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Which patches are holes: ``(n, S / patch, S / patch)`` bool."""
        return self.surprise(pictures) > self.threshold

    def _of_patch(self, r: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
        where = np.arange(side * side).reshape(side, side)
        top, left = row * self.patch, column * self.patch
        p = where[top : top + self.patch, left : left + self.patch].ravel()
        solved = np.linalg.solve(self.precision[np.ix_(p, p)], r[:, p].T).T  # (n, |p|)
        return np.asarray((r[:, p] * solved).mean(1))


def _flat(pictures: Sequence[Image.Image]) -> np.ndarray:
    """``(n, S S)`` float64 in [0, 1]."""
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1 or len(next(iter(sizes))) != len(set(next(iter(sizes)))) + 1:
        raise ValueError(f"pictures must be squares of one size, got {sorted(sizes) or 'none'}")
    return np.stack([np.asarray(picture.convert("L"), dtype=np.float64).ravel() / 255.0 for picture in pictures])
