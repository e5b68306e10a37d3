"""Settings shared by all tests: reproducible Hypothesis, deterministic torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("repository", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("repository")
torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(20241010)
