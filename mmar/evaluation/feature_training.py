"""Training a feature network: about a minute on one core for drawn scenes, a few seconds for digits."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import OneCycleLR

from mmar.evaluation.feature_labels import Sample, labelled_pictures
from mmar.evaluation.feature_network import FeatureNetwork, FeatureSizes

OnStep = Callable[[int, float], None]
"""``on_step(steps done, loss)``."""

STEPS = {"scenes": 1300, "digits": 150}


def train_feature_network(
    kind: str,
    *,
    num_features: int = 64,
    widths: tuple[int, ...] = (32, 64),
    steps: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-2,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> FeatureNetwork:
    """Learn the labels of a kind of pictures.

    The same seed gives the same weights on the same machine with as many threads; torch's own generator is left as it was.

    Args:
        kind: scenes or digits.
        num_features: See :class:`FeatureSizes`.
        widths: As above.
        steps: Of AdamW; by default those of :data:`STEPS`.
        batch_size: Pictures a step, drawn anew.
        lr: Peak learning rate, one cycle.
        seed: Of weights and pictures.
        on_step: Told the loss, nats a label.

    Returns:
        In evaluation mode, without gradients.

    Raises:
        ValueError: If the kind is not known, or a number is less than 1.
    """
    pictures = labelled_pictures(kind)
    steps = STEPS[kind] if steps is None else steps
    if min(steps, batch_size) < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    network = _new(FeatureSizes(kind, num_features, widths), seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-4)
    rate = OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.2)
    rng = Random(seed)
    for step in range(steps):
        pixels, labels = _batch(pictures.train, rng, batch_size)
        loss = binary_cross_entropy_with_logits(network.logits(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def label_accuracy(network: FeatureNetwork, count: int = 1000, *, seed: int = 0) -> tuple[float, float]:
    """On test pictures: the share of right labels among those that are one, and of pictures with every label right.

    Most labels of a scene are zero, so the share of right labels among all would be high for a network that says nothing.
    """
    pixels, labels = _batch(labelled_pictures(network.sizes.kind).test, Random(seed), count)
    said = network.logits(pixels) > 0
    is_one = labels > 0.5
    return float(said[is_one].float().mean()), float((said == is_one).all(1).float().mean())


def _new(sizes: FeatureSizes, seed: int) -> FeatureNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureNetwork(sizes)


def _batch(sample: Sample, rng: Random, count: int) -> tuple[Tensor, Tensor]:
    pixels, labels = sample(rng, count)
    return torch.from_numpy(pixels), torch.from_numpy(labels)
